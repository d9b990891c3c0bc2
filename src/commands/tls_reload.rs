//! `tls-reload`: has PostgreSQL and Patroni's REST API serve a certificate that was renewed, without a restart.
//!
//! The kubelet replaces the files of a mounted Secret, and neither server looks at them again by itself. Patroni reads its
//! configuration anew on `POST /reload`, takes a new certificate for its REST API, and has PostgreSQL reload (Patroni 3.0 to 4.1:
//! `Patroni.reload_config`, `RestApiServer.reload_local_certificate`, `ConfigHandler.reload_config`). It counts as done when both
//! show the new certificate to whoever connects.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use tracing::warn;

use crate::{
    alerts::Alert,
    certificate::{Pair, Protocol, shown},
    cli::Session,
    flags, http,
    kubernetes::EventTarget,
    outcome::{Conclusion, Misconfigured, Outcome, Report, Unverified},
};

const NAME: &str = "tls-reload";
/// Time that a server of this pod has for a handshake or an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two looks at what is served.
const POLL: Duration = Duration::from_secs(1);

/// Have PostgreSQL and Patroni serve a certificate that was renewed, without a restart
#[derive(Debug, clap::Args)]
pub struct TlsReload {
    /// Address of this pod; Patroni takes the command only from the address of a member
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    address: IpAddr,

    /// Folder with tls.crt and tls.key of PostgreSQL
    #[arg(long, env = "LIFEBOAT_POSTGRESQL_TLS", value_name = "DIR", required_unless_present = "patroni_tls")]
    postgresql_tls: Option<PathBuf>,

    /// Folder with tls.crt and tls.key of Patroni's REST API; without it the API has no TLS
    #[arg(long, env = "LIFEBOAT_PATRONI_TLS", value_name = "DIR")]
    patroni_tls: Option<PathBuf>,

    /// Port of PostgreSQL
    #[arg(long, env = "LIFEBOAT_POSTGRESQL_PORT", default_value_t = 5432, value_parser = clap::value_parser!(u16).range(1..))]
    postgresql_port: u16,

    /// Port of Patroni's REST API
    #[arg(long, env = "LIFEBOAT_PATRONI_PORT", default_value_t = 8008, value_parser = clap::value_parser!(u16).range(1..))]
    patroni_port: u16,

    /// Time that both have to serve a new certificate; Patroni begins in its next round
    #[arg(long, env = "LIFEBOAT_WAIT", value_name = "DURATION", default_value = "60s", value_parser = flags::duration)]
    wait: Duration,

    /// Look at the files again after this time, until stopped; without it look once
    #[arg(long, env = "LIFEBOAT_EVERY", value_name = "DURATION", value_parser = flags::positive_duration)]
    every: Option<Duration>,

    /// With --every: the same alert is sent again after this time
    #[arg(long, env = "LIFEBOAT_ALERT_REPEAT", value_name = "DURATION", default_value = "1h", value_parser = flags::duration)]
    alert_repeat: Duration,
}

/// One server, its files, and what it shows.
struct Facts {
    name: &'static str,
    address: SocketAddr,
    protocol: Protocol,
    on_file: anyhow::Result<Pair>,
    /// `None` where it does not answer.
    shown: anyhow::Result<Option<CertificateDer<'static>>>,
}

/// What follows from them.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Each server shows what is in its files.
    Nothing(String),
    /// One does not answer, so what it serves is not known. It reads its files when it starts: nothing to reload.
    Unseen(String),
    /// These do not.
    Reload(Vec<&'static str>),
    /// The files, or a server, need a person. A reload would end the REST API, or change nothing.
    Mend(String),
}

impl TlsReload {
    /// Looks once, or until it is stopped.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let Some(every) = self.every else { return self.look(session).await };
        if let Err(error) = session.cluster().await {
            warn!("alerts make no Events: {error:#}");
        }
        let mut last: Option<(String, Instant)> = None;
        loop {
            let (started, clock) = (Timestamp::now(), Instant::now());
            let mut report = self.look(session).await.unwrap_or_else(|error| {
                let mut report = Report::from(error);
                let alert = Alert::warning("TlsReloadFailed", report.reason.clone());
                report.alerts.push(alert.about(EventTarget::own_pod()));
                report
            });
            let known = last.as_ref().filter(|(reason, _)| *reason == report.reason).map(|(_, when)| *when);
            if known.is_some_and(|when| when.elapsed() < self.alert_repeat) {
                report.alerts.clear();
            } else if known.is_none() || !report.alerts.is_empty() {
                // Whom nobody heard is told again by the next look.
                if session.send(NAME, &mut report).await {
                    last = Some((report.reason.clone(), clock));
                }
                Outcome::new(NAME, started, clock.elapsed(), &report).print();
            }
            tokio::time::sleep(every).await;
        }
    }

    async fn look(&self, session: &Session) -> anyhow::Result<Report> {
        let servers = self.observe().await;
        let stale = match decide(&servers) {
            Plan::Nothing(why) => return Ok(Report::nothing_to_do(why)),
            Plan::Unseen(why) => return Ok(Report::new(Conclusion::Unverified, why)),
            Plan::Mend(why) => return Err(anyhow!(why).context(Misconfigured)),
            Plan::Reload(stale) => stale,
        };
        let names = stale.join(" and ");
        if session.dry_run {
            return Ok(Report::nothing_to_do(format!("would have Patroni reload: {names} shows an older certificate")));
        }
        self.reload(&servers).await?;
        let begun = Instant::now();
        loop {
            tokio::time::sleep(POLL).await;
            let servers = self.observe().await;
            // One that is down for a moment, as the REST API is while it changes, must come back with the new one.
            if servers.iter().filter(|server| stale.contains(&server.name)).all(Facts::is_current) {
                let took = flags::human(begun.elapsed());
                return Ok(Report::done(format!("{names} took the new certificate within {took}, without a restart")));
            }
            if begun.elapsed() >= self.wait {
                let why = anyhow!(
                    "{names} did not take the new certificate within {}: see the log of the container patroni (the REST API takes one only \
                     with another serial number)",
                    flags::human(self.wait)
                );
                return Err(why.context(Unverified));
            }
        }
    }

    async fn observe(&self) -> Vec<Facts> {
        let known = [
            ("PostgreSQL", Protocol::Postgresql, self.postgresql_port, &self.postgresql_tls),
            ("Patroni's REST API", Protocol::Https, self.patroni_port, &self.patroni_tls),
        ];
        let mut servers = Vec::new();
        for (name, protocol, port, folder) in known {
            if let Some(folder) = folder {
                let address = SocketAddr::new(self.address, port);
                let (on_file, shown) = (Pair::read(folder), shown(address, protocol, TIMEOUT).await);
                servers.push(Facts { name, address, protocol, on_file, shown });
            }
        }
        servers
    }

    /// One order for both servers.
    async fn reload(&self, servers: &[Facts]) -> anyhow::Result<()> {
        let rest = servers.iter().find(|server| server.protocol == Protocol::Https);
        let identity = rest.and_then(|server| server.on_file.as_ref().ok()).cloned();
        let scheme = if rest.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/reload", SocketAddr::new(self.address, self.patroni_port));
        http::post_within_pod(url, identity, TIMEOUT).await.context("have Patroni reload (POST /reload)")
    }
}

impl Facts {
    fn is_current(&self) -> bool {
        matches!((&self.on_file, &self.shown), (Ok(pair), Ok(Some(shown))) if pair.leaf() == shown)
    }
}

fn decide(servers: &[Facts]) -> Plan {
    let broken = servers.iter().find_map(|server| Some((server.name, server.on_file.as_ref().err()?)));
    if let Some((name, error)) = broken {
        return Plan::Mend(format!("{name} keeps its certificate, as the new one can't be used: {error:#}"));
    }
    if let Some((name, error)) = servers.iter().find_map(|server| Some((server.name, server.shown.as_ref().err()?))) {
        return Plan::Mend(format!("{name} does not serve TLS: {error:#}"));
    }
    let (up, down): (Vec<_>, Vec<_>) = servers.iter().partition(|server| !matches!(server.shown, Ok(None)));
    let stale: Vec<_> = up.iter().filter(|server| !server.is_current()).map(|server| server.name).collect();
    if !stale.is_empty() {
        return Plan::Reload(stale);
    }
    match down.first() {
        Some(server) => Plan::Unseen(format!("{} does not answer at {}", server.name, server.address)),
        None => Plan::Nothing("what is served is what the files have".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &'static str, on_file: Result<u8, ()>, shown: Result<Option<u8>, ()>) -> Facts {
        let certificate = |number: u8| CertificateDer::from(vec![number]);
        Facts {
            name,
            address: "192.0.2.1:5432".parse().unwrap(),
            protocol: Protocol::Postgresql,
            on_file: on_file
                .map(|number| Pair { chain: vec![certificate(number), certificate(9)], key: Vec::new() })
                .map_err(|()| anyhow!("no key")),
            shown: shown.map(|number| number.map(certificate)).map_err(|()| anyhow!("no TLS")),
        }
    }

    #[test]
    fn reload_follows_only_where_a_living_server_shows_another_certificate_and_all_files_fit() {
        let same = Plan::Nothing("what is served is what the files have".to_owned());
        let down = Plan::Unseen("a does not answer at 192.0.2.1:5432".to_owned());
        for (a, b, plan) in [
            ((Ok(1), Ok(Some(1))), (Ok(2), Ok(Some(2))), same),
            ((Ok(1), Ok(Some(1))), (Ok(2), Ok(Some(1))), Plan::Reload(vec!["b"])),
            ((Ok(3), Ok(Some(1))), (Ok(3), Ok(Some(1))), Plan::Reload(vec!["a", "b"])),
            ((Ok(1), Ok(None)), (Ok(2), Ok(Some(2))), down),
            ((Ok(1), Ok(None)), (Ok(2), Ok(Some(1))), Plan::Reload(vec!["b"])),
        ] {
            assert_eq!(decide(&[server("a", a.0, a.1), server("b", b.0, b.1)]), plan);
        }
        let mend = |facts: &[Facts]| match decide(facts) {
            Plan::Mend(why) => why,
            other => panic!("{other:?}"),
        };
        let why = mend(&[server("a", Ok(3), Ok(Some(1))), server("b", Err(()), Ok(Some(2)))]);
        assert_eq!(why, "b keeps its certificate, as the new one can't be used: no key");
        assert_eq!(mend(&[server("a", Ok(1), Err(()))]), "a does not serve TLS: no TLS");
    }
}
