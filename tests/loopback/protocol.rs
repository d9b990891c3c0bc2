//! `pg-probe` and peers that speak PostgreSQL's protocol, but not to the end (PostgreSQL documentation 54, "Frontend/Backend
//! Protocol").

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    lifeboat::{Probe, last_error},
    peers::Peer,
};

/// Authenticated, and ready for a query.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

fn probe(peer: &Peer, more: &[&str]) -> Value {
    let (probe, port) = (Probe::new(), format!("--port={}", peer.address.port()));
    probe.verdict(probe.command(&["--host=127.0.0.1", &port, "--timeout=800ms"]).args(more))
}

/// Denies TLS and reads the startup message.
pub fn begin(stream: &mut TcpStream) -> Option<()> {
    stream.read_exact(&mut [0; 8]).ok()?;
    stream.write_all(b"N").ok()?;
    read_message(stream)
}

/// Reads a message that begins with its length.
fn read_message(stream: &mut TcpStream) -> Option<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).ok()?.checked_sub(4)?];
    stream.read_exact(&mut body).ok()
}

pub fn error_response(code: &str, message: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
    [b"E", &length[..], fields.as_bytes()].concat()
}

#[test]
fn error_of_each_class_has_its_verdict() {
    for (code, verdict) in [
        ("57P03", "starting"),
        ("28000", "rejected"),
        ("28P01", "rejected"),
        ("53300", "rejected"),
        ("3D000", "rejected"),
        ("42501", "rejected"),
        ("57P01", "unknown"),
        ("08P01", "unknown"),
        ("XX000", "unknown"),
    ] {
        let peer = Peer::start(move |mut stream| {
            begin(&mut stream)?;
            stream.write_all(&error_response(code, "the test says no")).ok()?;
            None
        });
        let facts = probe(&peer, &[]);
        assert_eq!(facts["verdict"], verdict, "{code}: {facts}");
        assert!(last_error(&facts).contains(code), "{facts}");
    }
}

#[test]
fn peer_that_resets_before_its_first_answer_is_unreachable() {
    // Closing a socket with bytes that nobody read sends a reset.
    let peer = Peer::start(|stream| {
        stream.peek(&mut [0; 8]).ok()?;
        None
    });
    for mode in ["disable", "prefer", "require"] {
        let facts = probe(&peer, &["--attempts=2", "--sslmode", mode]);
        assert_eq!(facts["verdict"], "unreachable", "{mode}: {facts}");
        assert!(last_error(&facts).contains("reset"), "{mode}: {facts}");
    }
}

#[test]
fn peer_that_resets_after_its_first_answer_is_unknown() {
    let peer = Peer::start(|mut stream| {
        stream.read_exact(&mut [0; 8]).ok()?;
        stream.write_all(b"N").ok()?;
        stream.peek(&mut [0; 8]).ok()?;
        None
    });
    let facts = probe(&peer, &["--attempts=2"]);
    assert_eq!(facts["verdict"], "unknown", "{facts}");
}

#[test]
fn peer_that_opens_a_session_and_tells_nothing_is_healthy_without_an_identity() {
    type After = fn(TcpStream) -> Option<TcpStream>;
    let ways: [After; 3] = [
        Some,
        |_| None,
        |mut stream| {
            stream.read_exact(&mut [0; 1]).ok()?;
            read_message(&mut stream)?;
            stream.write_all(&error_response("42501", "permission denied")).ok()?;
            stream.write_all(b"Z\0\0\0\x05I").ok()?;
            Some(stream)
        },
    ];
    for after in ways {
        let peer = Peer::start(move |mut stream| {
            begin(&mut stream)?;
            stream.write_all(WELCOME).ok()?;
            after(stream)
        });
        let facts = probe(&peer, &["--attempts=3"]);
        assert_eq!(facts["verdict"], "healthy", "it opened a session, so it is alive: {facts}");
        assert_eq!(facts["attempts"].as_array().unwrap().len(), 1);
        assert!(!last_error(&facts).is_empty(), "{facts}");
        for key in ["system_id", "timeline", "lsn", "in_recovery"] {
            assert_eq!(facts[key], Value::Null, "{key}");
        }
    }
}

#[test]
fn peer_slow_within_the_limit_is_healthy_and_beyond_it_unknown() {
    for (pause, verdict) in [(10, "healthy"), (200, "unknown")] {
        let peer = Peer::start(move |mut stream| {
            begin(&mut stream)?;
            for byte in WELCOME {
                thread::sleep(Duration::from_millis(pause));
                stream.write_all(&[*byte]).ok()?;
            }
            Some(stream)
        });
        let facts = probe(&peer, &[]);
        assert_eq!(facts["verdict"], verdict, "{pause} ms a byte: {facts}");
    }
}

#[test]
fn message_endless_is_unknown_within_the_limit() {
    let peer = Peer::start(|mut stream| {
        begin(&mut stream)?;
        stream.write_all(b"E\x7f\xff\xff\xff").ok()?;
        while stream.write_all(&[b'x'; 4096]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        None
    });
    let facts = probe(&peer, &[]);
    assert_eq!(facts["verdict"], "unknown", "{facts}");
}
