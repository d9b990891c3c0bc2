//! Alerts: what each kind of chat gets, and that no chat changes what a command did.

use std::{fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    http::HttpServer,
    lifeboat::{Ended, Probe, lifeboat},
    peers::{ClosedPort, Peer},
};

/// A part of the address that only we may know.
const SECRET: &str = "T0K3N-in-the-path";

/// A command that fails without any cluster, with 2: there is no kubeconfig.
fn failing(webhook: &str, ping: &str) -> Command {
    let mut command = lifeboat(&["port-discover", "--service=pg", "--log-level=trace", "--dir=/nonexistent"]);
    command.env("KUBECONFIG", "/nonexistent");
    for (variable, url) in [("LIFEBOAT_WEBHOOK_URL", webhook), ("LIFEBOAT_PING_URL", ping)] {
        if !url.is_empty() {
            command.env(variable, url);
        }
    }
    command
}

fn assert_failed(ended: &Ended) -> Value {
    ended.assert_code(2).assert_hides(SECRET);
    let outcome = ended.outcome();
    assert_eq!(outcome["outcome"], "misconfigured");
    assert!(outcome["reason"].as_str().unwrap().contains("kubeconfig"), "{outcome}");
    outcome
}

#[test]
fn webhook_gets_the_body_of_each_format() {
    let path = format!("/hooks/{SECRET}");
    for format in ["json", "slack", "rocketchat", "mattermost", "teams"] {
        let chat = HttpServer::of_status(200);
        let ended = Ended::of(failing(&chat.url(&path), "").env("LIFEBOAT_WEBHOOK_FORMAT", format));
        let outcome = assert_failed(&ended);
        assert_eq!(outcome["alerts"][0]["kind"], "PortDiscoverFailed");
        assert_eq!(outcome["alerts"][0]["sent"]["webhook"], "delivered");
        let asked = chat.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].method.as_str(), &asked[0].path), ("POST", &path));
        assert!(asked[0].headers.contains("content-type: application/json"), "{asked:?}");
        let (body, reason) = (asked[0].json(), outcome["reason"].as_str().unwrap());
        let text = match format {
            "json" => {
                assert_eq!((&body["version"], &body["source"]), (&1.into(), &"lifeboat".into()));
                assert_eq!((&body["command"], &body["kind"]), (&"port-discover".into(), &"PortDiscoverFailed".into()));
                assert_eq!(body["severity"], "Warning");
                &body["summary"]
            }
            "teams" => {
                assert_eq!(body["attachments"][0]["contentType"], "application/vnd.microsoft.card.adaptive");
                &body["attachments"][0]["content"]["body"][0]["text"]
            }
            _ => &body["text"],
        };
        assert!(text.as_str().unwrap().ends_with(reason), "{format}: {body}");
    }
}

#[test]
fn ping_goes_to_the_address_after_a_success_and_to_fail_after_a_failure() {
    let switch = HttpServer::of_status(200);
    let url = switch.url(&format!("/ping/{SECRET}"));
    assert_eq!(assert_failed(&Ended::of(&mut failing("", &url)))["ping"], "delivered");

    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), format!("{url}\n")).unwrap();
    let mut command = probe.command(&["--host=127.0.0.1", &port, "--ping-url-file"]);
    let ended = Ended::of(command.arg(file.path()));
    ended.assert_code(0).assert_hides(SECRET);
    assert_eq!(ended.outcome()["ping"], "delivered");

    let asked = switch.asked();
    let paths: Vec<&str> = asked.iter().map(|request| request.path.as_str()).collect();
    assert_eq!(paths, [format!("/ping/{SECRET}/fail"), format!("/ping/{SECRET}")]);
    assert!(asked.iter().all(|request| request.method == "POST"));
    assert!(asked[1].body.starts_with("pg-probe: ") && asked[1].body.contains("unreachable"), "{asked:?}");
}

#[test]
fn chat_that_fails_or_refuses_changes_no_exit_code_and_its_address_is_shown_nowhere() {
    let closed = ClosedPort::new();
    let refusing = format!("http://{}/{SECRET}", closed.address);
    let broken = HttpServer::of_status(500);
    let broken = broken.url(&format!("/{SECRET}"));
    let closing = Peer::closing();
    let closing = format!("http://{}/{SECRET}", closing.address);
    for url in [
        broken,
        refusing,
        closing,
        format!("http://user:{SECRET}@127.0.0.1:1/"),
        format!("http://{SECRET}.invalid/hook"),
        format!("https://127.0.0.1:1/{SECRET}"),
        format!("gopher://127.0.0.1/{SECRET}"),
        format!("http://[{SECRET}/"),
        SECRET.to_owned(),
    ] {
        let ended = Ended::of(&mut failing(&url, &url));
        let outcome = assert_failed(&ended);
        for told in [&outcome["alerts"][0]["sent"]["webhook"], &outcome["ping"]] {
            assert!(told.as_str().unwrap().starts_with("not delivered: "), "{url}: {outcome}");
        }
    }
}

#[test]
fn chat_that_answers_500_is_told_by_its_status() {
    let broken = HttpServer::of_status(500);
    let outcome = assert_failed(&Ended::of(&mut failing(&broken.url(&format!("/{SECRET}")), "")));
    assert_eq!(outcome["alerts"][0]["sent"]["webhook"], "not delivered: HTTP status 500");
    assert_eq!(broken.asked().len(), 1);
}

#[test]
fn chat_that_hangs_delays_the_end_by_its_time_limit_only() {
    let silent = HttpServer::start(|_| None);
    let ended = Ended::of(&mut failing(&silent.url(&format!("/{SECRET}")), ""));
    let outcome = assert_failed(&ended);
    assert_eq!(outcome["alerts"][0]["sent"]["webhook"], "not delivered: timed out");
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

#[test]
fn dry_run_sends_nothing() {
    let chat = HttpServer::of_status(200);
    let url = chat.url("/");
    let ended = Ended::of(failing(&url, &url).arg("--dry-run"));
    ended.assert_code(2);
    assert!(chat.asked().is_empty(), "{:?}", chat.asked());
}

#[test]
fn webhook_file_missing_is_a_configuration_error() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    let flags = ["--host=127.0.0.1", &port, "--webhook-url-file=/nonexistent/url"];
    assert_eq!(Ended::of(&mut probe.command(&flags)).assert_code(2).outcome()["outcome"], "misconfigured");
}
