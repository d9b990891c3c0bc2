//! `pg-probe` against what is no living PostgreSQL, and against mistakes of our own.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use serde_json::Value;

use crate::{
    lifeboat::{Ended, Probe, files, last_error, lifeboat},
    peers::{ClosedPort, Peer},
};

fn probe(address: SocketAddr, more: &[&str]) -> Value {
    let probe = Probe::new();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let facts = probe.verdict(probe.command(&["--host", &host, "--port", &port, "--timeout=700ms"]).args(more));
    assert_eq!((&facts["host"], &facts["port"]), (&host.into(), &address.port().into()));
    for key in ["system_id", "timeline", "lsn", "in_recovery"] {
        assert_eq!(facts[key], Value::Null, "{key}");
    }
    facts
}

fn assert_every_attempt(facts: &Value, number: usize, verdict: &str) {
    let attempts = facts["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), number, "{facts}");
    assert_eq!(facts["verdict"], verdict, "{facts}");
    for attempt in attempts {
        assert_eq!(attempt["verdict"], verdict, "{facts}");
        assert!(!attempt["error"].as_str().unwrap().is_empty(), "{facts}");
    }
}

#[test]
fn port_closed_is_unreachable_in_every_attempt() {
    let closed = ClosedPort::new();
    for mode in ["disable", "prefer", "require"] {
        assert_every_attempt(&probe(closed.address, &["--attempts=3", "--sslmode", mode]), 3, "unreachable");
    }
}

#[test]
fn peer_silent_is_unreachable_after_the_time_limit() {
    let peer = Peer::silent();
    for mode in ["disable", "prefer", "require"] {
        let facts = probe(peer.address, &["--attempts=2", "--sslmode", mode]);
        assert_every_attempt(&facts, 2, "unreachable");
        assert!(last_error(&facts).contains("no answer within"), "{facts}");
    }
    assert_eq!(peer.accepted(), 6);
}

#[test]
fn peer_that_closes_at_once_is_unreachable() {
    let peer = Peer::closing();
    for mode in ["disable", "prefer", "require"] {
        assert_every_attempt(&probe(peer.address, &["--attempts=2", "--sslmode", mode]), 2, "unreachable");
    }
}

#[test]
fn peer_that_closes_in_answer_to_the_tls_request_is_unreachable() {
    let peer = Peer::answering(b"", true);
    for mode in ["prefer", "require"] {
        assert_every_attempt(&probe(peer.address, &["--attempts=2", "--sslmode", mode]), 2, "unreachable");
    }
}

#[test]
fn peer_that_answers_garbage_is_unknown() {
    for and_close in [true, false] {
        for garbage in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\0\0\0\0\0\0\0\0\0", b"N"] {
            let peer = Peer::answering(garbage, and_close);
            let facts = probe(peer.address, &["--attempts=2"]);
            assert_every_attempt(&facts, 2, "unknown");
        }
    }
}

#[test]
fn peer_silent_after_it_granted_tls_is_unknown() {
    let peer = Peer::answering(b"S", false);
    let facts = probe(peer.address, &["--sslmode=require"]);
    assert_every_attempt(&facts, 1, "unknown");
    assert!(last_error(&facts).contains("answered"), "{facts}");
}

#[test]
fn peer_that_denies_tls_is_misconfigured_where_it_is_required() {
    let peer = Peer::answering(b"N", false);
    assert_every_attempt(&probe(peer.address, &["--sslmode=require"]), 1, "misconfigured");
}

#[test]
fn peer_that_closes_after_it_granted_tls_never_counts_as_unreachable() {
    let peer = Peer::answering(b"S", true);
    let facts = probe(peer.address, &["--sslmode=require"]);
    assert_ne!(facts["verdict"], "unreachable", "{facts}");
}

#[test]
fn attempts_of_different_verdicts_are_unknown_together() {
    let first = std::sync::atomic::AtomicBool::new(true);
    let peer = Peer::start(move |mut stream| {
        use std::io::{Read, Write};
        if !first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            stream.read_exact(&mut [0; 8]).ok()?;
            stream.write_all(b"?????????").ok()?;
        }
        None
    });
    let facts = probe(peer.address, &["--attempts=2"]);
    assert_eq!(facts["verdict"], "unknown", "{facts}");
    assert_eq!(facts["attempts"][0]["verdict"], "unreachable", "{facts}");
    assert_eq!(facts["attempts"][1]["verdict"], "unknown", "{facts}");
}

#[test]
fn name_that_does_not_exist_is_never_unreachable() {
    let probe = Probe::new();
    let facts = probe.verdict(&mut probe.command(&["--host=no-such-host.invalid", "--port=5432", "--timeout=15s"]));
    assert!(["misconfigured", "unknown"].contains(&facts["verdict"].as_str().unwrap()), "{facts}");
    assert!(last_error(&facts).contains("no-such-host.invalid"), "{facts}");
}

#[test]
fn port_file_missing_empty_or_garbage_is_misconfigured_and_leaves_no_health() {
    for content in [None, Some(""), Some("\n"), Some("null\n"), Some("0"), Some("65536"), Some("36760 36761")] {
        let probe = Probe::new();
        let port_file = probe.dir.path().join("tsc_port");
        if let Some(content) = content {
            fs::write(&port_file, content).unwrap();
        }
        fs::write(probe.dir.path().join("health"), "unhealthy\n").unwrap();
        let facts = probe.verdict(probe.command(&["--host=127.0.0.1", "--port=5432", "--port-file"]).arg(&port_file));
        assert_eq!(
            (&facts["verdict"], &facts["port"]),
            (&"misconfigured".into(), &Value::Null),
            "{content:?}: {facts}"
        );
        assert!(facts["reason"].as_str().unwrap().contains("tsc_port"), "{facts}");
    }
}

#[test]
fn port_file_with_a_port_wins_over_the_flag() {
    let (peer, unused) = (Peer::closing(), Peer::silent());
    let probe = Probe::new();
    let port_file = probe.dir.path().join("tsc_port");
    fs::write(&port_file, format!("{}\n", peer.address.port())).unwrap();
    let port = unused.address.port().to_string();
    let facts = probe.verdict(probe.command(&["--host=127.0.0.1", "--port", &port, "--port-file"]).arg(&port_file));
    assert_eq!(facts["port"], peer.address.port());
    assert_eq!((peer.accepted(), unused.accepted()), (1, 0));
}

#[test]
fn require_healthy_of_a_dead_peer_exits_4_with_its_files_written() {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = closed.address.port().to_string();
    let ended = Ended::of(&mut probe.command(&["--host=127.0.0.1", "--port", &port, "--require=healthy"]));
    assert_eq!(ended.assert_code(4).outcome()["outcome"], "unverified");
    assert_eq!(probe.facts()["verdict"], "unreachable");
    assert_eq!(probe.health().as_deref(), Some("unhealthy\n"));
    let ended = Ended::of(&mut probe.command(&["--host=127.0.0.1", "--port", &port, "--require=unreachable"]));
    ended.assert_code(0);
}

#[test]
fn folder_that_cannot_be_written_exits_1_and_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let closed = ClosedPort::new();
    let port = closed.address.port().to_string();
    for dir in [file.path(), Path::new("/nonexistent/intercom"), Path::new("/proc/self/fdinfo")] {
        let mut command = lifeboat(&["pg-probe", "--host=127.0.0.1", "--port", &port, "--attempts=1", "--dir"]);
        let ended = Ended::of(command.arg(dir));
        let outcome = ended.assert_code(1).outcome();
        assert_eq!(outcome["outcome"], "failed");
        assert!(outcome["reason"].as_str().unwrap().contains(dir.to_str().unwrap()), "{outcome}");
    }
}

#[test]
fn flags_wrong_exit_2_with_an_empty_stdout() {
    for flags in [
        &["--port=5432"][..],
        &["--host=h"],
        &["--host=h", "--port=0"],
        &["--host=h", "--port=65536"],
        &["--host=h", "--port=1", "--attempts=0"],
        &["--host=h", "--port=1", "--timeout=3"],
        &["--host=h", "--port=1", "--timeout=0s"],
        &["--host=h", "--port=1", "--require=fine"],
        &["--host=h", "--port=1", "--no-such-flag"],
    ] {
        let probe = Probe::new();
        let ended = Ended::of(&mut probe.command(flags));
        ended.assert_code(2);
        assert!(ended.stdout.is_empty() && ended.stderr.starts_with("error: "), "{flags:?}: {}", ended.stderr);
        assert!(files(probe.dir.path()).is_empty());
    }
}

#[test]
fn password_file_missing_is_a_configuration_error() {
    let probe = Probe::new();
    let ended =
        Ended::of(&mut probe.command(&["--host=127.0.0.1", "--port=1", "--password-file=/nonexistent/password"]));
    assert_eq!(ended.assert_code(2).outcome()["outcome"], "misconfigured");
}

#[test]
fn time_of_a_run_is_bounded_by_attempts_and_their_limit() {
    let (peer, probe) = (Peer::silent(), Probe::new());
    let port = peer.address.port().to_string();
    let flags = ["--host=127.0.0.1", "--port", &port, "--attempts=3", "--timeout=500ms", "--interval=100ms"];
    let ended = Ended::of(&mut probe.command(&flags));
    assert!(ended.took > Duration::from_millis(1600), "{:?}", ended.took);
    assert!(ended.took < Duration::from_secs(6), "{:?}", ended.took);
}
