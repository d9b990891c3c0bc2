//! PostgreSQL's own programs, connected as our own client would be.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use secrecy::ExposeSecret;

use super::{Server, SslMode};

/// A program that answers, and its version.
#[derive(Debug, Clone)]
pub struct Tool {
    program: PathBuf,
    /// As it says it: `pg_dump (PostgreSQL) 17.6 (Debian …)`.
    pub version: String,
    /// The major version.
    pub major: u32,
}

impl Tool {
    /// Looks for a program, in `folder` where one is given, else on PATH, and asks for its version.
    pub fn find(name: &str, folder: Option<&Path>) -> anyhow::Result<Self> {
        let program = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
        let output =
            output.with_context(|| format!("start {}: is PostgreSQL's client installed?", program.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match version.split_once("(PostgreSQL) ").and_then(|(_, number)| major(number)) {
            Some(major) if output.status.success() => Ok(Self { program, version, major }),
            _ => bail!("{} --version says {version:?}", program.display()),
        }
    }

    /// A command that works on a server of this major version, on the database of its credentials. If we are killed, its session ends soon, and
    /// gives its locks back, though it may be in the middle of a long statement (PostgreSQL 14 and later).
    #[must_use]
    pub fn on(&self, server: &Server, major: u32, limit: Duration) -> Command {
        let mut command = connected(&self.program, server, limit);
        // Else a server that vanished is waited for for two hours, with the lock in our hands. One that only does not read for a while, as
        // its disk is slow, is waited for.
        let database = server.credentials.dbname.replace('\\', "\\\\").replace('\'', "\\'");
        command.arg(format!(
            "--dbname=dbname='{database}' keepalives_idle=30 keepalives_interval=10 keepalives_count=3 tcp_user_timeout=900000"
        ));
        if major >= 14 {
            let given = std::env::var("PGOPTIONS").unwrap_or_default();
            command.env("PGOPTIONS", format!("{given} -c client_connection_check_interval=2s"));
        }
        command
    }
}

/// `17.6 (Debian …)`, `18beta1` → 17, 18.
fn major(number: &str) -> Option<u32> {
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

/// A program of libpq's with the connection in its environment, which only our own user may read.
pub(super) fn connected(program: impl AsRef<OsStr>, server: &Server, limit: Duration) -> Command {
    let mode = match server.tls.sslmode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    let mut command = Command::new(program);
    command
        .env("PGHOST", &server.host)
        .env("PGPORT", server.port.to_string())
        .env("PGUSER", &server.credentials.user)
        .env("PGDATABASE", &server.credentials.dbname)
        .env("PGSSLMODE", mode)
        .env("PGAPPNAME", "lifeboat")
        .env("PGCONNECT_TIMEOUT", limit.as_secs().max(2).to_string())
        .stdin(Stdio::null());
    if let Some(password) = &server.password {
        command.env("PGPASSWORD", password.expose_secret());
    }
    if let Some(file) = &server.tls.sslrootcert {
        command.env("PGSSLROOTCERT", file);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_version_is_read_from_any_form() {
        for (number, wanted) in [("17.6 (Debian 17.6-1)", Some(17)), ("18beta1", Some(18)), ("", None), ("x", None)] {
            assert_eq!(major(number), wanted, "{number}");
        }
    }

    #[test]
    fn program_that_is_not_there_is_an_error_that_says_what_to_install() {
        let error = Tool::find("pg_dump", Some(Path::new("/nonexistent"))).unwrap_err();
        assert!(format!("{error:#}").contains("is PostgreSQL's client installed?"));
    }
}
