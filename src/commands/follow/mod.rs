//! `follow`: makes this site the standby of its peer, only where that loses nothing.
//!
//! Before Patroni starts (`--bootstrap-file`, an init container) it renders Patroni's configuration, so that no foreign system
//! identifier is ever born. On a running cluster (the hook Job) it corrects a changed host or port of an existing
//! `standby_cluster` and merges changed parameters. A promoted site is never made a standby here.

mod birth;
mod drift;
mod fence;
mod running;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};

use crate::{
    cli::{Session, misconfigured},
    flags, intercom,
    outcome::Report,
    patroni::{ClusterConfig, Scope},
    postgres::{Credentials, TlsOptions},
    site::Phase,
};

/// The site's first role. From its first promotion on, the state record rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Is born as a primary.
    Active,
    /// Is born as the standby of its peer.
    Standby,
}

/// Make this site the standby of its peer, where that loses nothing
#[derive(Debug, clap::Args)]
pub struct Follow {
    /// Patroni's scope on this site
    #[arg(long, env = "LIFEBOAT_SCOPE", value_name = "NAME")]
    scope: Scope,

    /// Name of this site, as its state record has it
    #[arg(long, env = "LIFEBOAT_SITE", value_name = "NAME", default_value = "local")]
    site: String,

    /// First role of this site
    #[arg(long, env = "LIFEBOAT_ROLE", value_enum)]
    role: Role,

    /// Host that leads to the peer
    #[arg(long, env = "LIFEBOAT_HOST", required_if_eq("role", "standby"))]
    host: Option<String>,

    /// Port that leads to the peer
    #[arg(long, env = "LIFEBOAT_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,

    /// File that holds the port, as port-discover writes it; it wins over --port
    #[arg(long, env = "LIFEBOAT_PORT_FILE", value_name = "FILE")]
    port_file: Option<PathBuf>,

    /// Replication slot on the peer
    #[arg(long, env = "LIFEBOAT_SLOT", value_name = "NAME")]
    slot: Option<String>,

    /// Patroni's whole configuration as JSON, to which --bootstrap-file adds `standby_cluster`
    #[arg(long, env = "LIFEBOAT_TEMPLATE", value_name = "FILE", requires = "bootstrap_file")]
    template: Option<PathBuf>,

    /// Write Patroni's configuration here before Patroni starts
    #[arg(long, env = "LIFEBOAT_BOOTSTRAP_FILE", value_name = "FILE", requires = "template")]
    bootstrap_file: Option<PathBuf>,

    /// With --bootstrap-file: write `passwd` and `group` for `nss_wrapper` here, since initdb needs a name for any user id
    #[arg(long, env = "LIFEBOAT_PASSWD_DIR", value_name = "DIR")]
    passwd_dir: Option<PathBuf>,

    /// With --bootstrap-file: PostgreSQL's data directory, which must be empty for a site to be born as a standby
    #[arg(long, env = "LIFEBOAT_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Dynamic configuration (JSON) to merge into the running cluster; never touches `standby_cluster`
    #[arg(long, env = "LIFEBOAT_MERGE_FILE", value_name = "FILE", conflicts_with = "bootstrap_file")]
    merge_file: Option<PathBuf>,

    /// With --bootstrap-file: look at the peer first, and do not start a second primary beside it
    #[arg(long, env = "LIFEBOAT_FENCE", requires = "bootstrap_file")]
    fence: bool,

    #[command(flatten)]
    credentials: Credentials,

    #[command(flatten)]
    tls: TlsOptions,

    /// On a running cluster: correct host, port and slot only where this probe of the same run (`probe.json`) met the peer itself, alive and
    /// leading; else, and where they are right, do nothing
    #[arg(long, env = "LIFEBOAT_PROBE_FILE", value_name = "FILE", conflicts_with_all = ["bootstrap_file", "merge_file"])]
    probe_file: Option<PathBuf>,

    /// With --probe-file: a probe older than this is refused
    #[arg(long, env = "LIFEBOAT_FACTS_MAX_AGE", value_name = "DURATION", default_value = "60s", value_parser = flags::positive_duration)]
    facts_max_age: Duration,

    /// With --probe-file: an alert of the same kind is sent again after this time
    #[arg(long, env = "LIFEBOAT_ALERT_REPEAT", value_name = "DURATION", default_value = "1h", value_parser = flags::duration)]
    alert_repeat: Duration,

    /// Wait this long for the running cluster to be initialized and to stream
    #[arg(long, env = "LIFEBOAT_WAIT", value_name = "DURATION", default_value = "0s", value_parser = flags::duration)]
    wait: Duration,
}

impl Follow {
    /// Renders the configuration of a cluster to be born, or mends that of a running one.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        match &self.probe_file {
            _ if self.bootstrap_file.is_some() => self.prepare_birth(session).await,
            Some(file) => self.mend_drift(session, file).await,
            None => self.mend_running(session).await,
        }
    }

    /// The record rules over the flag: neither an upgrade nor a reinstall makes a promoted site a standby again. A promotion that is
    /// only decided made no primary yet.
    fn is_standby(&self, phase: Option<Phase>, config: &ClusterConfig) -> bool {
        match phase {
            Some(Phase::Promoted) => false,
            Some(Phase::Promoting) => config.text.is_none() || config.standby_cluster.is_some(),
            Some(Phase::Following) => true,
            _ => self.role == Role::Standby,
        }
    }

    /// Where the peer is.
    fn peer(&self) -> anyhow::Result<(String, u16)> {
        let host = self.host.clone().ok_or_else(|| anyhow!("a standby needs --host"));
        let port = match (&self.port_file, self.port) {
            (Some(file), _) => intercom::read_port(file).context("the step port-discover must run before"),
            (None, Some(port)) => Ok(port),
            (None, None) => Err(anyhow!("a standby needs --port or --port-file")),
        };
        Ok((misconfigured(host)?, misconfigured(port)?))
    }
}
