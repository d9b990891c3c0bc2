//! `pg-probe`: speaks the PostgreSQL protocol to the peer and classifies what it met.
//!
//! It exits 0 for every verdict that it could establish, `unreachable` and `misconfigured` too, so that the next step runs and
//! can report; it fails only where it could not do its own work.

mod api;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tracing::{info, warn};

use crate::{
    cli::{Session, misconfigured},
    flags,
    intercom::{self, Intercom},
    outcome::{Conclusion, Report},
    patroni::Scope,
    postgres::{self, Credentials, Server, TlsOptions},
    probe::{self, Attempt, PeerFacts, ProbeFacts, Verdict, conclude},
};

/// Probe the peer's PostgreSQL, classify what was met, and write the verdict for the next step
#[derive(Debug, clap::Args)]
pub struct PgProbe {
    /// Host to probe
    #[arg(long, env = "PGHOST", required_unless_present = "scope")]
    host: Option<String>,

    /// Port to probe
    #[arg(long, env = "PGPORT", value_parser = clap::value_parser!(u16).range(1..), required_unless_present_any = ["port_file", "scope"])]
    port: Option<u16>,

    /// File that holds the port, as port-discover writes it; it wins over --port
    #[arg(long, env = "LIFEBOAT_PORT_FILE", value_name = "FILE")]
    port_file: Option<PathBuf>,

    /// Ask the peer's own API server (--context) in place of its PostgreSQL: whether the leader of this scope of Patroni renews its lease.
    /// It wins over --host
    #[arg(long, env = "LIFEBOAT_PROBE_SCOPE", value_name = "NAME")]
    scope: Option<Scope>,

    /// With --scope: this runs outside both sites, so that an API server which can't be reached counts as unreachable. On the standby's own
    /// site it says nothing: the link may be cut
    #[arg(long, env = "LIFEBOAT_THIRD_PLACE", requires = "scope")]
    third_place: bool,

    #[command(flatten)]
    credentials: Credentials,

    #[command(flatten)]
    tls: TlsOptions,

    /// Attempts in one run; one answer of a living server ends them
    #[arg(long, env = "LIFEBOAT_ATTEMPTS", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,

    /// Pause between two attempts
    #[arg(long, env = "LIFEBOAT_INTERVAL", value_name = "DURATION", default_value = "2s", value_parser = flags::duration)]
    interval: Duration,

    /// Time limit of one attempt
    #[arg(long, env = "LIFEBOAT_TIMEOUT", value_name = "DURATION", default_value = "3s", value_parser = flags::positive_duration)]
    timeout: Duration,

    /// Folder shared with the next step: `health` and `probe.json` are written there
    #[arg(long, env = "LIFEBOAT_DIR", value_name = "DIR", default_value = "/intercom")]
    dir: PathBuf,

    /// Exit 4 unless the verdict is this one
    #[arg(long, env = "LIFEBOAT_REQUIRE", value_name = "VERDICT", value_enum)]
    require: Option<Verdict>,
}

impl PgProbe {
    /// Probes and writes what was met.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let intercom = Intercom::new(&self.dir);
        if !session.dry_run {
            intercom.clear_probe()?;
        }
        let facts = match &self.scope {
            Some(scope) => self.probe_api(session, scope).await?,
            None => self.probe_postgresql().await?,
        };
        if !session.dry_run {
            intercom.write_probe(&facts)?;
        }
        Ok(report(&facts, self.require, &self.dir))
    }

    async fn probe_postgresql(&self) -> anyhow::Result<ProbeFacts> {
        let host = self.host.clone().unwrap_or_default();
        let port = match &self.port_file {
            Some(file) => intercom::read_port(file),
            None => Ok(self.port.unwrap_or_default()),
        };
        Ok(match port {
            Ok(port) => {
                let password = misconfigured(self.credentials.password(&host, port))?;
                let (credentials, tls) = (self.credentials.clone(), self.tls.clone());
                let server = Server { host, port, credentials, password, tls };
                probe_server(&server, self.attempts, self.interval, self.timeout).await
            }
            Err(error) => no_port(&host, &format!("{error:#}")),
        })
    }

    async fn probe_api(&self, session: &Session, scope: &Scope) -> anyhow::Result<ProbeFacts> {
        let place = misconfigured(api::place_of(session.context()))?;
        let cluster = session.cluster().await?;
        let look =
            api::Look { place, scope, attempts: self.attempts, interval: self.interval, third_place: self.third_place };
        Ok(look.probe(cluster).await)
    }
}

/// Tries up to `attempts` times, until a living server answers.
pub async fn probe_server(server: &Server, attempts: u32, interval: Duration, timeout: Duration) -> ProbeFacts {
    let mut tries: Vec<Attempt> = Vec::new();
    let mut peer = PeerFacts::default();
    for number in 1..=attempts {
        let (verdict, error, answered) = match postgres::attempt(server, timeout).await {
            Ok(session) => match tokio::time::timeout(timeout, postgres::identity(&session.client)).await {
                Ok(Ok(facts)) => {
                    peer = facts;
                    (Verdict::Healthy, None, true)
                }
                // It opened a session, so it is alive; who it is stays unknown.
                Ok(Err(error)) => (Verdict::Healthy, Some(format!("{error:#}")), true),
                Err(_) => (Verdict::Healthy, Some(format!("told no identity within {timeout:?}")), true),
            },
            Err(postgres::Failed { verdict, error, answered, .. }) => (verdict, Some(error), answered),
        };
        if let Some(error) = &error {
            warn!(attempt = number, %verdict, "{}:{}: {error}", server.host, server.port);
        }
        tries.push(Attempt { at: Timestamp::now(), verdict, error, answered });
        if verdict.is_alive() || number == attempts {
            break;
        }
        tokio::time::sleep(interval).await;
    }
    let verdict = conclude(&tries);
    let reason = reason(server, verdict, &tries);
    info!("{reason}");
    ProbeFacts {
        version: 1,
        taken: Timestamp::now(),
        path: probe::Path::Postgresql,
        host: server.host.clone(),
        port: Some(server.port),
        verdict,
        reason,
        attempts: tries,
        peer,
    }
}

fn reason(server: &Server, verdict: Verdict, tries: &[Attempt]) -> String {
    let last = tries.iter().rev().find(|attempt| attempt.verdict == verdict).or(tries.last());
    let error = last.and_then(|attempt| attempt.error.as_deref());
    let tail = error.map(|error| format!(": {error}")).unwrap_or_default();
    format!(
        "{}:{} is {verdict} ({} of {} attempts){tail}",
        server.host,
        server.port,
        tries.iter().filter(|attempt| attempt.verdict == verdict).count(),
        tries.len()
    )
}

fn no_port(host: &str, why: &str) -> ProbeFacts {
    let now = Timestamp::now();
    let reason = format!("no port for {host}: {why}");
    warn!("{reason}");
    ProbeFacts {
        version: 1,
        taken: now,
        path: probe::Path::Postgresql,
        host: host.to_owned(),
        port: None,
        verdict: Verdict::Misconfigured,
        attempts: vec![Attempt {
            at: now,
            verdict: Verdict::Misconfigured,
            error: Some(why.to_owned()),
            answered: false,
        }],
        reason,
        peer: PeerFacts::default(),
    }
}

fn report(facts: &ProbeFacts, require: Option<Verdict>, dir: &Path) -> Report {
    let conclusion = match require {
        Some(wanted) if wanted != facts.verdict => Conclusion::Unverified,
        _ => Conclusion::Done,
    };
    Report::new(conclusion, facts.reason.clone())
        .with("verdict", facts.verdict)
        .with("peer", facts.peer)
        .with("dir", dir)
        .with("attempts", &facts.attempts)
}
