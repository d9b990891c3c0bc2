//! `follow --fence`: a site that would lead looks at its peer before Patroni starts.

use std::{
    fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    api::{kubeconfig, status},
    certificates::{authority, certificate},
    http::HttpServer,
    lifeboat::{Ended, Running, lifeboat},
    peers::{ClosedPort, Peer},
    postgres::{PASSWORD, Postgres},
    protocol::{begin, error_response},
};

/// An active site whose cluster has this system identifier and is on timeline 2, and its record, if there is one.
struct Gold {
    record: Arc<Mutex<Option<Value>>>,
    led: Arc<AtomicBool>,
    server: HttpServer,
    kubeconfig: tempfile::NamedTempFile,
    dir: tempfile::TempDir,
}

impl Gold {
    /// `writable`: whether its record may be written.
    fn start(system_id: &str, record: Option<Value>, writable: bool) -> Self {
        Self::after(83_886_080, system_id, record, writable)
    }

    /// Timeline 1 ended there.
    fn after(switch: u64, system_id: &str, record: Option<Value>, writable: bool) -> Self {
        let record = Arc::new(Mutex::new(record));
        let (led, begun) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let (known, id, leads) = (Arc::clone(&record), system_id.to_owned(), Arc::clone(&led));
        let server = HttpServer::start(move |request| {
            let map = |name: &str, annotations: Value, data: Value| {
                let metadata = json!({"name": name, "resourceVersion": "1", "uid": name, "annotations": annotations});
                (200, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string())
            };
            let mut known = known.lock().unwrap();
            let of_record = |record: &Value| map("demo-dr", json!({}), json!({"state.json": record.to_string()}));
            let at = request.path.split('?').next().unwrap();
            Some(match (request.method.as_str(), at.rsplit('/').next().unwrap()) {
                ("POST", "events") => (201, request.json().to_string()),
                ("GET", "demo-config") => {
                    let history = format!(r#"[[1,{switch},"no recovery target specified"]]"#);
                    map("demo-config", json!({"config": "{}", "initialize": id, "history": history}), json!({}))
                }
                ("GET", "demo-leader") if leads.load(Ordering::Relaxed) => {
                    let stamp = begun.elapsed().as_secs().to_string();
                    map("demo-leader", json!({"leader": "gold-1", "renewTime": stamp}), json!({}))
                }
                ("GET", "demo-dr") => known.as_ref().map_or_else(|| status(404), of_record),
                ("PATCH" | "POST", "demo-dr" | "configmaps") if writable => {
                    let text = request.json()["data"]["state.json"].as_str().unwrap().to_owned();
                    let record: Value = serde_json::from_str(&text).unwrap();
                    *known = Some(record.clone());
                    of_record(&record)
                }
                ("PATCH" | "POST", _) => status(403),
                _ => status(404),
            })
        });
        let (kubeconfig, dir) = (kubeconfig(&server.url("")), tempfile::tempdir().unwrap());
        fs::write(dir.path().join("template.json"), r#"{"bootstrap": {"dcs": {"ttl": 30}}}"#).unwrap();
        Self { record, led, server, kubeconfig, dir }
    }

    fn follow(&self, peer: [String; 2]) -> Command {
        let mut command = lifeboat(&["follow", "--scope=demo", "--site=gold", "--role=active", "--fence"]);
        command.args(peer).arg("--template").arg(self.dir.path().join("template.json"));
        command.arg("--bootstrap-file").arg(self.dir.path().join("patroni.json"));
        command.env("KUBECONFIG", self.kubeconfig.path()).env("PGUSER", "fence").env("PGPASSWORD", PASSWORD);
        command
    }

    /// Whether Patroni may start.
    fn starts(&self) -> bool {
        self.dir.path().join("patroni.json").exists()
    }

    fn phase(&self) -> Option<String> {
        let record = self.record.lock().unwrap();
        record.as_ref().map(|record| record["phase"].as_str().unwrap().to_owned())
    }
}

/// A site that was promoted: its own database, one timeline above that of the old primary.
fn promoted() -> (Postgres, String) {
    let server = Postgres::start(&[]);
    let standby = server.standby(&[]).until_ready();
    server.sql(&format!("CREATE ROLE fence LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
    server.sql("SELECT pg_switch_wal()");
    crate::lifeboat::await_condition("the role is there", Duration::from_secs(20), || {
        let there = standby.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'fence'");
        if there == "1" { Ok(()) } else { Err(there) }
    });
    drop(server);
    standby.sql("SELECT pg_promote()");
    let id = standby.sql("SELECT system_identifier FROM pg_control_system()");
    (standby, id)
}

#[test]
fn peer_that_refuses_at_first_is_asked_until_it_says_that_it_leads() {
    let (peer, id) = promoted();
    peer.sql("ALTER ROLE fence NOLOGIN");
    let gold = Gold::start(&id, None, true);
    let mut running = Running::start(&mut gold.follow(peer.address()));
    running.await_log("asking again");
    peer.sql("ALTER ROLE fence LOGIN");
    let ended = running.ended();
    let outcome = ended.assert_code(3).outcome();
    assert_eq!(outcome["alerts"][0]["kind"], "OldPrimaryHeld", "{outcome}");
    assert_eq!((gold.phase().as_deref(), gold.starts()), (Some("held"), false));

    // The same, where the record may not be written: people are told all the same.
    let gold = Gold::start(&id, None, false);
    let outcome = Ended::of(&mut gold.follow(peer.address())).assert_code(3).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("second primary") && reason.contains("could not be recorded"), "{outcome}");
    assert_eq!(outcome["alerts"][0]["kind"], "OldPrimaryHeld", "{outcome}");
    assert!(!gold.starts());
}

#[test]
fn peer_that_lives_and_never_says_what_it_is_is_not_led_beside() {
    let (peer, id) = promoted();
    peer.sql("ALTER ROLE fence NOLOGIN");
    let gold = Gold::start(&id, None, true);
    let ended = Ended::of(&mut gold.follow(peer.address()));
    let outcome = ended.assert_code(1).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("the peer lives"), "{outcome}");
    assert_eq!(outcome["alerts"][0]["kind"], "FollowFailed", "{outcome}");
    assert!(ended.took > Duration::from_secs(20) && ended.took < Duration::from_secs(45), "{:?}", ended.took);
    assert_eq!((gold.phase(), gold.starts()), (None, false));

    // Beside a leader of its own site it would only follow: that one is no new primary.
    gold.led.store(true, Ordering::Relaxed);
    let ended = Ended::of(&mut gold.follow(peer.address()));
    ended.assert_code(0);
    assert!(gold.starts() && ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

fn is_not_led_beside(gold: &Gold, follow: &mut Command, said: &str) {
    let ended = Ended::of(follow);
    let outcome = ended.assert_code(1).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("the peer lives") && reason.contains("patroni.fence=false"), "{outcome}");
    assert!(reason.contains(said), "{said}: {outcome}");
    assert_eq!(outcome["alerts"][0]["kind"], "FollowFailed", "{outcome}");
    assert!(ended.took > Duration::from_secs(20) && ended.took < Duration::from_secs(45), "{:?}", ended.took);
    assert_eq!((gold.phase(), gold.starts()), (None, false));
}

#[test]
fn peer_whose_certificate_does_not_verify_lives_and_is_not_led_beside() {
    let settings = ["ssl=on", "ssl_cert_file=../server.crt", "ssl_key_file=../server.key"];
    let peer = Postgres::start_prepared(&settings, |home| {
        authority(home, "ca");
        authority(home, "other");
        certificate(home, "server");
    });
    peer.sql(&format!("CREATE ROLE fence LOGIN PASSWORD '{PASSWORD}'"));
    let gold = Gold::start(&peer.sql("SELECT system_identifier FROM pg_control_system()"), None, true);
    let follow = |authority: &str| {
        let mut command = gold.follow(peer.address());
        command.arg("--sslmode=verify-full").arg("--sslrootcert").arg(peer.home.join(authority));
        command
    };
    is_not_led_beside(&gold, &mut follow("other.crt"), "TLS handshake");
    // No authority to verify it with: that is no answer either.
    let outcome = Ended::of(&mut follow("none.crt")).assert_code(1).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("our own TLS options"), "{outcome}");
    assert_eq!((gold.phase(), gold.starts()), (None, false));
    // Mended, it says that it is on a lower timeline.
    Ended::of(&mut follow("ca.crt")).assert_code(0);
    assert!(gold.starts());
}

#[test]
fn peer_that_answers_with_an_error_of_its_own_or_too_slowly_lives_and_is_not_led_beside() {
    let says = |code: &'static str| {
        Peer::start(move |mut stream| {
            begin(&mut stream)?;
            std::io::Write::write_all(&mut stream, &error_response(code, "the test says no")).ok()?;
            None
        })
    };
    // Out of memory, ended by an administrator, a disk that fails, an inner error; and one that opens no session in time.
    let mut peers: Vec<(Peer, &str)> = ["53200", "57P01", "58030", "XX000"].map(|code| (says(code), code)).into();
    let slow = Peer::start(|mut stream| {
        begin(&mut stream)?;
        Some(stream)
    });
    peers.push((slow, "opened no session"));
    std::thread::scope(|scope| {
        for (peer, said) in &peers {
            scope.spawn(move || {
                let gold = Gold::start("7000000000000000001", None, true);
                let address = [format!("--host={}", peer.address.ip()), format!("--port={}", peer.address.port())];
                is_not_led_beside(&gold, &mut gold.follow(address), said);
            });
        }
    });
}

#[test]
fn peer_that_is_silent_is_no_obstacle_and_who_was_held_is_let_go_to_where_it_stood() {
    let (closed, id) = (ClosedPort::new(), "7000000000000000001");
    let nobody = [format!("--host={}", closed.address.ip()), format!("--port={}", closed.address.port())];
    let gold = Gold::start(id, None, true);
    let ended = Ended::of(&mut gold.follow(nobody.clone()));
    ended.assert_code(0);
    assert!(gold.starts() && ended.took < Duration::from_secs(15), "{:?}", ended.took);

    let record = json!({
        "version": 1, "site": "gold", "epoch": 0, "phase": "held", "failures": 0, "first_failure": null, "last_failure": null,
        "last_good": null, "promotion": null, "audit": [], "last_alert": null, "before_hold": "suspect",
    });
    let gold = Gold::start(id, Some(record), true);
    Ended::of(&mut gold.follow(nobody)).assert_code(3);
    assert_eq!((gold.phase().as_deref(), gold.starts()), (Some("held"), false));
    let other = Postgres::start(&[]);
    other.sql(&format!("CREATE ROLE fence LOGIN PASSWORD '{PASSWORD}'"));
    Ended::of(&mut gold.follow(other.address())).assert_code(0);
    assert_eq!((gold.phase().as_deref(), gold.starts()), (Some("suspect"), true));
    assert!(gold.server.asked().iter().any(|request| request.method == "PATCH"));
}

/// A copy of a server that becomes a primary of its own.
fn branch(server: &Postgres) -> Postgres {
    let copy = server.standby(&[]).until_ready();
    copy.sql("SELECT pg_promote()");
    copy
}

/// The second failover: a promoted site starts again, and finds a primary on a higher timeline. Whether it is the standby that followed it and
/// was promoted since, or the old primary that switched by itself, only its history tells.
#[test]
fn promoted_site_gives_way_to_what_it_became_and_to_no_other_branch() {
    let first = Postgres::start(&[]);
    first.sql(&format!("CREATE ROLE fence LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
    let ours = branch(&first);
    let id = ours.sql("SELECT system_identifier FROM pg_control_system()");
    let switch = "SELECT split_part(pg_read_file('pg_wal/00000002.history'), E'\t', 2)::pg_lsn - '0/0'::pg_lsn";
    let switch: u64 = ours.sql(switch).parse().unwrap();
    let record = json!({
        "version": 1, "site": "gold", "epoch": 1, "phase": "promoted", "failures": 0, "first_failure": null, "last_failure": null,
        "last_good": null, "promotion": null, "audit": [], "last_alert": null,
    });
    let gold = || Gold::after(switch, &id, Some(record.clone()), true);

    let heir = branch(&ours);
    let fenced = gold();
    let outcome = Ended::of(&mut fenced.follow(heir.address())).assert_code(3).outcome();
    assert_eq!(outcome["alerts"][0]["kind"], "OldPrimaryHeld", "{outcome}");
    assert_eq!((fenced.phase().as_deref(), fenced.starts()), (Some("held"), false));
    assert_eq!(fenced.record.lock().unwrap().as_ref().unwrap()["before_hold"], "promoted");
    Ended::of(&mut fenced.follow(heir.address())).assert_code(3);

    // Who may not ask for the history is not believed to be another branch.
    heir.sql("ALTER ROLE fence NOREPLICATION");
    let unsure = gold();
    let outcome = Ended::of(&mut unsure.follow(heir.address())).assert_code(1).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("its history could not be learned"), "{outcome}");
    assert_eq!((unsure.phase().as_deref(), unsure.starts()), (Some("promoted"), false));
    drop((heir, ours));

    first.sql("SELECT pg_switch_wal()");
    let rogue = branch(&branch(&first));
    let free = gold();
    Ended::of(&mut free.follow(rogue.address())).assert_code(0);
    assert_eq!((free.phase().as_deref(), free.starts()), (Some("promoted"), true));
}
