//! The flags of a command that works on one server.

use std::time::Duration;

use anyhow::{Context, anyhow};

use super::{Connected, Credentials, Server, TlsOptions, attempt};
use crate::{outcome::Misconfigured, probe::Verdict};

/// Time for opening a session.
pub const CONNECT: Duration = Duration::from_secs(10);

/// Which server to work on.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerOptions {
    /// Host of the server
    #[arg(long, env = "PGHOST")]
    pub host: String,

    /// Port of the server
    #[arg(long, env = "PGPORT", default_value_t = 5432, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,

    #[command(flatten)]
    credentials: Credentials,

    #[command(flatten)]
    tls: TlsOptions,
}

impl ServerOptions {
    /// The server, with this database, or the one that the flags name.
    pub fn server(&self, database: Option<&str>) -> anyhow::Result<Server> {
        let mut credentials = self.credentials.clone();
        if let Some(database) = database {
            database.clone_into(&mut credentials.dbname);
        }
        let password = credentials.password(&self.host, self.port).context(Misconfigured)?;
        Ok(Server { host: self.host.clone(), port: self.port, credentials, password, tls: self.tls.clone() })
    }
}

/// The limits of a session that are meant for applications; which of them there are depends on the version.
const UNLIMITED: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN \
    ('lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout')";

/// Opens a session that may take and wait as long as it needs, whatever limits server and role have. An error names database, host and port.
pub async fn open(server: &Server) -> anyhow::Result<Connected> {
    let database = &server.credentials.dbname;
    let session = attempt(server, CONNECT).await.map_err(|failed| {
        let error = anyhow!("connect to database {database} on {}:{}: {}", server.host, server.port, failed.error);
        if failed.verdict == Verdict::Misconfigured { error.context(Misconfigured) } else { error }
    })?;
    let lift = async {
        session.client.simple_query("SET statement_timeout = 0").await?;
        session.client.simple_query(UNLIMITED).await
    };
    lift.await.with_context(|| format!("lift the limits of the session on database {database}"))?;
    Ok(session)
}
