//! `promote` and witnesses that see, are blind, babble or keep silent. Every run is a dry one.

use std::{process::Command, thread};

use serde_json::{Value, json};

use crate::{
    api::Site,
    http::HttpServer,
    lifeboat::{Ended, lifeboat},
    peers::{ClosedPort, Peer},
};

const TOKEN: &str = "t0ken-of-the-witness";

fn facts(verdict: &str, taken: jiff::Timestamp) -> Value {
    json!({
        "version": 1, "taken": taken, "path": "postgresql", "host": "gold", "port": 5432, "verdict": verdict,
        "reason": verdict, "attempts": [], "system_id": null, "timeline": null, "lsn": null, "in_recovery": null,
    })
}

fn saying(status: u16, body: impl Into<String>) -> HttpServer {
    let body = body.into();
    HttpServer::start(move |_| Some((status, body.clone())))
}

fn command(site: &Site, witnesses: &[String]) -> Command {
    let mut command = site.promote(&["--dry-run", "--log-level=trace", "--witness", &witnesses.join(",")]);
    command.env("LIFEBOAT_WITNESS_TOKEN", TOKEN);
    command
}

/// Whether each witness lets the promotion pass.
fn asked(site: &Site, witnesses: &[String]) -> Vec<bool> {
    site.seen_by(witnesses);
    let ended = Ended::of(&mut command(site, witnesses));
    ended.assert_hides(TOKEN);
    let outcome = ended.outcome();
    let guards = outcome["evidence"].as_array().unwrap();
    let other = |guard: &&Value| guard["guard"] != "witness" && guard["passed"] == false;
    assert!(!guards.iter().any(|guard| other(&guard)), "only witnesses stop it: {outcome}");
    let passed: Vec<bool> = guards
        .iter()
        .filter(|guard| guard["guard"] == "witness")
        .map(|guard| guard["passed"].as_bool().unwrap())
        .collect();
    let (plan, code) = if passed.iter().all(|passed| *passed) { ("promote", 0) } else { ("refuse", 3) };
    assert_eq!(outcome["plan"], plan, "{outcome}");
    ended.assert_code(code);
    passed
}

#[test]
fn witness_passes_only_where_it_answers_now_and_is_blind_itself() {
    let site = Site::start();
    let now = jiff::Timestamp::now();
    let of = |verdict: &str| saying(200, facts(verdict, now).to_string());
    let minutes = jiff::SignedDuration::from_mins(5);
    let refused: Vec<HttpServer> = vec![
        of("healthy"),
        of("starting"),
        of("rejected"),
        of("misconfigured"),
        of("unknown"),
        of("dead"),
        saying(200, facts("unreachable", now - minutes).to_string()),
        saying(200, facts("unreachable", now + minutes).to_string()),
        saying(200, "<html>unreachable</html>"),
        saying(200, "null"),
        saying(200, format!("\"{}\"", "x".repeat(3 << 20))),
        saying(401, facts("unreachable", now).to_string()),
        saying(503, facts("unreachable", now).to_string()),
        HttpServer::start(|_| None),
    ];
    let blind = of("unreachable");
    assert_eq!(asked(&site, &[blind.url("")]), [true]);
    let request = &blind.asked()[0];
    assert_eq!(request.path, "/v1/peer");
    assert!(request.headers.contains(&format!("authorization: bearer {TOKEN}")), "{}", request.headers);

    let (closed, closing) = (ClosedPort::new(), Peer::closing());
    let urls: Vec<String> = refused.iter().map(|witness| witness.url("/")).collect();
    let others = [closed.address, closing.address].map(|address| format!("http://{address}"));
    let all: Vec<String> = [&urls[..], &others, &[blind.url("/")]].concat();
    let mut wanted = vec![false; all.len() - 1];
    wanted.push(true);
    assert_eq!(asked(&site, &all), wanted);
    assert_eq!(site.writes(), 0, "a dry run writes nothing");
    for (witness, said) in [("not a url", "must be an address"), ("http://me:hunter2@w:1", "LIFEBOAT_WITNESS_TOKEN")] {
        let ended = Ended::of(&mut command(&site, &[witness.to_owned()]));
        assert!(ended.assert_code(2).outcome()["reason"].as_str().unwrap().contains(said), "{}", ended.stdout);
        ended.assert_hides("hunter2");
    }
}

#[test]
fn witness_that_never_saw_the_peer_refuses_though_it_is_blind() {
    let site = Site::start();
    let blind = saying(200, facts("unreachable", jiff::Timestamp::now()).to_string());
    let outcome = Ended::of(&mut command(&site, &[blind.url("")])).assert_code(3).outcome();
    let witness = outcome["evidence"].as_array().unwrap().iter().find(|guard| guard["guard"] == "witness").unwrap();
    assert!(witness["found"].as_str().unwrap().contains("never saw the peer"), "{witness}");
}

#[test]
fn real_witness_that_sees_the_peer_refuses_and_one_that_does_not_passes() {
    let site = Site::start();
    let (closed, living) = (ClosedPort::new(), site.standby.port);
    let start = |peer: String| {
        let mut command = lifeboat(&["witness", "--listen=127.0.0.1:0", "--peer", &peer]);
        let mut running = crate::lifeboat::Running::start(command.env("LIFEBOAT_WITNESS_TOKEN", TOKEN));
        let line = running.await_log("listening on ");
        (running, format!("http://{}", line.rsplit(' ').next().unwrap()))
    };
    let (_blind, blind) = start(closed.address.to_string());
    let (_seeing, seeing) = start(format!("127.0.0.1:{living}"));
    thread::scope(|scope| {
        let both = scope.spawn(|| asked(&site, &[blind.clone(), seeing]));
        assert_eq!(asked(&site, std::slice::from_ref(&blind)), [true]);
        assert_eq!(both.join().unwrap(), [true, false]);
    });
}
