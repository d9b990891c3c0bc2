//! `pg-probe` and the identity of real servers, asked by roles that may see less than a superuser; and the ways in which a real
//! server says no.

use serde_json::Value;

use crate::{
    lifeboat::{Probe, await_condition, last_error},
    postgres::{PASSWORD, Postgres},
};

fn probe_as(server: &Postgres, role: &str) -> Value {
    let probe = Probe::new();
    probe.verdict(probe.command(&["--user", role]).args(server.address()).env("PGPASSWORD", PASSWORD))
}

fn timeline(facts: &Value) -> u64 {
    facts["timeline"].as_u64().unwrap_or_else(|| panic!("no timeline: {facts}"))
}

#[test]
fn identity_is_the_same_for_a_superuser_a_monitor_and_a_plain_role_on_both_sides_of_a_switch() {
    let primary = Postgres::start(&[]);
    primary.sql(&format!(
        "CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'; \
         CREATE ROLE monitor LOGIN PASSWORD '{PASSWORD}'; GRANT pg_monitor TO monitor"
    ));
    let promoted = primary.standby(&[]).until_ready();
    let follower = promoted.standby(&[]).until_ready();
    promoted.sql("SELECT pg_promote()");
    promoted.sql("CREATE TABLE after_the_switch (id int)");
    let written = promoted.sql("SELECT pg_current_wal_lsn()");
    await_condition("the follower has it all", std::time::Duration::from_secs(20), || {
        let there = follower.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'"));
        if there == "t" { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let system_id = primary.sql("SELECT system_identifier FROM pg_control_system()");
    for (server, recovers, switched) in [(&primary, false, 1), (&promoted, false, 2), (&follower, true, 2)] {
        for role in ["postgres", "monitor", "plain"] {
            let facts = probe_as(server, role);
            assert_eq!((&facts["verdict"], &facts["in_recovery"]), (&"healthy".into(), &recovers.into()), "{facts}");
            assert_eq!(facts["system_id"], system_id, "{role}");
            // Who may not see the receiver learns of the switch from the restart point or the minimum recovery point.
            assert!(timeline(&facts) == switched || (recovers && role == "plain"), "{role}: {facts}");
            let lsn = facts["lsn"].as_str().unwrap();
            let position = if recovers { "pg_last_wal_receive_lsn()" } else { "pg_current_wal_lsn()" };
            assert_eq!(server.sql(&format!("SELECT '{lsn}'::pg_lsn <= {position}")), "t", "{role}: {facts}");
            let least = if recovers { format!("SELECT '{lsn}'::pg_lsn >= '{written}'") } else { "SELECT true".into() };
            assert_eq!(server.sql(&least), "t", "{role}: {facts}");
        }
    }
}

#[test]
fn server_that_says_no_in_any_of_its_ways_is_rejected() {
    let server = Postgres::start(&[]);
    server.sql(&format!(
        "CREATE ROLE locked_out NOLOGIN PASSWORD '{PASSWORD}'; \
         CREATE ROLE limited LOGIN PASSWORD '{PASSWORD}' CONNECTION LIMIT 0; \
         CREATE ROLE expired LOGIN PASSWORD '{PASSWORD}' VALID UNTIL '2020-01-01'; \
         CREATE ROLE stranger LOGIN PASSWORD '{PASSWORD}'; \
         CREATE ROLE nowhere LOGIN PASSWORD '{PASSWORD}'"
    ));
    server.sql("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC");
    server.sql("GRANT CONNECT ON DATABASE postgres TO locked_out, limited, expired, nowhere");
    let hba = server.home.join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("host all nowhere all reject\n{rules}")).unwrap();
    server.sql("SELECT pg_reload_conf()");
    await_condition("the rules are in force", std::time::Duration::from_secs(10), || {
        match server.sql_as("nowhere", PASSWORD, "postgres", "SELECT 1") {
            Ok(_) => Err("nowhere gets in".to_owned()),
            Err(_) => Ok(()),
        }
    });
    for (role, code) in [
        ("locked_out", "28000"),
        ("limited", "53300"),
        ("expired", "28P01"),
        ("stranger", "42501"),
        ("nowhere", "28000"),
    ] {
        let facts = probe_as(&server, role);
        assert_eq!(facts["verdict"], "rejected", "{role}: {facts}");
        assert!(last_error(&facts).contains(code), "{role}: {facts}");
    }
}
