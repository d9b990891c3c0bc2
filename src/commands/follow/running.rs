//! On a running cluster: corrects where `standby_cluster` leads to, merges changed parameters, and looks whether it streams.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::Follow;
use crate::{
    alerts::Alert,
    cli::{Session, failure, misconfigured},
    flags,
    kubernetes::{Cluster, Conflict, Snapshot},
    outcome::{Refused, Report, Unverified},
    patroni::{ClusterConfig, Document, LeaderRecord, Member, MemberRole, StandbyCluster},
    postgres::{self, Server, simple_row},
    site::{Phase, SiteRecord},
};

const POLL: Duration = Duration::from_secs(1);
/// Time limit of one question to the leader.
const SQL_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const ROUNDS: u32 = 8;

/// One round may have read the configuration before it was changed, the next one applies it, and the third one tells of the result.
pub(super) const ROUNDS_UNTIL_TOLD: u32 = 3;

/// What is to be written, and what of it changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mending {
    pub text: String,
    pub changes: Vec<String>,
}

impl Follow {
    pub(super) async fn mend_running(&self, session: &Session) -> anyhow::Result<Report> {
        let desired = self.read_merge_file()?;
        let cluster = session.cluster().await?;
        let deadline = Instant::now() + self.wait;
        for _ in 0..ROUNDS {
            let Some((map, config)) = self.wait_for_configuration(cluster, deadline).await? else {
                return Ok(not_born_yet(&self.scope.0, self.wait));
            };
            let record = cluster.find_site_record(&self.scope).await?.map(|(record, _)| record);
            let phase = record.as_ref().map(|record| record.phase);
            let standby = self.is_standby(record.as_ref().map(SiteRecord::standing), &config);
            let away = match phase {
                Some(Phase::Held) => {
                    Some("this site is held: its members do not start, so whether they work was not asked".to_owned())
                }
                Some(phase) if config.standby_cluster.is_some() && phase.is_outage() => Some(format!(
                    "the phase is {phase}: the monitor does not reach the peer, so whether it streams was not asked"
                )),
                _ => None,
            };
            if standby && config.standby_cluster.is_none() && !config.sed_leftover {
                return Err(anyhow!(
                    "this site has role standby, but its cluster leads: it has no standby_cluster. Making it a standby again would \
                     throw its writes away; if it was promoted on purpose, `lifeboat promote` records that at its next run"
                )
                .context(Refused));
            }
            let peer = match &config.standby_cluster {
                // The monitor is about to decide what becomes of it.
                _ if away.is_some() => None,
                Some(now) if standby && !now.is_one_place() => {
                    warn!("{}", leaves(now));
                    None
                }
                Some(_) if standby => {
                    let (host, port) = self.peer()?;
                    Some(StandbyCluster { host: Some(host), port: Some(port), slot: self.slot.clone() })
                }
                _ => None,
            };
            let mending = mend(&config, peer.as_ref(), &desired)?;
            if session.dry_run {
                return Ok(Report::nothing_to_do("dry run").with("changes", &mending.changes));
            }
            if !mending.changes.is_empty() {
                match cluster.swap_annotation(&map, ClusterConfig::ANNOTATION, &mending.text).await {
                    Err(error) if error.downcast_ref::<Conflict>().is_some() => continue,
                    result => result?,
                };
                info!("changed {}", mending.changes.join(", "));
            }
            let look = async {
                if !mending.changes.is_empty() && config.standby_cluster.is_some() && phase != Some(Phase::Held) {
                    self.wait_for_rounds(session, cluster, ROUNDS_UNTIL_TOLD, deadline).await?;
                }
                match away {
                    // Nobody can stream from a peer that is away: an upgrade during an outage need not wait for it, and must not fail.
                    Some(why) => Ok(why),
                    None => self.wait_until_it_works(session, cluster, &config, deadline).await,
                }
            };
            return told(phase, look.await, &mending.changes);
        }
        Err(anyhow!("ConfigMap {} kept changing under {ROUNDS} attempts; run it again", self.scope.config()))
    }

    fn read_merge_file(&self) -> anyhow::Result<Map<String, Value>> {
        let Some(path) = &self.merge_file else { return Ok(Map::new()) };
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let parsed = text.and_then(|text| {
            let map: Map<String, Value> =
                serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
            if map.contains_key("standby_cluster") {
                return Err(anyhow!("{} must not hold standby_cluster", path.display()));
            }
            Ok(map)
        });
        misconfigured(parsed)
    }

    async fn wait_for_configuration(
        &self,
        cluster: &Cluster,
        deadline: Instant,
    ) -> anyhow::Result<Option<(Snapshot, ClusterConfig)>> {
        loop {
            let map = cluster.configmap(&self.scope.config()).await?;
            let config = ClusterConfig::read(&map)?;
            if config.text.is_some() && config.initialize.is_some() {
                return Ok(Some((map, config)));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A standby must stream, a primary must lead; what Patroni says of its own leader is the proof, and its lease that the leader lives:
    /// the word of a dead one stays. Where all is well but for the lease, one renewal is waited for, whatever the hook's time limit.
    pub(super) async fn wait_until_it_works(
        &self,
        session: &Session,
        cluster: &Cluster,
        config: &ClusterConfig,
        deadline: Instant,
    ) -> anyhow::Result<String> {
        let (round, standby) = (config.round(), config.standby_cluster.is_some());
        let renewed_by = Instant::now() + round;
        loop {
            let (why_not, until) = match self.works(session, cluster, standby).await {
                Ok((leader, state)) if session.lease().renewed_within(&leader, round, Instant::now()) => {
                    return Ok(state);
                }
                Ok((_, state)) => {
                    let why = anyhow!(
                        "{state} by Patroni's last word, but the lease was not seen to be renewed: does its Patroni live?"
                    );
                    // The monitor's run has its own time limit, and has watched rounds of Patroni before.
                    (why, if self.probe_file.is_some() { deadline } else { deadline.max(renewed_by) })
                }
                Err(error) => (error, deadline),
            };
            if Instant::now() > until {
                return Err(why_not.context(Unverified));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until Patroni's leader has gone through this many rounds, each of which renews its lease: what its member said before may
    /// be of the place where it streamed from before.
    pub(super) async fn wait_for_rounds(
        &self,
        session: &Session,
        cluster: &Cluster,
        rounds: u32,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        let stamp = async || {
            let record = LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?);
            session.lease().see(record.as_ref(), Instant::now());
            anyhow::Ok(record.map(|read| read.renew_time))
        };
        let (mut last, mut seen) = (stamp().await?, 0);
        while seen < rounds {
            if Instant::now() > deadline {
                return Err(anyhow!("Patroni's leader did not come round {rounds} times since; is it alive?")
                    .context(Unverified));
            }
            tokio::time::sleep(POLL).await;
            let now = stamp().await?;
            if now != last {
                (last, seen) = (now, seen + 1);
            }
        }
        Ok(())
    }

    /// The leader, and what it does by its own word.
    async fn works(&self, session: &Session, cluster: &Cluster, standby: bool) -> anyhow::Result<(String, String)> {
        let record = LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?);
        session.lease().see(record.as_ref(), Instant::now());
        let leader = record.ok_or_else(|| anyhow!("no member of scope {} leads", self.scope.0))?.leader;
        let member = Member::of_pod(cluster, &leader).await?;
        let wanted = if standby { MemberRole::StandbyLeader } else { MemberRole::Primary };
        // A standby leader that does not stream has no replication state at all; only an old Patroni never tells one.
        let replication = match &member.replication_state {
            Some(state) => state.clone(),
            None if standby && member.role == wanted && !member.tells_replication_state() => self
                .ask_receiver(&member)
                .await
                .context("Patroni before 3.0.4 does not tell whether its leader streams")?,
            None => "unknown".to_owned(),
        };
        let Member { role, state, .. } = member;
        if role == wanted && state == "running" && (!standby || replication == "streaming") {
            let state = if standby { format!("{leader} streams from the peer") } else { format!("{leader} leads") };
            return Ok((leader, state));
        }
        Err(anyhow!("{leader} is {role:?}, {state}, replication {replication}"))
    }

    /// Whether a WAL receiver is connected, by SQL. Its row is shown only while it is; without `pg_monitor` the row is empty.
    async fn ask_receiver(&self, member: &Member) -> anyhow::Result<String> {
        let password = self.credentials.password(&member.host, member.port)?;
        let (credentials, tls) = (self.credentials.clone(), self.tls.clone());
        let server = Server { host: member.host.clone(), port: member.port, credentials, password, tls };
        let session = postgres::attempt(&server, SQL_TIMEOUT).await;
        let session =
            session.map_err(|failed| anyhow!("ask {} ({}): {}", member.name, failed.verdict, failed.error))?;
        let sql = "SELECT count(*), coalesce(max(status), 'streaming') FROM pg_stat_wal_receiver";
        let row = tokio::time::timeout(SQL_TIMEOUT, simple_row(&session.client, sql)).await;
        let row = row.map_err(|_| anyhow!("{} does not answer", member.name))??;
        Ok(if row.get(0) == Some("0") {
            "not connected".to_owned()
        } else {
            row.get(1).unwrap_or("unknown").to_owned()
        })
    }
}

/// A first copy of a large database takes hours; that must not fail the installation. Nothing is claimed to work.
fn not_born_yet(scope: &str, waited: Duration) -> Report {
    Report::nothing_to_do(format!(
        "the cluster of scope {scope} is not initialized after {}: a first copy may take long; look at its pods, then run `helm test`",
        flags::human(waited)
    ))
}

/// What is said of a standby that does not stream from one host.
pub(super) fn leaves(now: &StandbyCluster) -> String {
    let from = now.host.as_deref().map_or_else(|| "an archive".to_owned(), |hosts| format!("several hosts ({hosts})"));
    format!("standby_cluster follows {from}, not one peer: it is left as it is")
}

/// Time for Patroni to come round so often that it tells of a change, and a little.
pub(super) fn until_told(loop_wait: u64) -> Duration {
    Duration::from_secs(u64::from(ROUNDS_UNTIL_TOLD) * loop_wait + 5)
}

/// The report of what was changed, whether or not it was seen to work: a change that is done must be told in any case.
pub(super) fn told(phase: Option<Phase>, works: anyhow::Result<String>, changes: &[String]) -> anyhow::Result<Report> {
    let list = changes.join(", ");
    let mut report = match works {
        Ok(state) if changes.is_empty() => Report::nothing_to_do(state),
        Ok(state) => Report::done(format!("{state}; changed {list}")),
        Err(error) if changes.is_empty() => return Err(error),
        Err(error) => failure("follow", error.context(format!("changed {list}, but that is not verified"))),
    };
    report = report.with("changes", changes).with("phase", phase);
    if changes.iter().any(|change| change.starts_with("standby_cluster")) {
        report
            .alerts
            .push(Alert::normal("PeerMoved", report.reason.clone()).about(crate::kubernetes::EventTarget::own_pod()));
    }
    Ok(report)
}

/// The configuration's text with what is wanted in it; members that are as wanted keep every byte.
pub(super) fn mend(
    config: &ClusterConfig,
    peer: Option<&StandbyCluster>,
    desired: &Map<String, Value>,
) -> anyhow::Result<Mending> {
    let mut text = config.text.clone().context("Patroni's configuration is not there yet")?;
    let mut changes = Vec::new();
    if let (Some(peer), Some(now)) = (peer, &config.standby_cluster)
        && ((&peer.host, peer.port) != (&now.host, now.port) || peer.slot.is_some() && peer.slot != now.slot)
    {
        text = config.following(peer)?;
        let place = (peer.host.as_deref().unwrap_or_default(), peer.port.unwrap_or_default());
        changes.push(format!(
            "standby_cluster to {}:{}, slot {}",
            place.0,
            place.1,
            peer.slot.as_deref().unwrap_or("as before")
        ));
    }
    for (key, wanted) in desired {
        let document = Document::parse(&text)?;
        let now: Value = document.get(key).map(serde_json::from_str).transpose()?.unwrap_or(Value::Null);
        let merged = merge(&now, wanted);
        if merged == now {
            continue;
        }
        changes.push(key.clone());
        text = if merged.is_null() { document.without(key) } else { document.with(key, &merged.to_string()) };
    }
    Ok(Mending { text, changes })
}

/// As Patroni's own `PATCH /config`: objects merge, null removes, all else replaces.
fn merge(now: &Value, wanted: &Value) -> Value {
    let Value::Object(wanted) = wanted else { return wanted.clone() };
    let mut merged = now.as_object().cloned().unwrap_or_default();
    for (key, value) in wanted {
        let value = merge(merged.get(key).unwrap_or(&Value::Null), value);
        if value.is_null() {
            merged.shift_remove(key)
        } else {
            merged.insert(key.clone(), value)
        };
    }
    Value::Object(merged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(text: &str) -> ClusterConfig {
        let mut map = Snapshot::default();
        map.annotations.insert("config".into(), text.into());
        ClusterConfig::read(&map).unwrap()
    }

    fn desired(value: &Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn peer_moved_changes_only_host_and_port() {
        let config = config(r#"{"ttl": 30, "standby_cluster": {"host": "a", "port": 1, "primary_slot_name": "s"}}"#);
        let peer = |host: &str, port, slot: Option<&str>| StandbyCluster {
            host: Some(host.into()),
            port: Some(port),
            slot: slot.map(Into::into),
        };
        let mending = mend(&config, Some(&peer("b", 2, None)), &Map::new()).unwrap();
        assert_eq!(
            mending.text,
            r#"{"ttl": 30, "standby_cluster": {"host": "b", "port": 2, "primary_slot_name": "s"}}"#
        );
        assert_eq!(mend(&config, Some(&peer("a", 1, Some("s"))), &Map::new()).unwrap().changes, Vec::<String>::new());
        let slot = mend(&config, Some(&peer("a", 1, Some("t"))), &Map::new()).unwrap();
        assert!(slot.text.contains(r#""primary_slot_name": "t""#), "{}", slot.text);
    }

    #[test]
    fn wait_for_a_change_fits_patronis_pace() {
        assert_eq!(until_told(10), Duration::from_secs(35));
        assert_eq!(until_told(30), Duration::from_secs(95));
    }

    #[test]
    fn parameters_merge_and_what_is_as_wanted_keeps_its_bytes() {
        let config =
            config(r#"{"ttl":  30, "postgresql": {"parameters": {"a": "1", "mine": "x"}}, "slots": {"s": {}}}"#);
        let wanted = desired(&json!({"ttl": 30, "postgresql": {"parameters": {"a": "2"}}, "slots": null}));
        let mending = mend(&config, None, &wanted).unwrap();
        assert_eq!(mending.text, r#"{"ttl":  30, "postgresql": {"parameters":{"a":"2","mine":"x"}}}"#);
        assert_eq!(mending.changes, ["postgresql", "slots"]);
        let again = self::config(&mending.text);
        assert!(mend(&again, None, &wanted).unwrap().changes.is_empty(), "a second run changes nothing");
    }
}
