//! `pg-probe` and TLS: libpq's modes against a server whose certificate an authority of the test's own has signed.

use std::fs;

use serde_json::Value;

use crate::{
    certificates::{authority, certificate},
    lifeboat::{Ended, Probe, last_error},
    postgres::{PASSWORD, Postgres},
};

/// A server with a certificate for localhost and 127.0.0.1; it listens on 127.0.0.2 too, which the certificate doesn't name.
struct TlsServer {
    server: Postgres,
}

impl TlsServer {
    fn start() -> Self {
        let settings = ["ssl=on", "ssl_cert_file=../server.crt", "ssl_key_file=../server.key"];
        let settings = [&settings[..], &["listen_addresses=127.0.0.1,127.0.0.2"]].concat();
        let server = Postgres::start_prepared(&settings, |home| {
            authority(home, "ca");
            authority(home, "other");
            certificate(home, "server");
            fs::write(
                home.join("data/pg_hba.conf"),
                "local all all trust\nhostssl all all 127.0.0.0/8 scram-sha-256\n",
            )
            .unwrap();
        });
        Self { server }
    }

    fn probe(&self, host: &str, mode: &str, authority: Option<&str>) -> Value {
        let (probe, port) = (Probe::new(), self.server.port.to_string());
        let mut command = probe.command(&["--host", host, "--port", &port, "--sslmode", mode]);
        if let Some(name) = authority {
            command.arg("--sslrootcert").arg(self.server.home.join(format!("{name}.crt")));
        }
        probe.verdict(command.env("PGPASSWORD", PASSWORD))
    }
}

#[test]
fn tls_modes_against_a_signed_certificate_have_libpqs_meaning() {
    let server = TlsServer::start();
    for (host, mode, authority, verdict) in [
        ("127.0.0.1", "prefer", None, "healthy"),
        ("127.0.0.1", "require", None, "healthy"),
        ("127.0.0.2", "require", None, "healthy"),
        ("127.0.0.1", "verify-full", Some("ca"), "healthy"),
        ("localhost", "verify-full", Some("ca"), "healthy"),
        ("127.0.0.2", "verify-full", Some("ca"), "misconfigured"),
        ("127.0.0.1", "verify-full", Some("other"), "misconfigured"),
        ("127.0.0.1", "verify-ca", Some("ca"), "healthy"),
        ("127.0.0.2", "verify-ca", Some("ca"), "healthy"),
        ("127.0.0.1", "verify-ca", Some("other"), "misconfigured"),
        // The server is alive: it refuses who comes without TLS (28000).
        ("127.0.0.1", "disable", None, "rejected"),
    ] {
        let facts = server.probe(host, mode, authority);
        assert_eq!(facts["verdict"], verdict, "{mode} to {host} with {authority:?}: {facts}");
    }
}

#[test]
fn tls_required_of_a_server_without_it_is_misconfigured() {
    let server = Postgres::shared();
    let probe = Probe::new();
    let facts = probe.verdict(probe.command(&["--sslmode=require"]).args(server.address()).env("PGPASSWORD", PASSWORD));
    assert_eq!(facts["verdict"], "misconfigured", "{facts}");
    assert!(last_error(&facts).contains("TLS"), "{facts}");
}

#[test]
fn tls_authority_absent_or_unreadable_is_misconfigured() {
    let garbage = tempfile::NamedTempFile::new().unwrap();
    fs::write(garbage.path(), "no certificate").unwrap();
    let garbage = garbage.path().to_str().unwrap();
    for more in [
        &["--sslmode=verify-full"][..],
        &["--sslmode=verify-full", "--sslrootcert=/nonexistent/ca.crt"],
        &["--sslmode=verify-ca", "--sslrootcert", garbage],
    ] {
        let probe = Probe::new();
        let facts = probe.verdict(probe.command(more).args(["--host=127.0.0.1", "--port=1"]));
        assert_eq!(facts["verdict"], "misconfigured", "{more:?}: {facts}");
    }
}

#[test]
fn tls_mode_unknown_is_a_usage_error() {
    let probe = Probe::new();
    let ended = Ended::of(probe.command(&["--host=127.0.0.1", "--port=1", "--sslmode=allow"]).env("PGPASSWORD", "x"));
    ended.assert_code(2);
}
