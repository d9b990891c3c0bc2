//! `pg-probe` and a real server that is being stopped.

use std::{fs, time::Duration};

use crate::{
    lifeboat::{Probe, await_condition, last_error},
    postgres::{PASSWORD, Postgres},
};

#[test]
fn server_being_stopped_is_starting_while_a_session_holds_it() {
    let server = Postgres::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = format!("host=127.0.0.1 port={} user=postgres password={PASSWORD}", server.port);
    let (_client, connection) =
        runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls)).expect("open the session that holds it");
    runtime.spawn(connection);
    // SIGTERM is the smart shutdown: it waits for the session.
    let pid = fs::read_to_string(server.home.join("data/postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let facts = await_condition("the server is stopping", Duration::from_secs(10), || {
        let probe = Probe::new();
        let facts = probe.verdict(probe.command(&[]).args(server.address()).env("PGPASSWORD", PASSWORD));
        if facts["verdict"] == "healthy" { Err(facts.to_string()) } else { Ok(facts) }
    });
    assert_eq!(facts["verdict"], "starting", "{facts}");
    assert!(last_error(&facts).contains("57P03"), "{facts}");
}
