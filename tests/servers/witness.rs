//! `witness` over HTTP.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    http::request,
    lifeboat::{Ended, Running, lifeboat},
    peers::{ClosedPort, Peer},
    postgres::{PASSWORD, Postgres},
};

const TOKEN: &str = "t0ken-of-the-test";

struct Witness {
    address: SocketAddr,
    running: Running,
}

impl Witness {
    fn of(peer: SocketAddr, more: &[&str], token: Option<&str>) -> Self {
        let peer = peer.to_string();
        let mut command = lifeboat(&["witness", "--listen=127.0.0.1:0", "--attempts=1", "--peer", &peer]);
        command.args(more).env("PGPASSWORD", PASSWORD).env("LIFEBOAT_WITNESS_TOKEN", token.unwrap_or_default());
        let mut running = Running::start(&mut command);
        let line = running.await_log("listening on ");
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        Self { address, running }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = request(self.address, "GET", path, "");
        (status, body)
    }

    fn peer(&self) -> Value {
        peer_seen_by(self.address)
    }
}

fn peer_seen_by(address: SocketAddr) -> Value {
    let (status, head, body) = request(address, "GET", "/v1/peer", "");
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn peer_alive_is_told_with_its_identity() {
    let server = Postgres::shared();
    let facts = Witness::of(SocketAddr::from(([127, 0, 0, 1], server.port)), &[], None).peer();
    assert_eq!((&facts["version"], &facts["verdict"]), (&1.into(), &"healthy".into()), "{facts}");
    assert_eq!(facts["system_id"], server.sql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!(facts["in_recovery"], false);
    assert!(facts["taken"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
}

#[test]
fn peer_dead_is_told_as_unreachable() {
    let closed = ClosedPort::new();
    let facts = Witness::of(closed.address, &["--attempts=2", "--interval=10ms", "--timeout=1s"], None).peer();
    assert_eq!(facts["verdict"], "unreachable", "{facts}");
    assert_eq!(facts["attempts"].as_array().unwrap().len(), 2);
}

#[test]
fn paths_and_methods_that_are_none_of_its_own_are_refused() {
    let (peer, query) = (Peer::closing(), "/healthz?x=1");
    let witness = Witness::of(peer.address, &[], None);
    assert_eq!(witness.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(witness.get(query).0, 200);
    for path in ["/", "/v1", "/v1/peer/", "/v1/peers", "//v1/peer", "/V1/peer"] {
        assert_eq!(witness.get(path).0, 404, "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(request(witness.address, method, "/v1/peer", "Content-Length: 0\r\n").0, 405, "{method}");
        assert_eq!(request(witness.address, method, "/healthz", "Content-Length: 0\r\n").0, 405, "{method}");
    }
    assert_eq!(peer.accepted(), 0, "none of that is a reason to probe");
}

#[test]
fn token_missing_or_wrong_gets_401_without_a_probe_and_the_right_one_an_answer() {
    let peer = Peer::closing();
    let witness = Witness::of(peer.address, &["--log-level=trace"], Some(TOKEN));
    for header in [
        String::new(),
        "Authorization: Bearer \r\n".to_owned(),
        "Authorization: Bearer wrong\r\n".to_owned(),
        format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
        format!("Authorization: Bearer {TOKEN}x\r\n"),
        format!("Authorization: Basic {TOKEN}\r\n"),
        format!("Authorization: {TOKEN}\r\n"),
    ] {
        let (status, _, body) = request(witness.address, "GET", "/v1/peer", &header);
        assert_eq!(status, 401, "{header:?}: {body}");
    }
    assert_eq!(peer.accepted(), 0);
    let (status, _, body) = request(witness.address, "GET", "/v1/peer", &format!("Authorization: Bearer {TOKEN}\r\n"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(peer.accepted(), 1);
    assert_eq!(witness.get("/healthz").0, 200, "a kubelet has no token");
    let ended = witness.running.terminate();
    ended.assert_hides(TOKEN);
    ended.assert_hides(PASSWORD);
}

#[test]
fn callers_at_the_same_time_share_one_probe() {
    let peer = Peer::silent();
    let witness = Witness::of(peer.address, &["--timeout=1s"], None);
    let address = witness.address;
    let answers: Vec<Value> = thread::scope(|scope| {
        let callers: Vec<_> = (0..12).map(|_| scope.spawn(move || peer_seen_by(address))).collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    assert_eq!(peer.accepted(), 1);
    assert!(answers.iter().all(|facts| facts["taken"] == answers[0]["taken"]), "{answers:?}");
    thread::sleep(Duration::from_millis(1100));
    witness.peer();
    assert_eq!(peer.accepted(), 2, "later callers get a probe of their own");
}

#[test]
fn slow_callers_and_a_slow_probe_block_nobody_else() {
    let peer = Peer::silent();
    let witness = Witness::of(peer.address, &["--timeout=2s"], None);
    let address = witness.address;
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(witness.address).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: wit").unwrap();
            stream
        })
        .collect();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || peer_seen_by(address));
        crate::lifeboat::await_condition("the probe runs", Duration::from_secs(3), || {
            if peer.accepted() > 0 { Ok(()) } else { Err("not yet".to_owned()) }
        });
        let begun = Instant::now();
        assert_eq!(witness.get("/healthz").0, 200);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(!waiting.is_finished(), "the probe went on meanwhile");
        assert_eq!(waiting.join().unwrap()["verdict"], "unreachable");
    });
    drop(slow);
}

#[test]
fn request_malformed_is_answered_with_400_and_the_witness_lives_on() {
    let closed = ClosedPort::new();
    let witness = Witness::of(closed.address, &[], None);
    let (status, ..) = request(witness.address, "GE T", "/healthz", "");
    assert_eq!(status, 400);
    assert_eq!(witness.get("/healthz").0, 200);
}

#[test]
fn address_taken_or_peer_malformed_ends_the_start() {
    let taken = Peer::silent();
    let listen = taken.address.to_string();
    let ended = Ended::of(&mut lifeboat(&["witness", "--listen", &listen, "--peer=127.0.0.1:5432"]));
    assert!(ended.assert_code(1).outcome()["reason"].as_str().unwrap().contains(&listen), "{}", ended.stdout);
    for peer in ["gold", "gold:", ":5432", "gold:0", "gold:99999"] {
        let ended = Ended::of(&mut lifeboat(&["witness", "--listen=127.0.0.1:0", "--peer", peer]));
        assert!(ended.assert_code(2).stderr.contains("must be HOST:PORT"), "{peer}: {}", ended.stderr);
    }
    let ended = Ended::of(&mut lifeboat(&["witness", "--listen=127.0.0.1:0", "--peer=h:1", "--sslmode=verify-full"]));
    ended.assert_code(2);
    let ended = Ended::of(&mut lifeboat(&["witness", "--listen=127.0.0.1:0", "--peer=h:1", "--attempts=2"]));
    let reason = ended.assert_code(2).outcome()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("would take 6.5 s, and promote waits 5 s"), "{reason}");
}
