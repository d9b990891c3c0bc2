//! `post-bootstrap` against a real server, as Patroni calls it.

use std::fs;

use crate::{
    lifeboat::{Ended, lifeboat},
    postgres::{PASSWORD, Postgres},
};

const APP_PASSWORD: &str = r#"p'a"ss\w0rd $$ %s \' ; --"#;

struct App<'a> {
    role: &'a str,
    password: &'a str,
    database: &'a str,
    monitor: &'a str,
}

fn bootstrap(server: &Postgres, app: &App) -> Ended {
    let passfile = tempfile::NamedTempFile::new().unwrap();
    // Patroni writes the host name localhost, whatever the connection string says.
    fs::write(passfile.path(), format!("localhost:{}:*:postgres:{PASSWORD}\n", server.port)).unwrap();
    let connection = format!("dbname=postgres user=postgres host=127.0.0.1 port={}", server.port);
    let mut command = lifeboat(&["post-bootstrap", &connection, "--log-level=trace"]);
    command
        .env("PGPASSFILE", passfile.path())
        .env("LIFEBOAT_APP_USERNAME", app.role)
        .env("LIFEBOAT_APP_PASSWORD", app.password)
        .env("LIFEBOAT_APP_DATABASE", app.database)
        .env("LIFEBOAT_REPLICATION_USERNAME", app.monitor);
    let ended = Ended::of(&mut command);
    ended.assert_hides(PASSWORD);
    ended.assert_hides(app.password);
    ended
}

fn owner(server: &Postgres, database: &str) -> String {
    let database = database.replace('\'', "''");
    server.sql(&format!("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{database}'"))
}

#[test]
fn role_database_and_monitor_are_created_and_again_without_harm() {
    let server = Postgres::start(&["log_statement=all", "log_connections=on"]);
    let mut app = App { role: "app", password: APP_PASSWORD, database: "shop", monitor: "replicator" };
    assert_eq!(bootstrap(&server, &app).assert_code(0).outcome()["outcome"], "done");
    assert_eq!(server.sql_as("app", APP_PASSWORD, "shop", "SELECT current_user"), Ok("app".to_owned()));
    assert!(server.sql_as("app", APP_PASSWORD, "shop", "CREATE TABLE public.orders (id int)").is_ok());
    assert_eq!(owner(&server, "shop"), "app");
    assert_eq!(server.sql("SELECT pg_has_role('replicator', 'pg_monitor', 'usage')"), "t");
    assert_eq!(server.sql("SELECT rolreplication, rolcanlogin FROM pg_roles WHERE rolname = 'replicator'"), "t|t");
    assert_eq!(server.sql("SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = 'app'"), "f");
    let stored = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'");
    assert!(stored.starts_with("SCRAM-SHA-256$"), "{stored}");

    // Patroni may run it again: nothing is lost, and a changed password holds.
    app.password = "second-0ne";
    bootstrap(&server, &app).assert_code(0);
    assert_eq!(server.sql_as("app", "second-0ne", "shop", "SELECT count(*) FROM orders"), Ok("0".to_owned()));
    assert!(server.sql_as("app", APP_PASSWORD, "shop", "SELECT 1").is_err());

    let log = server.log();
    assert!(log.contains("statement: "), "the server logs statements: {log}");
    for password in [APP_PASSWORD, "p''a", r"p\'a", "w0rd", "second-0ne", PASSWORD] {
        assert!(!log.contains(password), "{password} is in the server's log:\n{log}");
    }
}

#[test]
fn names_hostile_are_taken_literally() {
    let server = Postgres::start(&[]);
    let evil = [r#"we"ird"#, r"it's \ here", r#""; DROP ROLE app; --"#, "Größe 表", "$$ %I :x"];
    for name in evil {
        let database = format!("{name} db");
        let monitor = format!("{name} m");
        let app = App { role: name, password: APP_PASSWORD, database: &database, monitor: &monitor };
        for _ in 0..2 {
            bootstrap(&server, &app).assert_code(0);
        }
        assert_eq!(server.sql_as(name, APP_PASSWORD, &database, "SELECT current_user"), Ok(name.to_owned()));
        assert_eq!(owner(&server, &database), name);
        let monitor = monitor.replace('\'', "''");
        assert_eq!(server.sql(&format!("SELECT pg_has_role('{monitor}', 'pg_monitor', 'usage')")), "t");
    }
    let roles = server.sql("SELECT count(*) FROM pg_roles WHERE rolname !~ '^pg_'");
    assert_eq!(roles, (1 + 2 * evil.len()).to_string(), "no role besides");
}

#[test]
fn password_is_not_in_the_log_of_a_server_that_logs_durations() {
    let server = Postgres::start(&["log_min_duration_statement=0"]);
    let app = App { role: "app", password: "n0t-in-the-log", database: "shop", monitor: "replicator" };
    bootstrap(&server, &app).assert_code(0);
    let log = server.log();
    assert!(!log.contains("n0t-in-the-log"), "{log}");
}

#[test]
fn password_absent_is_a_configuration_error_and_creates_nothing() {
    let server = Postgres::shared();
    let app = App { role: "no-password", password: "", database: "none", monitor: "none" };
    let connection = format!("dbname=postgres user=postgres host=127.0.0.1 port={}", server.port);
    let mut command = lifeboat(&["post-bootstrap", &connection, "--app-username", app.role]);
    let ended = Ended::of(command.env("PGPASSWORD", PASSWORD).env("LIFEBOAT_APP_PASSWORD", app.password));
    let outcome = ended.assert_code(2).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("LIFEBOAT_APP_PASSWORD"), "{outcome}");
    assert_eq!(server.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'no-password'"), "0");
}

#[test]
fn connection_string_malformed_exits_2_and_a_server_that_is_not_there_1() {
    let closed = crate::peers::ClosedPort::new();
    let absent = format!("host=127.0.0.1 port={} user=postgres", closed.address.port());
    for (connection, code) in [("no connection string", 2), ("port=nine", 2), (absent.as_str(), 1)] {
        let mut command = lifeboat(&["post-bootstrap", connection, "--app-username=app", "--app-database=shop"]);
        Ended::of(command.env("LIFEBOAT_APP_PASSWORD", "x")).assert_code(code).outcome();
    }
}
