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

/// Opens a session. An error names database, host and port.
pub async fn open(server: &Server) -> anyhow::Result<Connected> {
    attempt(server, CONNECT).await.map_err(|failed| {
        let database = &server.credentials.dbname;
        let error = anyhow!("connect to database {database} on {}:{}: {}", server.host, server.port, failed.error);
        if failed.verdict == Verdict::Misconfigured { error.context(Misconfigured) } else { error }
    })
}
