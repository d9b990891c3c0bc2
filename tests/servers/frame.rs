//! What every command has: names, help, one line of outcome, last words, logs, signals, `--dry-run`.

use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    kubernetes::Api,
    lifeboat::{Ended, LIFEBOAT, Probe, Running, await_condition, files, lifeboat},
    peers::{ClosedPort, Peer},
};

const COMMANDS: [&str; 15] = [
    "port-discover",
    "pg-probe",
    "promote",
    "status",
    "hold",
    "release",
    "approve",
    "follow",
    "monitor",
    "witness",
    "post-bootstrap",
    "tls-reload",
    "dump",
    "backups",
    "restore",
];

#[test]
fn list_prints_every_command() {
    let ended = Ended::of(&mut lifeboat(&["--list"]));
    assert_eq!(ended.assert_code(0).stdout.lines().collect::<Vec<_>>(), COMMANDS);
}

#[test]
fn help_and_version_exit_0_on_stdout() {
    let list = Ended::of(&mut lifeboat(&["--list"])).stdout;
    for arguments in list.lines().map(|name| vec![name, "--help"]).chain([vec!["--help"], vec!["--version"]]) {
        let ended = Ended::of(&mut lifeboat(&arguments));
        ended.assert_code(0);
        assert!(!ended.stdout.is_empty() && ended.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&[][..], &["no-such-command"]] {
        let ended = Ended::of(&mut lifeboat(arguments));
        assert!(ended.assert_code(2).stdout.is_empty(), "{arguments:?}: {}", ended.stdout);
    }
}

#[test]
fn link_named_as_a_command_runs_that_command() {
    let dir = tempfile::tempdir().unwrap();
    for name in COMMANDS {
        let link = dir.path().join(name);
        symlink(LIFEBOAT, &link).unwrap();
        let by_link = Ended::of(Command::new(&link).arg("--help").env_clear());
        assert_eq!(by_link.assert_code(0).stdout, Ended::of(&mut lifeboat(&[name, "--help"])).stdout, "{name}");
    }
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    let mut command = Command::new(dir.path().join("pg-probe"));
    command.args(["--host=127.0.0.1", &port, "--attempts=1", "--dir"]).arg(probe.dir.path()).env_clear();
    assert_eq!(probe.verdict(&mut command)["verdict"], "unreachable");
}

#[test]
fn flag_by_its_environment_variable_is_the_same() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let mut command = lifeboat(&["pg-probe"]);
    command
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", closed.address.port().to_string())
        .env("LIFEBOAT_ATTEMPTS", "2")
        .env("LIFEBOAT_INTERVAL", "10ms")
        .env("LIFEBOAT_DIR", probe.dir.path());
    assert_eq!(probe.verdict(&mut command)["attempts"].as_array().unwrap().len(), 2);
}

#[test]
fn termination_log_that_exists_gets_the_outcome_cut_to_what_the_kubelet_keeps() {
    let closed = ClosedPort::new();
    let port = format!("--port={}", closed.address.port());
    for (attempts, whole) in [("1", true), ("200", false)] {
        let (probe, file) = (Probe::new(), tempfile::NamedTempFile::new().unwrap());
        fs::write(file.path(), "x".repeat(9000)).unwrap();
        let flags = ["--host=127.0.0.1", &port, "--interval=0s", "--attempts", attempts, "--termination-log"];
        let ended = Ended::of(probe.command(&flags).arg(file.path()));
        ended.assert_code(0);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.len() <= 4096, "{} bytes", text.len());
        let (last_words, outcome): (Value, Value) = (serde_json::from_str(&text).unwrap(), ended.outcome());
        for key in ["version", "command", "outcome", "exit_code", "reason", "started", "duration_ms"] {
            assert_eq!(last_words[key], outcome[key], "{key}");
        }
        assert_eq!(last_words == outcome, whole, "{text}");
    }
}

#[test]
fn termination_log_that_does_not_exist_is_not_created() {
    let (probe, closed, place) = (Probe::new(), ClosedPort::new(), tempfile::tempdir().unwrap());
    let port = format!("--port={}", closed.address.port());
    let log = place.path().join("termination-log");
    Ended::of(probe.command(&["--host=127.0.0.1", &port, "--termination-log"]).arg(&log)).assert_code(0);
    assert!(!log.exists());
}

#[test]
fn termination_log_that_cannot_be_written_changes_no_exit_code() {
    let (probe, closed, place) = (Probe::new(), ClosedPort::new(), tempfile::tempdir().unwrap());
    let port = format!("--port={}", closed.address.port());
    let ended = Ended::of(probe.command(&["--host=127.0.0.1", &port, "--termination-log"]).arg(place.path()));
    assert_eq!(ended.assert_code(0).outcome()["verdict"], "unreachable");
}

#[test]
fn log_as_json_is_one_object_a_line() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    for level in ["info", "trace"] {
        let flags = ["--host=127.0.0.1", &port, "--attempts=2", "--log-format=json", "--log-level", level];
        let ended = Ended::of(&mut probe.command(&flags));
        assert!(ended.stderr.lines().count() >= 3, "{}", ended.stderr);
        for line in ended.stderr.lines() {
            let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        }
    }
}

#[test]
fn log_as_text_has_no_colours_off_a_terminal() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    let ended = Ended::of(&mut probe.command(&["--host=127.0.0.1", &port]));
    assert!(ended.stderr.contains("WARN") && !ended.stderr.contains('\u{1b}'), "{}", ended.stderr);
}

fn assert_stopped(running: Running) {
    let ended = running.terminate();
    let outcome = ended.assert_code(1).outcome();
    assert_eq!(outcome["outcome"], "failed");
    assert!(outcome["reason"].as_str().unwrap().contains("SIGTERM"), "{outcome}");
    assert!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
}

#[test]
fn sigterm_to_a_waiting_port_discover_ends_it_at_once_and_is_told() {
    let (api, dir) = (Api::of_status(404), tempfile::tempdir().unwrap());
    let mut running =
        Running::start(api.command(&["port-discover", "--service=pg", "--wait=60s", "--dir"]).arg(dir.path()));
    running.await_log("does not exist");
    assert_stopped(running);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn sigterm_to_a_probe_of_a_silent_peer_ends_it_at_once_and_leaves_no_verdict() {
    let (peer, probe) = (Peer::silent(), Probe::new());
    let port = format!("--port={}", peer.address.port());
    let running = Running::start(&mut probe.command(&["--host=127.0.0.1", &port, "--timeout=60s"]));
    await_condition("the probe is connected", Duration::from_secs(10), || {
        if peer.accepted() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    assert_stopped(running);
    assert!(files(probe.dir.path()).is_empty());
}

#[test]
fn sigterm_to_a_witness_ends_it_at_once_and_is_told() {
    let mut running = Running::start(&mut lifeboat(&["witness", "--listen=127.0.0.1:0", "--peer=127.0.0.1:1"]));
    running.await_log("listening on");
    assert_stopped(running);
}

#[test]
fn sigterm_while_a_chat_hangs_ends_the_run_at_once() {
    let (chat, dir) = (Peer::silent(), tempfile::tempdir().unwrap());
    let mut command = lifeboat(&["port-discover", "--service=pg", "--dir"]);
    command.arg(dir.path()).env("KUBECONFIG", "/nonexistent");
    let running = Running::start(command.env("LIFEBOAT_WEBHOOK_URL", format!("http://{}/", chat.address)));
    await_condition("the alert is sent", Duration::from_secs(10), || {
        if chat.accepted() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let ended = running.terminate();
    ended.assert_code(2).outcome();
    assert!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
}

#[test]
fn dry_run_writes_nothing_and_says_so() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    fs::write(probe.dir.path().join("health"), "healthy\n").unwrap();
    let port = format!("--port={}", closed.address.port());
    let ended = Ended::of(&mut probe.command(&["--host=127.0.0.1", &port, "--dry-run"]));
    let outcome = ended.assert_code(0).outcome();
    assert_eq!((&outcome["dry_run"], &outcome["verdict"]), (&true.into(), &"unreachable".into()));
    assert_eq!(files(probe.dir.path()), ["health"]);
    assert_eq!(probe.health().as_deref(), Some("healthy\n"), "what was there stays");

    let (api, dir) = (Api::with_service(36760), tempfile::tempdir().unwrap());
    let ended = Ended::of(api.command(&["port-discover", "--service=pg", "--dry-run", "--dir"]).arg(dir.path()));
    assert_eq!(ended.assert_code(0).outcome()["port"], 36760);
    assert!(files(dir.path()).is_empty());

    for arguments in [
        &["witness", "--listen=127.0.0.1:0", "--peer=127.0.0.1:1", "--dry-run"][..],
        &["post-bootstrap", "host=127.0.0.1 port=1", "--dry-run"],
    ] {
        let ended = Ended::of(&mut lifeboat(arguments));
        assert_eq!(ended.assert_code(0).outcome()["outcome"], "nothing-to-do", "{arguments:?}");
    }
}
