//! `witness` and callers that want to hold it up.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    http::request,
    lifeboat::{Running, await_condition, lifeboat},
    peers::{ClosedPort, Peer},
};

fn witness(peer: SocketAddr, more: &[&str]) -> (Running, SocketAddr) {
    let peer = peer.to_string();
    let mut running =
        Running::start(lifeboat(&["witness", "--listen=127.0.0.1:0", "--attempts=1", "--peer", &peer]).args(more));
    let line = running.await_log("listening on ");
    let address = line.rsplit(' ').next().unwrap().parse().unwrap();
    (running, address)
}

#[test]
fn callers_that_take_every_place_and_never_speak_are_dropped() {
    let closed = ClosedPort::new();
    let (_running, address) = witness(closed.address, &[]);
    let _idle: Vec<TcpStream> = (0..80).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = Instant::now();
    assert_eq!(request(address, "GET", "/healthz", "").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn request_huge_or_with_a_body_that_never_comes_is_refused_and_the_witness_lives_on() {
    let closed = ClosedPort::new();
    let (_running, address) = witness(closed.address, &[]);
    let mut stream = TcpStream::connect(address).unwrap();
    let mut sent = stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ");
    for _ in 0..256 {
        sent = sent.and_then(|()| stream.write_all(&[b'x'; 4096]));
    }
    let mut answer = String::new();
    let told = stream.read_to_string(&mut answer);
    assert!(sent.is_err() || told.is_err() || answer.starts_with("HTTP/1.1 4"), "{answer}");

    assert_eq!(request(address, "GET", "/healthz", "Content-Length: 1000000000\r\n").0, 200);
    assert_eq!(request(address, "POST", "/v1/peer", "Content-Length: 1000000000\r\n").0, 405);
    assert_eq!(request(address, "GET", "/healthz", "").0, 200);
}

#[test]
fn caller_that_leaves_during_the_probe_takes_the_answer_from_nobody() {
    let peer = Peer::silent();
    let (_running, address) = witness(peer.address, &["--timeout=1s"]);
    let mut leaving = TcpStream::connect(address).unwrap();
    leaving.write_all(b"GET /v1/peer HTTP/1.1\r\nHost: w\r\n\r\n").unwrap();
    await_condition("the probe runs", Duration::from_secs(5), || {
        if peer.accepted() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    drop(leaving);
    let (status, _, body) = request(address, "GET", "/v1/peer", "");
    let facts: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &facts["verdict"]), (200, &"unreachable".into()), "{body}");
}

#[test]
fn sigterm_during_a_probe_ends_the_witness_at_once() {
    let peer = Peer::silent();
    let (running, address) = witness(peer.address, &["--timeout=4s"]);
    let mut caller = TcpStream::connect(address).unwrap();
    caller.write_all(b"GET /v1/peer HTTP/1.1\r\nHost: w\r\n\r\n").unwrap();
    await_condition("the probe runs", Duration::from_secs(5), || {
        if peer.accepted() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let ended = running.terminate();
    assert!(ended.assert_code(1).outcome()["reason"].as_str().unwrap().contains("SIGTERM"), "{}", ended.stdout);
    assert!(ended.took < Duration::from_secs(1), "{:?}", ended.took);
}
