//! `post-bootstrap` in the circumstances that Patroni makes.

use crate::{
    lifeboat::{Ended, lifeboat},
    postgres::{PASSWORD, Postgres},
};

fn bootstrap(server: &Postgres, password: &str, options: &str) -> Ended {
    let connection = format!("dbname=postgres user=postgres host=127.0.0.1 port={}", server.port);
    let mut command = lifeboat(&["post-bootstrap", &connection, "--app-username=app", "--app-database=shop"]);
    command.env("PGPASSWORD", "not-asked-for").env("LIFEBOAT_APP_PASSWORD", password).env("PGOPTIONS", options);
    let passfile = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(passfile.path(), format!("localhost:{}:*:*:{PASSWORD}\n", server.port)).unwrap();
    Ended::of(command.env("PGPASSFILE", passfile.path()))
}

#[test]
fn cluster_that_waits_for_a_synchronous_standby_or_is_read_only_by_default_is_bootstrapped() {
    // Strict synchronous mode: no standby is there yet, and whoever commits waits for one. Patroni says by PGOPTIONS not to wait.
    let server = Postgres::start(&["synchronous_standby_names=*", "default_transaction_read_only=on"]);
    let ended = bootstrap(&server, "s3cret", "-c synchronous_commit=local -c default_transaction_read_only=off");
    ended.assert_code(0);
    assert_eq!(server.sql_as("app", "s3cret", "shop", "SELECT current_user"), Ok("app".to_owned()));
}

#[test]
fn password_beyond_ascii_works_for_login() {
    let server = Postgres::start(&[]);
    // Composed, decomposed, a no-break space and a soft hyphen: SASLprep changes some of them, on both sides alike (RFC 4013).
    for password in
        ["Grüße-表-🔑", "Gru\u{308}ße", "a\u{a0}b", "so\u{ad}ft", "ª①", " lead and trail ", &"x".repeat(900)]
    {
        bootstrap(&server, password, "").assert_code(0).outcome();
        assert_eq!(server.sql_as("app", password, "shop", "SELECT current_user"), Ok("app".to_owned()), "{password:?}");
    }
}
