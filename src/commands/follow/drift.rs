//! In each run of the monitor: where the peer's Service was made anew with another port, replication follows it.
//!
//! A tunnel that is made again gets a port of its own choice. The probe finds it and is content, while the standby goes on knocking
//! at the old one: the site would fall behind silently.

use std::{path::Path, time::Instant};

use anyhow::anyhow;
use jiff::Timestamp;
use serde_json::Map;
use tracing::{info, warn};

use super::{
    Follow,
    running::{Mending, ROUNDS, ROUNDS_UNTIL_TOLD, leaves, mend, told, until_told},
};
use crate::{
    cli::{Session, failure},
    intercom::read_facts,
    kubernetes::{Cluster, Conflict},
    outcome::{Refused, Report},
    patroni::{ClusterConfig, StandbyCluster},
    probe::{ProbeFacts, Verdict},
    site::Phase,
};

/// What is to be done about where the standby streams from.
#[derive(Debug, PartialEq, Eq)]
enum Drift {
    /// Rightly nothing.
    Nothing(String),
    /// It leads elsewhere than to the peer that was just met.
    Correct(Mending),
    /// What was met is not our peer.
    Refuse(String),
}

impl Follow {
    /// Corrects what drifted, and tells people.
    pub(super) async fn mend_drift(&self, session: &Session, probe: &Path) -> anyhow::Result<Report> {
        let probe: ProbeFacts = match read_facts(probe, Timestamp::now(), self.facts_max_age) {
            Ok(probe) => probe,
            Err(error) => return Ok(Report::nothing_to_do(format!("without a probe nothing is corrected: {error:#}"))),
        };
        let result = self.correct(session, session.cluster().await?, &probe).await;
        let mut report = result.unwrap_or_else(|error| failure("follow", error));
        session.tell("follow", &mut report, &self.scope, self.alert_repeat).await;
        Ok(report)
    }

    async fn correct(&self, session: &Session, cluster: &Cluster, probe: &ProbeFacts) -> anyhow::Result<Report> {
        for _ in 0..ROUNDS {
            let map = cluster.configmap(&self.scope.config()).await?;
            let config = ClusterConfig::read(&map)?;
            let phase = cluster.find_site_record(&self.scope).await?.map(|(record, _)| record.phase);
            let mending = match decide(&config, phase, probe, self.slot.as_deref())? {
                Drift::Nothing(why) => return Ok(Report::nothing_to_do(why)),
                Drift::Refuse(why) => return Err(anyhow!(why).context(Refused)),
                Drift::Correct(mending) => mending,
            };
            if session.dry_run {
                return Ok(Report::nothing_to_do("dry run").with("changes", &mending.changes));
            }
            match cluster.swap_annotation(&map, ClusterConfig::ANNOTATION, &mending.text).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => continue,
                result => result?,
            };
            info!("changed {}", mending.changes.join(", "));
            self.note(cluster, &mending.changes).await;
            let deadline = Instant::now() + self.wait.max(until_told(config.loop_wait));
            let look = async {
                self.wait_for_rounds(session, cluster, ROUNDS_UNTIL_TOLD, deadline).await?;
                self.wait_until_it_works(session, cluster, &config, deadline).await
            };
            return told(phase, look.await, &mending.changes);
        }
        Err(anyhow!("ConfigMap {} kept changing under {ROUNDS} attempts; run it again", self.scope.config()))
    }

    /// A line in the audit. The change itself is done: what can't be noted fails nothing.
    async fn note(&self, cluster: &Cluster, changes: &[String]) {
        let event = format!("changed {}: the peer was met there", changes.join(", "));
        for _ in 0..3 {
            let written = match cluster.find_site_record(&self.scope).await {
                Ok(Some((mut record, map))) => {
                    record.note(Timestamp::now(), event.as_str());
                    cluster.write_site_record(&self.scope, &record, Some(&map), &[]).await
                }
                Ok(None) => return,
                Err(error) => Err(error),
            };
            match written {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => {}
                Err(error) => return warn!("{event}; not noted in the record: {error:#}"),
                Ok(_) => return,
            }
        }
    }
}

/// Only a living primary with our own system identifier is worth following.
fn decide(
    config: &ClusterConfig,
    phase: Option<Phase>,
    probe: &ProbeFacts,
    slot: Option<&str>,
) -> anyhow::Result<Drift> {
    let nothing = |why: &str| Ok(Drift::Nothing(why.to_owned()));
    let (Some(now), Some(ours)) = (&config.standby_cluster, config.initialize) else {
        return nothing("this site streams from nowhere: it leads, or is not initialized yet");
    };
    if matches!(phase, Some(Phase::Promoting | Phase::Promoted)) {
        return nothing("this site is about to lead");
    }
    if !now.is_one_place() {
        return Ok(Drift::Nothing(leaves(now)));
    }
    let (Verdict::Healthy, Some(port)) = (probe.verdict, probe.port) else {
        return Ok(Drift::Nothing(format!("the peer was not met: {}", probe.reason)));
    };
    let place = format!("{}:{port}", probe.host);
    let peer = StandbyCluster { host: Some(probe.host.clone()), port: Some(port), slot: slot.map(str::to_owned) };
    let mending = mend(config, Some(&peer), &Map::new())?;
    if mending.changes.is_empty() {
        return Ok(Drift::Nothing(format!("this site streams from {place}, where the peer is")));
    }
    let before = format!("{}:{}", now.host.as_deref().unwrap_or("?"), now.port.unwrap_or_default());
    Ok(match (probe.peer.system_id, probe.peer.in_recovery) {
        (Some(theirs), _) if theirs != ours => Drift::Refuse(format!(
            "{place} is another database (system id {theirs}, ours is {ours}): this site goes on following {before}; correct the \
             peer's Service"
        )),
        (Some(_), Some(false)) => Drift::Correct(mending),
        (Some(_), _) => Drift::Nothing(format!("{place} is in recovery itself: this site goes on following {before}")),
        (None, _) => {
            Drift::Nothing(format!("the probe did not learn who {place} is: this site goes on following {before}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kubernetes::Snapshot, postgres::SystemId, probe::PeerFacts};

    fn config(text: &str) -> ClusterConfig {
        let mut map = Snapshot::default();
        map.annotations.insert("config".into(), text.into());
        map.annotations.insert("initialize".into(), "7".into());
        ClusterConfig::read(&map).unwrap()
    }

    fn probe(port: u16, system_id: u64) -> ProbeFacts {
        let peer = PeerFacts { system_id: Some(SystemId(system_id)), in_recovery: Some(false), ..PeerFacts::default() };
        ProbeFacts { host: "gold".into(), port: Some(port), peer, ..ProbeFacts::of_verdict(Verdict::Healthy) }
    }

    const STANDBY: &str = r#"{"standby_cluster": {"host": "gold", "port": 1, "primary_slot_name": "golddr"}}"#;

    #[test]
    fn port_that_changed_is_followed_only_to_our_own_living_primary() {
        let decide =
            |probe: &ProbeFacts| decide(&config(STANDBY), Some(Phase::Watching), probe, Some("golddr")).unwrap();
        assert!(matches!(decide(&probe(1, 7)), Drift::Nothing(_)), "nothing drifted");
        let Drift::Correct(mending) = decide(&probe(2, 7)) else { panic!("it drifted") };
        assert_eq!(mending.text, STANDBY.replace(": 1,", ": 2,"));
        assert!(matches!(decide(&probe(2, 8)), Drift::Refuse(_)), "another database");
        let mut unknown = probe(2, 7);
        unknown.peer = PeerFacts::default();
        assert!(matches!(decide(&unknown), Drift::Nothing(_)));
        let mut recovers = probe(2, 7);
        recovers.peer.in_recovery = Some(true);
        assert!(matches!(decide(&recovers), Drift::Nothing(_)));
        for verdict in [Verdict::Unreachable, Verdict::Starting, Verdict::Rejected, Verdict::Unknown] {
            assert!(matches!(decide(&ProbeFacts { verdict, ..probe(2, 7) }), Drift::Nothing(_)), "{verdict}");
        }
    }

    #[test]
    fn standby_of_several_hosts_or_of_an_archive_is_never_rewritten() {
        for text in [
            r#"{"standby_cluster": {"host": "gold,silver", "port": 1}}"#,
            r#"{"standby_cluster": {"host": "gold,silver", "port": "1,1"}}"#,
            r#"{"standby_cluster": {"restore_command": "cp /a/%f %p"}}"#,
            r#"{"standby_cluster": {"restore_command": "cp /a/%f %p", "port": 1}}"#,
        ] {
            let drift = decide(&config(text), Some(Phase::Watching), &probe(2, 7), None).unwrap();
            let Drift::Nothing(why) = drift else { panic!("{text}: {drift:?}") };
            assert!(why.contains("is left as it is"), "{text}: {why}");
        }
    }

    #[test]
    fn site_that_leads_or_is_about_to_is_left_alone() {
        for (text, phase) in [
            ("{}", Phase::Promoted),
            (r#"{"null": {"host": "gold", "port": 1}}"#, Phase::Watching),
            (STANDBY, Phase::Promoting),
        ] {
            let drift = decide(&config(text), Some(phase), &probe(2, 7), None).unwrap();
            assert!(matches!(drift, Drift::Nothing(_)), "{text}: {drift:?}");
        }
    }
}
