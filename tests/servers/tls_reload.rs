//! `tls-reload` against a real PostgreSQL, with a stand-in for Patroni's REST API. The real one is in `tests/e2e/tls.rs`.

use std::{fs, process::Command, sync::Arc};

use crate::{
    certificates::{authority, certificate},
    http::HttpServer,
    lifeboat::{Ended, Running, lifeboat},
    postgres::{Postgres, own},
};

struct Renewal {
    server: Arc<Postgres>,
    patroni: HttpServer,
}

impl Renewal {
    /// A server with TLS; what stands for Patroni lets it reload, if `obeys`.
    fn start(obeys: bool) -> Self {
        let settings = ["ssl=on", "ssl_cert_file=../tls.crt", "ssl_key_file=../tls.key"];
        let server = Arc::new(Postgres::start_prepared(&settings, |home| {
            authority(home, "ca");
            certificate(home, "tls");
        }));
        let reloaded = Arc::clone(&server);
        let patroni = HttpServer::start(move |_| {
            if obeys {
                reloaded.sql("SELECT pg_reload_conf()");
            }
            Some((202, "reload scheduled".to_owned()))
        });
        Self { server, patroni }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = lifeboat(&["tls-reload", "--address=127.0.0.1", "--wait=5s"]);
        let patroni = self.patroni.url("");
        command
            .arg(format!("--postgresql-port={}", self.server.port))
            .arg(format!("--patroni-port={}", patroni.rsplit(':').next().unwrap()))
            .arg(format!("--postgresql-tls={}", self.server.home.display()))
            .args(more);
        command
    }

    fn renew(&self) {
        certificate(&self.server.home, "tls");
    }

    fn reloads(&self) -> Vec<String> {
        self.patroni.asked().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }
}

#[test]
fn certificate_renewed_is_served_after_one_reload_and_an_unchanged_one_asks_for_none() {
    let renewal = Renewal::start(true);
    let started = renewal.server.sql("SELECT pg_postmaster_start_time()");
    let calm = Ended::of(&mut renewal.command(&[]));
    assert_eq!(calm.assert_code(0).outcome()["outcome"], "nothing-to-do", "{}", calm.stdout);
    renewal.renew();
    let plan = Ended::of(&mut renewal.command(&["--dry-run"]));
    assert!(plan.assert_code(0).stdout.contains("would have Patroni reload"), "{}", plan.stdout);
    assert_eq!(renewal.reloads(), [""; 0]);

    let ended = Ended::of(&mut renewal.command(&[]));
    assert_eq!(ended.assert_code(0).outcome()["outcome"], "done", "{}", ended.stdout);
    assert_eq!(renewal.reloads(), ["POST /reload"]);
    let again = Ended::of(&mut renewal.command(&[]));
    assert_eq!(again.assert_code(0).outcome()["outcome"], "nothing-to-do", "{}", again.stdout);
    assert_eq!(renewal.server.sql("SELECT pg_postmaster_start_time()"), started);
    assert!(!renewal.server.log().contains("could not receive"), "{}", renewal.server.log());
}

#[test]
fn key_of_another_certificate_is_never_reloaded() {
    let renewal = Renewal::start(true);
    let home = &renewal.server.home;
    certificate(home, "other");
    fs::copy(home.join("other.key"), home.join("tls.key")).unwrap();
    own(&home.join("tls.key"));
    let ended = Ended::of(&mut renewal.command(&[]));
    let outcome = ended.assert_code(2).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("tls.key does not belong to tls.crt"), "{outcome}");
    assert_eq!(renewal.reloads(), [""; 0]);
}

#[test]
fn certificate_that_is_not_served_in_time_is_unverified() {
    let renewal = Renewal::start(false);
    renewal.renew();
    let ended = Ended::of(&mut renewal.command(&["--wait=1s"]));
    let outcome = ended.assert_code(4).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("did not take the new certificate"), "{outcome}");
}

#[test]
fn server_that_is_down_or_without_tls_is_told() {
    let renewal = Renewal::start(true);
    let down = Ended::of(&mut renewal.command(&["--postgresql-port=1"]));
    assert!(down.assert_code(4).stdout.contains("PostgreSQL does not answer"), "{}", down.stdout);
    let plain = Postgres::shared();
    let ended = Ended::of(&mut renewal.command(&["--postgresql-port", &plain.port.to_string()]));
    assert!(ended.assert_code(2).stdout.contains("does not serve TLS"), "{}", ended.stdout);
}

#[test]
fn watch_takes_a_renewed_certificate_by_itself_and_ends_when_asked() {
    let renewal = Renewal::start(true);
    let mut running = Running::start(renewal.command(&["--every=100ms"]).env("RUST_BACKTRACE", "0"));
    running.await_log("alerts make no Events");
    renewal.renew();
    crate::lifeboat::await_condition("a reload", std::time::Duration::from_secs(10), || {
        if renewal.reloads().is_empty() { Err("none".to_owned()) } else { Ok(()) }
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    let ended = running.terminate();
    assert_eq!(renewal.reloads(), ["POST /reload"], "{}", ended.stderr);
    let said: Vec<&str> = ended.stdout.lines().collect();
    assert!(said.iter().any(|line| line.contains("took the new certificate")), "{said:?}");
    ended.assert_code(1);
}
