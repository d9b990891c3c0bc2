//! `post-bootstrap`: what Patroni runs once, on the new primary, after `initdb` (Patroni: `bootstrap.post_bootstrap`).
//!
//! Creates the application's role and database, and lets the replication role read the server's statistics, so that the probe
//! and `promote` need no superuser. Patroni takes any exit code but 0 as a failed bootstrap and starts over.

use std::time::Duration;

use anyhow::{Context, anyhow};
use postgres_protocol::password::scram_sha_256;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::Host;

use crate::{
    cli::{Session, misconfigured},
    outcome::Report,
    postgres::{identifier, literal, pgpass, simple_row},
    secret,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// Create the application's role and database in a new cluster (called by Patroni)
#[derive(Debug, clap::Args)]
pub struct PostBootstrap {
    /// Connection string of the new primary, as Patroni passes it
    connstr: String,

    /// Role to create for the application
    #[arg(long, env = "LIFEBOAT_APP_USERNAME", value_name = "ROLE")]
    app_username: Option<String>,

    /// Database to create for the application, owned by its role
    #[arg(long, env = "LIFEBOAT_APP_DATABASE", value_name = "NAME", requires = "app_username")]
    app_database: Option<String>,

    /// Role that may read the server's statistics from now on
    #[arg(long, env = "LIFEBOAT_REPLICATION_USERNAME", value_name = "ROLE")]
    monitor_username: Option<String>,
}

impl PostBootstrap {
    /// Creates what is missing.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let password = secret::read(None, "LIFEBOAT_APP_PASSWORD")?;
        if self.app_username.is_some() && password.is_none() {
            return misconfigured(Err(anyhow!("the application's role needs a password: set LIFEBOAT_APP_PASSWORD")));
        }
        if session.dry_run {
            return Ok(Report::nothing_to_do("would create the application's role and database"));
        }
        tokio::time::timeout(TIMEOUT, self.apply(password))
            .await
            .context("create the application's role and database in time")?
    }

    async fn apply(self, password: Option<SecretString>) -> anyhow::Result<Report> {
        // A local socket or loopback, right after initdb: no TLS.
        let mut config: tokio_postgres::Config =
            misconfigured(without_tls(&self.connstr).parse().context("parse the connection string"))?;
        let (user, dbname) =
            (config.get_user().unwrap_or_default().to_owned(), config.get_dbname().unwrap_or_default().to_owned());
        // Patroni writes the superuser's password into a file: under the host of the connection string, which may be a socket's folder
        // (so does 3.0 always), or under localhost.
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(folder)) => folder.display().to_string(),
            None => String::new(),
        };
        let password_of = |host: &str| pgpass::lookup(host, port, &dbname, &user);
        if let Some(own) = password_of(&host).or_else(|| password_of("localhost")) {
            config.password(own.expose_secret());
        }
        // Patroni says here not to wait for a synchronous standby, which can't be there yet, and to write in any case.
        if let Some(options) = std::env::var("PGOPTIONS").ok().filter(|options| !options.is_empty()) {
            config.options(&options);
        }
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.context("connect to the new primary")?;
        let driver = tokio::spawn(connection);
        if let Some((role, password)) = self.app_username.as_deref().zip(password) {
            let exists = format!("SELECT count(*) FROM pg_roles WHERE rolname = {}", literal(role));
            let verb = if one_number(&client, &exists).await? == "0" { "CREATE" } else { "ALTER" };
            // Only the SCRAM verifier is sent, as psql's \password does: whatever the server logs, it never sees the password.
            let verifier = scram_sha_256(password.expose_secret().as_bytes());
            let sql = format!("{verb} ROLE {} LOGIN PASSWORD {}", identifier(role), literal(&verifier));
            client.batch_execute(&sql).await.with_context(|| format!("create role {role}"))?;
        }
        if let Some((database, owner)) = self.app_database.as_deref().zip(self.app_username.as_deref()) {
            let exists = format!("SELECT count(*) FROM pg_database WHERE datname = {}", literal(database));
            if one_number(&client, &exists).await? == "0" {
                let sql = format!("CREATE DATABASE {} OWNER {}", identifier(database), identifier(owner));
                client.batch_execute(&sql).await.with_context(|| format!("create database {database}"))?;
            }
        }
        if let Some(role) = self.monitor_username.as_deref() {
            self.grant_monitor(&client, role).await?;
        }
        driver.abort();
        Ok(Report::done("the application's role and database are there"))
    }

    /// Patroni creates its replication role only after this command has ended (Patroni: `Bootstrap.post_bootstrap`), so it is made
    /// here without a password, which Patroni then sets.
    async fn grant_monitor(&self, client: &tokio_postgres::Client, role: &str) -> anyhow::Result<()> {
        let exists = format!("SELECT count(*) FROM pg_roles WHERE rolname = {}", literal(role));
        if one_number(client, &exists).await? == "0" {
            client.batch_execute(&format!("CREATE ROLE {} REPLICATION LOGIN", identifier(role))).await?;
        }
        let sql = format!("GRANT pg_monitor TO {}", identifier(role));
        client.batch_execute(&sql).await.with_context(|| format!("let role {role} read the statistics"))
    }
}

async fn one_number(client: &tokio_postgres::Client, sql: &str) -> anyhow::Result<String> {
    Ok(simple_row(client, sql).await?.get(0).unwrap_or_default().to_owned())
}

/// Patroni puts all that it knows of the superuser's connections into the string, its TLS too, which libpq leaves aside on a socket.
/// Values with a space in them have a backslash before it (Patroni: `format_dsn`).
fn without_tls(connstr: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let (mut escaped, mut dropped) = (false, false);
    for part in connstr.split(' ') {
        dropped = if escaped { dropped } else { part.starts_with("ssl") };
        escaped = part.ends_with('\\');
        if !dropped {
            kept.push(part);
        }
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_of_a_connection_string_is_left_aside() {
        let connstr =
            r"dbname=postgres user=ssl\ sslmode=not host=/tmp port=5432 sslmode=verify-full sslrootcert=/a\ b/ca.crt";
        assert_eq!(without_tls(connstr), r"dbname=postgres user=ssl\ sslmode=not host=/tmp port=5432");
        let config: tokio_postgres::Config = without_tls(connstr).parse().unwrap();
        assert_eq!(config.get_user(), Some("ssl sslmode=not"));
    }
}
