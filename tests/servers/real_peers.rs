//! `pg-probe` against living PostgreSQL servers.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    lifeboat::{Ended, Probe, await_condition, files, last_error},
    postgres::{PASSWORD, Postgres},
};

fn probe(server: &Postgres, password: &str, more: &[&str]) -> Value {
    let probe = Probe::new();
    probe.verdict(probe.command(more).args(server.address()).env("PGPASSWORD", password))
}

fn number(text: &str) -> Value {
    text.parse::<u64>().unwrap().into()
}

#[test]
fn primary_healthy_tells_the_identity_that_sql_tells() {
    let server = Postgres::shared();
    let before = server.sql("SELECT pg_current_wal_lsn()");
    let facts = probe(&server, PASSWORD, &[]);
    assert_eq!(facts["verdict"], "healthy", "{facts}");
    assert_eq!(facts["system_id"], server.sql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!(facts["timeline"], number(&server.sql("SELECT timeline_id FROM pg_control_checkpoint()")));
    assert_eq!(facts["in_recovery"], false);
    assert_eq!((facts["host"].as_str(), &facts["port"]), (Some("127.0.0.1"), &server.port.into()));
    let lsn = facts["lsn"].as_str().unwrap();
    assert_eq!(server.sql(&format!("SELECT '{lsn}'::pg_lsn BETWEEN '{before}' AND pg_current_wal_lsn()")), "t");
    assert_eq!(facts["attempts"][0]["error"], Value::Null);
}

#[test]
fn primary_healthy_ends_the_attempts_at_the_first() {
    let facts = probe(&Postgres::shared(), PASSWORD, &["--attempts=5"]);
    assert_eq!(facts["attempts"].as_array().unwrap().len(), 1);
}

#[test]
fn standby_healthy_tells_recovery_and_after_promotion_the_new_timeline_at_once() {
    let primary = Postgres::start(&[]);
    let standby = primary.standby(&[]).until_ready();
    let facts = probe(&standby, PASSWORD, &[]);
    assert_eq!((&facts["verdict"], &facts["in_recovery"]), (&"healthy".into(), &true.into()), "{facts}");
    assert_eq!(facts["system_id"], primary.sql("SELECT system_identifier FROM pg_control_system()"));
    assert_eq!(facts["timeline"], 1);
    assert!(facts["lsn"].is_string(), "{facts}");

    // No checkpoint yet, so the control file still shows the old timeline.
    assert_eq!(standby.sql("SELECT pg_promote(wait => true, wait_seconds => 20)"), "t");
    let facts = probe(&standby, PASSWORD, &[]);
    assert_eq!((&facts["in_recovery"], &facts["timeline"]), (&false.into(), &2.into()), "{facts}");
    let facts = probe(&primary, PASSWORD, &[]);
    assert_eq!((&facts["in_recovery"], &facts["timeline"]), (&false.into(), &1.into()), "{facts}");
}

#[test]
fn standby_without_hot_standby_is_starting() {
    let primary = Postgres::start(&[]);
    let standby = primary.standby(&["hot_standby=off"]);
    await_condition("the standby listens", Duration::from_secs(20), || {
        std::net::TcpStream::connect(("127.0.0.1", standby.port)).map_err(|error| error.to_string())
    });
    let facts = probe(&standby, PASSWORD, &[]);
    assert_eq!(facts["verdict"], "starting", "{facts}");
    assert!(last_error(&facts).contains("57P03"), "{facts}");
}

#[test]
fn password_wrong_or_absent_is_rejected() {
    let server = Postgres::shared();
    for (password, said) in [("wrong-one", "28P01"), ("", "password")] {
        let facts = probe(&server, password, &["--attempts=3"]);
        assert_eq!(facts["verdict"], "rejected", "{facts}");
        assert!(last_error(&facts).contains(said), "{facts}");
        assert_eq!(facts["attempts"].as_array().unwrap().len(), 1, "a living server ends the attempts");
        assert_eq!(facts["system_id"], Value::Null);
    }
}

#[test]
fn database_or_role_unknown_is_rejected() {
    let server = Postgres::shared();
    let facts = probe(&server, PASSWORD, &["--dbname=nowhere"]);
    assert_eq!(facts["verdict"], "rejected", "{facts}");
    assert!(last_error(&facts).contains("3D000"), "{facts}");
    assert_eq!(probe(&server, PASSWORD, &["--user=nobody-here"])["verdict"], "rejected");
}

#[test]
fn connections_exhausted_is_rejected() {
    let server = Postgres::start(&["max_connections=4", "superuser_reserved_connections=1", "max_wal_senders=0"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = format!("host=127.0.0.1 port={} user=postgres password={PASSWORD}", server.port);
    let mut held = Vec::new();
    let full = runtime.block_on(async {
        loop {
            match tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
                Ok((client, connection)) => held.push((client, tokio::spawn(connection))),
                Err(error) => return error,
            }
            assert!(held.len() < 10, "the server takes more sessions than it should");
        }
    });
    assert_eq!(full.code().map(tokio_postgres::error::SqlState::code), Some("53300"), "{full}");
    let facts = probe(&server, PASSWORD, &[]);
    assert_eq!(facts["verdict"], "rejected", "{facts}");
    assert!(last_error(&facts).contains("53300"), "{facts}");
}

#[test]
fn server_stopped_is_unreachable() {
    let server = Postgres::start(&[]);
    let (probe, address) = (Probe::new(), server.address());
    assert_eq!(probe.verdict(probe.command(&[]).args(&address).env("PGPASSWORD", PASSWORD))["verdict"], "healthy");
    drop(server);
    let facts = probe.verdict(probe.command(&["--attempts=2"]).args(&address).env("PGPASSWORD", PASSWORD));
    assert_eq!(facts["verdict"], "unreachable", "{facts}");
    assert_eq!(facts["system_id"], Value::Null, "nothing of the earlier run is left");
}

#[test]
fn password_by_each_way_works_and_is_shown_nowhere() {
    let server = Postgres::shared();
    let secrets = tempfile::tempdir().unwrap();
    let passfile = secrets.path().join("pgpass");
    fs::write(&passfile, format!("*:*:*:other:no\n127.0.0.1:{}:*:postgres:{PASSWORD}\n", server.port)).unwrap();
    let file = secrets.path().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let ways = [
        ("PGPASSWORD", PASSWORD.as_ref()),
        ("PGPASSFILE", passfile.as_os_str()),
        ("LIFEBOAT_PASSWORD_FILE", file.as_os_str()),
    ];
    for (variable, value) in ways {
        for more in [&["--log-level=trace"][..], &["--log-level=trace", "--dbname=nowhere"]] {
            let probe = Probe::new();
            let ended = Ended::of(probe.command(more).args(server.address()).env(variable, value));
            ended.assert_code(0).assert_hides(PASSWORD);
            let wanted = if more.len() == 1 { "healthy" } else { "rejected" };
            assert_eq!(ended.outcome()["verdict"], wanted, "{variable}: {}", ended.stdout);
            assert_eq!(files(probe.dir.path()), ["health", "probe.json"]);
            for name in files(probe.dir.path()) {
                let text = fs::read_to_string(probe.dir.path().join(&name)).unwrap();
                assert!(!text.contains(PASSWORD), "{variable}: {name}: {text}");
            }
        }
    }
}

#[test]
fn require_healthy_is_met_by_a_healthy_server_only() {
    let server = Postgres::shared();
    let run = |password| {
        let probe = Probe::new();
        Ended::of(probe.command(&["--require=healthy"]).args(server.address()).env("PGPASSWORD", password))
    };
    run(PASSWORD).assert_code(0);
    let ended = run("wrong-one");
    assert_eq!(ended.assert_code(4).outcome()["outcome"], "unverified");
}
