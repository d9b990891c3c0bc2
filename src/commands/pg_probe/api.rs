//! The probe through the peer's own API server: does a leader of Patroni renew its lease there?
//!
//! For a place outside both sites, which has no way to the peer's PostgreSQL. A lease is judged by watching it, never by its age: its
//! stamp is of another clock.

use std::{
    error::Error,
    io::ErrorKind,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use tracing::{info, warn};

use crate::{
    kubernetes::{Cluster, Snapshot, patiently},
    patroni::{ClusterConfig, LeaderRecord, LeaseWatch, Member, MemberRole, Scope, leader_lsn, lease_stamp},
    probe::{self, Attempt, PeerFacts, ProbeFacts, Verdict, conclude},
};

const POLL: Duration = Duration::from_secs(1);
/// Time that a name may take to be looked up before silence behind it is no sign: less than half of a connection's (5 s).
const LOOKUP: Duration = Duration::from_secs(2);

/// How to look.
#[derive(Debug)]
pub struct Look<'a> {
    /// What the site is called: its context.
    pub place: &'a str,
    /// Patroni's scope there.
    pub scope: &'a Scope,
    /// Looks at a lease that has run out, each of which is one failure.
    pub attempts: u32,
    /// Pause between two of them.
    pub interval: Duration,
    /// An API server that can't be reached is one too: only outside both sites does that say something of the peer.
    pub third_place: bool,
}

/// A lease at one moment: who holds it, if anybody, and its stamp.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    leader: Option<String>,
    stamp: Option<String>,
}

/// A lease that was renewed.
struct Met {
    verdict: Verdict,
    peer: PeerFacts,
    /// Why the lease will say nothing when it is renewed no more.
    leads_without: Option<&'static str>,
}

/// What one look at the leader's ConfigMap met.
struct Failed {
    verdict: Verdict,
    error: String,
}

impl Look<'_> {
    /// Watches until the lease is renewed, or has not been for its time to live.
    pub async fn probe(&self, cluster: &Cluster) -> ProbeFacts {
        let (mut tries, mut peer, mut ran_out, mut blind) = (Vec::new(), PeerFacts::default(), None, None);
        loop {
            let (verdict, error) = match self.watch(cluster, &mut ran_out).await {
                Ok(met) => {
                    (peer, blind) = (met.peer, met.leads_without);
                    (met.verdict, None)
                }
                Err(Failed { verdict, error }) => (verdict, Some(error)),
            };
            if let Some(error) = &error {
                warn!(%verdict, "{}: {error}", self.place);
            }
            tries.push(Attempt { at: Timestamp::now(), verdict, error, answered: false });
            if verdict.is_alive() || tries.len() >= self.attempts as usize {
                break;
            }
            tokio::time::sleep(self.interval).await;
        }
        let verdict = conclude(&tries);
        let why = tries.iter().rev().find_map(|attempt| attempt.error.as_deref());
        let reason = match (why, blind) {
            (Some(why), _) => format!("scope {} of {} is {verdict}: {why}", self.scope.0, self.place),
            (None, Some(blind)) => format!(
                "scope {} of {} is {verdict}: its leader renews its lease; but {blind}: silence would be no sign of its loss",
                self.scope.0, self.place
            ),
            (None, None) => {
                format!("scope {} of {} is {verdict}: its leader renews its lease", self.scope.0, self.place)
            }
        };
        info!("{reason}");
        ProbeFacts {
            version: 1,
            taken: Timestamp::now(),
            path: probe::Path::Api,
            host: self.place.to_owned(),
            port: None,
            verdict,
            reason,
            attempts: tries,
            peer,
        }
    }

    /// One attempt: watches until the lease is renewed or has run out, which it has when it stayed as it is for its time to live. `ran_out` is
    /// a lease that an earlier attempt watched run out: as long as it is the same, one look is enough.
    async fn watch(&self, cluster: &Cluster, ran_out: &mut Option<Sight>) -> Result<Met, Failed> {
        let wrong = |error: anyhow::Error| Failed { verdict: Verdict::Misconfigured, error: format!("{error:#}") };
        let unknown = |error: String| Failed { verdict: Verdict::Unknown, error };
        let config = ClusterConfig::read(&self.read(cluster, &self.scope.config()).await?).map_err(wrong)?;
        let (ttl, leads_without) = (Duration::from_secs(config.ttl), config.leads_without_lease());
        let (mut lease, begun) = (LeaseWatch::default(), Instant::now());
        let mut last: Option<(Sight, Instant)> = None;
        loop {
            let map = self.read(cluster, &self.scope.leader()).await?;
            let (record, now) = (LeaderRecord::read(&map), Instant::now());
            lease.see(record.as_ref(), now);
            if let Some(record) = record.as_ref().filter(|r| lease.renewed_within(&r.leader, ttl, now)) {
                let (verdict, peer) = self.meet(cluster, &config, &map, &record.leader).await;
                return Ok(Met { verdict, peer, leads_without });
            }
            let sight = Sight { leader: record.map(|record| record.leader), stamp: lease_stamp(&map) };
            // One that changed hands has yet to be renewed by its new holder: it runs out from then on.
            let (sight, since) = last.take().filter(|(before, _)| *before == sight).unwrap_or((sight, now));
            let watched = since.elapsed();
            if watched >= ttl || ran_out.as_ref() == Some(&sight) {
                let what = match &sight {
                    Sight { leader: Some(leader), stamp: None } => {
                        return Err(unknown(format!("the lease of {leader} has no renewTime")));
                    }
                    Sight { leader: Some(leader), .. } => format!("{leader} has not renewed its lease"),
                    Sight { leader: None, .. } => "nobody has held the lease".to_owned(),
                };
                let error = format!("{what} for {} s", ttl.as_secs());
                *ran_out = Some(sight);
                return Err(match leads_without {
                    Some(why) => unknown(format!("{error}, but {why}")),
                    None => Failed { verdict: Verdict::Unreachable, error },
                });
            }
            if begun.elapsed() >= ttl * 3 {
                return Err(unknown(format!(
                    "the lease changes hands and nobody renews it, for {} s",
                    3 * ttl.as_secs()
                )));
            }
            last = Some((sight, since));
            tokio::time::sleep(POLL).await;
        }
    }

    /// A leader that renews its lease lives; what PostgreSQL does there is Patroni's word.
    async fn meet(
        &self,
        cluster: &Cluster,
        config: &ClusterConfig,
        map: &Snapshot,
        leader: &str,
    ) -> (Verdict, PeerFacts) {
        let member = match Member::of_pod(cluster, leader).await {
            Ok(member) => member,
            Err(error) => {
                warn!("{}: {error:#}", self.place);
                return (Verdict::Healthy, PeerFacts::default());
            }
        };
        if member.state != "running" {
            return (Verdict::Starting, PeerFacts::default());
        }
        let in_recovery = match member.role {
            MemberRole::Primary => Some(false),
            MemberRole::StandbyLeader => Some(true),
            MemberRole::Promoted | MemberRole::Replica | MemberRole::Other => None,
        };
        let lsn = leader_lsn(map).max(member.lsn);
        (Verdict::Healthy, PeerFacts { system_id: config.initialize, timeline: member.timeline, lsn, in_recovery })
    }

    async fn read(&self, cluster: &Cluster, name: &str) -> Result<Snapshot, Failed> {
        let api = cluster.api::<ConfigMap>();
        match patiently(|| api.get(name)).await {
            Ok(map) => Ok(Snapshot::from(map)),
            Err(error) => {
                let verdict = self.classify(&error);
                let error = cluster.explain("get", "ConfigMap", name, error);
                // A DNS server that does not answer looks like a silent API server, which nobody asked then.
                if verdict == Verdict::Unreachable && !cluster.resolves(LOOKUP).await {
                    let error = format!("{error:#}; and its name was not resolved within {LOOKUP:?}");
                    return Err(Failed { verdict: Verdict::Unknown, error });
                }
                Err(Failed { verdict, error: format!("{error:#}") })
            }
        }
    }

    fn classify(&self, error: &kube::Error) -> Verdict {
        match error {
            kube::Error::Api(status) if [401, 403, 404].contains(&status.code) => Verdict::Misconfigured,
            kube::Error::Api(_) => Verdict::Unknown,
            other if is_silence(other) && self.third_place => Verdict::Unreachable,
            _ => Verdict::Unknown,
        }
    }
}

/// Whether nobody answered at all: refused, timed out, no route, reset. A name that can't be looked up, or a certificate that does not
/// fit, is something else.
fn is_silence(error: &kube::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if error.is::<rustls::Error>() || text.contains("dns error") {
            return false;
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use ErrorKind::{
                ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut,
                UnexpectedEof,
            };
            let silent = [
                ConnectionAborted,
                ConnectionRefused,
                ConnectionReset,
                HostUnreachable,
                NetworkUnreachable,
                TimedOut,
                UnexpectedEof,
            ];
            if silent.contains(&io.kind()) {
                return true;
            }
        }
        if error.is::<tokio::time::error::Elapsed>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The name of the place for people.
pub fn place_of(context: Option<&str>) -> anyhow::Result<&str> {
    context.ok_or_else(|| {
        anyhow!("--scope asks the peer's API server: name the --context of the kubeconfig that leads there")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_of_the_api_server_counts_at_a_third_place_only() {
        let scope = "pg".parse().unwrap();
        let look =
            |third_place| Look { place: "gold", scope: &scope, attempts: 1, interval: Duration::ZERO, third_place };
        let io = |kind| kube::Error::Service(Box::new(std::io::Error::from(kind)));
        let status = |code| {
            let mut status = kube::core::Status::failure("no", "test");
            status.code = code;
            kube::Error::Api(Box::new(status))
        };
        for kind in [ErrorKind::ConnectionRefused, ErrorKind::TimedOut, ErrorKind::HostUnreachable] {
            assert_eq!(look(true).classify(&io(kind)), Verdict::Unreachable, "{kind}");
            assert_eq!(look(false).classify(&io(kind)), Verdict::Unknown, "{kind}");
        }
        assert_eq!(look(true).classify(&io(ErrorKind::InvalidData)), Verdict::Unknown);
        for (code, verdict) in
            [(401, Verdict::Misconfigured), (403, Verdict::Misconfigured), (404, Verdict::Misconfigured)]
        {
            assert_eq!(look(true).classify(&status(code)), verdict, "{code}");
        }
        for code in [429, 500, 503] {
            assert_eq!(look(true).classify(&status(code)), Verdict::Unknown, "{code}");
        }
    }
}
