//! `port-discover`: the port of the Service that leads to the peer.
//!
//! A tunnel (a TransportServerClaim or any other) makes that Service at run time with a port that nobody knows before. A
//! Service that is missing, has no such port or may not be read is an error that names it: never an empty port.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::ResourceExt;
use tracing::{info, warn};

use crate::{
    alerts::Alert,
    cli::Session,
    flags,
    intercom::{Intercom, PortFacts},
    kubernetes::{Cluster, EventTarget, is_forbidden, is_not_found, patiently},
    outcome::{Conclusion, Report},
    patroni::{ClusterConfig, Scope},
    site::Phase,
};

/// Between two looks at a Service that isn't there yet.
const POLL: Duration = Duration::from_secs(1);

/// Alerts of a missing port repeat after this time.
const REPEAT: Duration = Duration::from_hours(1);

/// Find the port of the Service that leads to the peer, and write it for the next step
#[derive(Debug, clap::Args)]
pub struct PortDiscover {
    /// Service that leads to the peer
    #[arg(long, env = "LIFEBOAT_SERVICE", value_name = "NAME")]
    service: String,

    /// Take the port of this name (default: the port at --port-index)
    #[arg(long, env = "LIFEBOAT_PORT_NAME", value_name = "NAME", conflicts_with = "port_index")]
    port_name: Option<String>,

    /// Take the port at this place, counted from 0
    #[arg(long, env = "LIFEBOAT_PORT_INDEX", value_name = "N", default_value_t = 0)]
    port_index: usize,

    /// Take the node port instead of the Service's own
    #[arg(long, env = "LIFEBOAT_NODE_PORT")]
    node_port: bool,

    /// Wait this long for the Service and its port to appear
    #[arg(long, env = "LIFEBOAT_WAIT", value_name = "DURATION", default_value = "0s", value_parser = flags::duration)]
    wait: Duration,

    /// Folder shared with the next step: `tsc_port` and `port.json` are written there
    #[arg(long, env = "LIFEBOAT_DIR", value_name = "DIR", default_value = "/intercom")]
    dir: PathBuf,

    /// Where the Patroni cluster of this scope is initialized already, or this site was promoted, a missing Service is no
    /// error and not waited for: such a site must be able to restart though its peer is gone
    #[arg(long, env = "LIFEBOAT_SKIP_IF_INITIALIZED", value_name = "SCOPE")]
    skip_if_initialized: Option<Scope>,

    /// A Service that is missing, has no such port or may not be read is no error and not waited for: the steps behind do without the peer
    #[arg(long, env = "LIFEBOAT_OPTIONAL", conflicts_with_all = ["skip_if_initialized", "skip_if_promoted"])]
    optional: bool,

    /// Where the site of this scope was promoted, a missing Service is no error and not waited for
    #[arg(long, env = "LIFEBOAT_SKIP_IF_PROMOTED", value_name = "SCOPE", conflicts_with = "skip_if_initialized")]
    skip_if_promoted: Option<Scope>,
}

/// Why there is no port (yet).
#[derive(Debug, PartialEq, Eq)]
enum NoPort {
    /// It may still come: the tunnel is being made.
    NotYet(String),
    /// Waiting doesn't help.
    Never(String),
    /// We may not look.
    Forbidden(String),
}

impl PortDiscover {
    /// Finds the port and writes it.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let intercom = Intercom::new(&self.dir);
        if !session.dry_run {
            intercom.clear_port()?;
        }
        let cluster = session.cluster().await?;
        let facts = match self.find_port(cluster).await? {
            Ok(facts) => facts,
            Err(NoPort::Never(why) | NoPort::NotYet(why) | NoPort::Forbidden(why)) if self.optional => {
                warn!("{why}: the steps behind do without the peer");
                return Ok(Report::nothing_to_do(format!("{why}, and nobody waits for it")));
            }
            Err(NoPort::Forbidden(why)) => return Err(anyhow!(why)),
            Err(NoPort::Never(why)) => return Ok(self.no_port(session, why).await),
            Err(NoPort::NotYet(why)) => match self.not_needed(cluster).await? {
                Some(reason) => return Ok(Report::nothing_to_do(format!("{why}, and {reason}"))),
                None => match self.wait_for_port(cluster, why).await? {
                    Ok(facts) => facts,
                    Err(why) => return Ok(self.no_port(session, why).await),
                },
            },
        };
        if !session.dry_run {
            intercom.write_port(&facts)?;
        }
        Ok(Report::done(format!("Service {} leads to the peer by port {}", facts.service, facts.port))
            .with("service", &facts.service)
            .with("port", facts.port)
            .with("node_port", facts.node_port)
            .with("uid", &facts.uid))
    }

    /// Why no port is needed, where a flag asks for that.
    async fn not_needed(&self, cluster: &Cluster) -> anyhow::Result<Option<String>> {
        let Some(scope) = self.skip_if_initialized.as_ref().or(self.skip_if_promoted.as_ref()) else { return Ok(None) };
        if self.skip_if_initialized.is_some()
            && let Some(map) = cluster.find_configmap(&scope.config()).await?
            && let Some(id) = ClusterConfig::read(&map)?.initialize
        {
            return Ok(Some(format!(
                "Patroni cluster {} is initialized already (system id {id}): no port is needed",
                scope.0
            )));
        }
        let phase = cluster.find_site_record(scope).await?.map(|(record, _)| record.phase);
        let promoted = matches!(phase, Some(Phase::Promoted | Phase::Promoting));
        Ok(promoted.then(|| format!("site of scope {} was promoted: it needs no peer", scope.0)))
    }

    /// Looks once.
    async fn find_port(&self, cluster: &Cluster) -> anyhow::Result<Result<PortFacts, NoPort>> {
        let api = cluster.api::<Service>();
        let service = match patiently(|| api.get(&self.service)).await {
            Ok(service) => Some(service),
            Err(error) if is_not_found(&error) => None,
            Err(error) if is_forbidden(&error) => {
                let why = cluster.explain("get", "Service", &self.service, error);
                return Ok(Err(NoPort::Forbidden(format!("{why:#}"))));
            }
            Err(error) => return Err(cluster.explain("get", "Service", &self.service, error)),
        };
        Ok(self.decide(cluster.namespace(), service.as_ref()))
    }

    /// Looks until there is a port, or the time is over; then why there is none.
    async fn wait_for_port(&self, cluster: &Cluster, mut why: String) -> anyhow::Result<Result<PortFacts, String>> {
        let deadline = Instant::now() + self.wait;
        info!("{why}");
        while Instant::now() + POLL <= deadline {
            tokio::time::sleep(POLL).await;
            match self.find_port(cluster).await? {
                Ok(facts) => return Ok(Ok(facts)),
                Err(NoPort::Never(why)) => return Ok(Err(why)),
                Err(NoPort::Forbidden(why)) => return Err(anyhow!(why)),
                Err(NoPort::NotYet(now)) if now != why => {
                    info!("{now}; waiting");
                    why = now;
                }
                Err(NoPort::NotYet(_)) => {}
            }
        }
        let waited = if self.wait.is_zero() { String::new() } else { format!(" (waited {})", flags::human(self.wait)) };
        Ok(Err(format!("{why}{waited}; is the tunnel (TransportServerClaim) made on the active site?")))
    }

    /// Fails. Where a scope is given, its record says when people were told last: not each minute anew.
    async fn no_port(&self, session: &Session, why: String) -> Report {
        tracing::error!("{why}");
        let mut report = Report::new(Conclusion::Failed, why);
        report.alerts.push(Alert::warning("PortDiscoverFailed", report.reason.clone()).about(EventTarget::own_pod()));
        if let Some(scope) = self.skip_if_promoted.as_ref().or(self.skip_if_initialized.as_ref()) {
            session.tell("port-discover", &mut report, scope, REPEAT).await;
        }
        report
    }

    /// The port that the flags ask for, or why there is none.
    fn decide(&self, namespace: &str, service: Option<&Service>) -> Result<PortFacts, NoPort> {
        let what = format!("Service {} in namespace {namespace}", self.service);
        let service = service.ok_or_else(|| NoPort::NotYet(format!("{what} does not exist")))?;
        if service.metadata.deletion_timestamp.is_some() {
            return Err(NoPort::NotYet(format!("{what} is being deleted")));
        }
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
        let port = self.choose(ports).ok_or_else(|| match &self.port_name {
            Some(name) => NoPort::NotYet(format!("{what} has no port named {name}; it has {}", names(ports))),
            None => NoPort::NotYet(format!("{what} has no port at index {}; it has {}", self.port_index, names(ports))),
        })?;
        let valid = |number: i32| u16::try_from(number).ok().filter(|&number| number > 0);
        let node_port = port.node_port.and_then(valid);
        let number = if self.node_port {
            node_port.ok_or_else(|| NoPort::Never(format!("{what} has no node port: it is no NodePort Service")))?
        } else {
            valid(port.port).ok_or_else(|| NoPort::Never(format!("{what} has port {}, which is no port", port.port)))?
        };
        Ok(PortFacts {
            version: 1,
            taken: Timestamp::now(),
            namespace: namespace.to_owned(),
            service: self.service.clone(),
            uid: service.uid().unwrap_or_default(),
            port: number,
            node_port,
        })
    }

    fn choose<'a>(&self, ports: &'a [ServicePort]) -> Option<&'a ServicePort> {
        match &self.port_name {
            Some(name) => ports.iter().find(|port| port.name.as_ref() == Some(name)),
            None => ports.get(self.port_index),
        }
    }
}

fn names(ports: &[ServicePort]) -> String {
    match ports {
        [] => "no ports".to_owned(),
        ports => {
            let each =
                ports.iter().map(|port| format!("{} ({})", port.port, port.name.as_deref().unwrap_or("unnamed")));
            format!("ports {}", each.collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceSpec;

    use super::*;

    fn flags(port_name: Option<&str>, port_index: usize, node_port: bool) -> PortDiscover {
        PortDiscover {
            service: "pg-primary-gold".into(),
            port_name: port_name.map(Into::into),
            port_index,
            node_port,
            wait: Duration::ZERO,
            dir: "/intercom".into(),
            skip_if_initialized: None,
            optional: false,
            skip_if_promoted: None,
        }
    }

    fn service(ports: &[(&str, i32, Option<i32>)]) -> Service {
        let ports = ports
            .iter()
            .map(|&(name, port, node_port)| ServicePort {
                name: Some(name.into()),
                port,
                node_port,
                ..Default::default()
            })
            .collect();
        Service { spec: Some(ServiceSpec { ports: Some(ports), ..Default::default() }), ..Default::default() }
    }

    #[test]
    fn port_is_chosen_by_index_name_or_node_port() {
        let service = service(&[("a", 36760, None), ("b", 36761, Some(30432))]);
        let port = |flags: PortDiscover| flags.decide("ns", Some(&service)).map(|facts| facts.port);
        assert_eq!(port(flags(None, 0, false)), Ok(36760));
        assert_eq!(port(flags(None, 1, false)), Ok(36761));
        assert_eq!(port(flags(Some("b"), 0, false)), Ok(36761));
        assert_eq!(port(flags(Some("b"), 0, true)), Ok(30432));
    }

    #[test]
    fn port_absent_is_an_error_that_names_the_service() {
        let no_port = |flags: PortDiscover, service: Option<&Service>| match flags.decide("ns", service).unwrap_err() {
            NoPort::NotYet(why) | NoPort::Never(why) | NoPort::Forbidden(why) => why,
        };
        let one = service(&[("a", 36760, None)]);
        for why in [
            no_port(flags(None, 0, false), None),
            no_port(flags(None, 1, false), Some(&one)),
            no_port(flags(Some("b"), 0, false), Some(&one)),
            no_port(flags(None, 0, true), Some(&one)),
            no_port(flags(None, 0, false), Some(&service(&[]))),
            no_port(flags(None, 0, false), Some(&service(&[("a", 0, None)]))),
        ] {
            assert!(why.contains("Service pg-primary-gold in namespace ns"), "{why}");
        }
    }
}
