//! Before Patroni starts: its whole configuration, with `standby_cluster` where this site must be born as a standby.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::info;

use super::{Follow, Role, running::ROUNDS};
use crate::{
    alerts::Alert,
    cli::{Session, failure, misconfigured},
    commands::pg_probe::probe_server,
    intercom::Intercom,
    kubernetes::{Cluster, Conflict},
    outcome::{Conclusion, Refused, Report},
    patroni::ClusterConfig,
    postgres::{ControlFile, Server, SystemId, Timeline},
    probe::ProbeFacts,
    site::Phase,
};

/// What decides how a cluster is born.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Patroni's records of a cluster that exists already.
    config: ClusterConfig,
    /// Where the site stands by its record, apart from a hold.
    phase: Option<Phase>,
    /// The record says that this site must not lead.
    held: bool,
    /// What the data directory holds.
    data: Option<ControlFile>,
    /// What is met at the peer right now, where it could be asked.
    peer: Option<ProbeFacts>,
}

/// How.
#[derive(Debug, PartialEq, Eq)]
enum Birth {
    /// The template as it is, and why.
    AsItIs(String),
    /// As the standby of its peer.
    Standby,
    /// Not at all: nobody knows whose data it is.
    Refused(String),
    /// Not at all: the peer leads with what was our data.
    Held(String),
    /// Not now: the peer lives, and may lead with what was our data.
    Unsure(String),
}

/// What the peer says of itself.
#[derive(Debug, PartialEq, Eq)]
enum Peer {
    /// Nothing: it could not be asked, or did not answer.
    Silent,
    /// It lives, and does not say what it is: it starts, refuses us, or is too slow.
    Untold,
    /// It leads, or is in recovery, with our own database.
    Ours { leads: bool, timeline: Timeline },
    /// It is no second one of us.
    Other,
}

/// The name of the alert about an old primary that is kept from leading.
const HELD: &str = "OldPrimaryHeld";
/// Time that the peer has to answer one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);
/// Looks at a peer that does not answer, before Patroni starts without its word: one may be lost on the way.
const LOOKS: u32 = 3;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(3);
/// Time that a peer which lives has to say what it is.
const UNTOLD: Duration = Duration::from_secs(30);
/// Patroni's own copy of its dynamic configuration, in the data directory.
const DYNAMIC: &str = "patroni.dynamic.json";

impl Facts {
    /// This site holds accepted writes of its own.
    fn was_promoted(&self) -> bool {
        matches!(self.phase, Some(Phase::Promoted | Phase::Promoting))
    }

    /// Our own database, if there is one.
    fn system_id(&self) -> Option<SystemId> {
        self.config.initialize.or(self.data.map(|data| data.system_id))
    }

    /// The newest timeline that we know of ourselves.
    fn timeline(&self) -> Timeline {
        self.config.timeline.max(self.data.map(|data| data.timeline)).unwrap_or(Timeline(1))
    }

    /// Whether this site would lead with a database that the peer may have too.
    fn may_lead_twice(&self) -> bool {
        !self.was_promoted() && self.config.standby_cluster.is_none() && self.system_id().is_some()
    }

    fn says(&self, probe: &ProbeFacts) -> Peer {
        let peer = &probe.peer;
        match (peer.in_recovery, peer.system_id, peer.timeline) {
            _ if !probe.verdict.is_alive() => Peer::Silent,
            (_, Some(theirs), _) if Some(theirs) != self.system_id() => Peer::Other,
            (Some(recovers), Some(_), Some(timeline)) => Peer::Ours { leads: !recovers, timeline },
            _ => Peer::Untold,
        }
    }
}

impl Follow {
    pub(super) async fn prepare_birth(&self, session: &Session) -> anyhow::Result<Report> {
        let cluster = session.cluster().await?;
        let facts = self.observe_birth(cluster).await?;
        let birth = self.decide_birth(&facts);
        if let Birth::Held(why) = birth {
            return Ok(self.report_hold(session, cluster, &facts, why).await);
        }
        if let Birth::Unsure(why) = birth {
            let mut report = failure("follow", anyhow!(why));
            session.tell("follow", &mut report, &self.scope, self.alert_repeat).await;
            return Ok(report);
        }
        if !session.dry_run && facts.held {
            self.record_hold(cluster, false).await?;
        }
        let (standby_cluster, reason) = match birth {
            Birth::Refused(why) | Birth::Held(why) | Birth::Unsure(why) => return Err(anyhow!(why).context(Refused)),
            Birth::AsItIs(why) => (None, why),
            Birth::Standby => {
                let (host, port) = self.peer()?;
                let reason = format!("site {} is born as the standby of {host}:{port}", self.site);
                (Some(self.standby_cluster(&host, port)), reason)
            }
        };
        let rendered = self.render(standby_cluster.as_ref())?;
        if session.dry_run {
            return Ok(Report::nothing_to_do(reason).with("standby_cluster", &standby_cluster));
        }
        if facts.config.initialize.is_none() {
            self.set_aside_old_configuration()?;
        }
        self.write_birth(&rendered)?;
        Ok(Report::done(reason).with("standby_cluster", &standby_cluster))
    }

    async fn observe_birth(&self, cluster: &Cluster) -> anyhow::Result<Facts> {
        let config = match cluster.find_configmap(&self.scope.config()).await? {
            Some(map) => ClusterConfig::read(&map)?,
            None => ClusterConfig::default(),
        };
        let record = cluster.find_site_record(&self.scope).await?.map(|(record, _)| record);
        let held = record.as_ref().is_some_and(|record| record.phase == Phase::Held);
        let phase = record.map(|record| record.standing());
        let data = self.data_dir.as_deref().map(ControlFile::find).transpose()?.flatten();
        let mut facts = Facts { config, phase, held, data, peer: None };
        if self.fence && (held || facts.may_lead_twice()) {
            facts.peer = self.ask_peer(&facts).await;
        }
        Ok(facts)
    }

    /// Looks at the peer right now: a pod that is held starts this step again and again, and the peer may change in between. A peer that can't
    /// be asked is no reason not to start; one that lives is asked until it says what it is, for a while.
    async fn ask_peer(&self, facts: &Facts) -> Option<ProbeFacts> {
        let look = async {
            let (host, port) = self.peer()?;
            let password = self.credentials.password(&host, port)?;
            let (credentials, tls) = (self.credentials.clone(), self.tls.clone());
            let (server, begun) = (Server { host, port, credentials, password, tls }, Instant::now());
            loop {
                let probe = probe_server(&server, LOOKS, PAUSE, LOOK_TIMEOUT).await;
                let met = Facts { peer: Some(probe.clone()), ..facts.clone() };
                let unsure = matches!(self.give_way(&met), Some(Birth::Unsure(_)));
                if !unsure || begun.elapsed() + PAUSE > UNTOLD {
                    return anyhow::Ok(probe);
                }
                info!("{}; asking again", probe.reason);
                tokio::time::sleep(PAUSE).await;
            }
        };
        look.await.map_err(|error| info!("the peer is not asked: {error:#}")).ok()
    }

    /// People must know, whether or not the record can be written.
    async fn report_hold(&self, session: &Session, cluster: &Cluster, facts: &Facts, why: String) -> Report {
        let recorded = if session.dry_run || facts.held { Ok(()) } else { self.record_hold(cluster, true).await };
        let why = match recorded {
            Ok(()) => why,
            Err(error) => {
                format!("{why}. That could not be recorded, so a start while the peer is silent would lead: {error:#}")
            }
        };
        let mut report = Report::new(Conclusion::Refused, why);
        report.alerts.push(Alert::warning(HELD, report.reason.clone()));
        session.tell("follow", &mut report, &self.scope, self.alert_repeat).await;
        report
    }

    /// The record says that this site must not lead, or no longer so.
    async fn record_hold(&self, cluster: &Cluster, held: bool) -> anyhow::Result<()> {
        for _ in 0..ROUNDS {
            let (mut record, map) = cluster.site_record(&self.scope, &self.site).await?;
            // Somebody promoted meanwhile: that is not ours to overwrite.
            if matches!(record.phase, Phase::Promoted | Phase::Promoting) || held == (record.phase == Phase::Held) {
                return Ok(());
            }
            let event = if held {
                "held: the peer leads with what was our data"
            } else {
                "no longer held: the peer does not lead"
            };
            record.note(Timestamp::now(), event);
            if held {
                record.hold_back();
            } else {
                record.let_go();
            }
            match cluster.write_site_record(&self.scope, &record, map.as_ref(), &[]).await {
                Err(error) if error.downcast_ref::<Conflict>().is_some() => {}
                result => return result.map(drop),
            }
        }
        bail!("ConfigMap {} kept changing under {ROUNDS} attempts", self.scope.state())
    }

    /// Without records of the cluster Patroni would take the configuration that an earlier one left in the data directory, with a peer of
    /// long ago perhaps. It stays beside it under another name.
    fn set_aside_old_configuration(&self) -> anyhow::Result<()> {
        let Some(old) = self.data_dir.as_ref().map(|dir| dir.join(DYNAMIC)) else { return Ok(()) };
        let aside = old.with_extension(format!("json.{}", Timestamp::now().as_second()));
        match fs::rename(&old, &aside) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("rename {}", old.display())),
            Ok(()) => {
                info!("{} of an earlier cluster is set aside as {}", old.display(), aside.display());
                Ok(())
            }
        }
    }

    /// Why this site must not start as it is: its peer leads with the same database, or may. A promoted site never gives way here. One that was
    /// held stays so until the peer is met and does not lead, or a person releases it.
    fn give_way(&self, facts: &Facts) -> Option<Birth> {
        // A promoted site holds the accepted writes: a number that the other branch reached by itself must not end it.
        if !self.fence || facts.was_promoted() {
            return None;
        }
        let says = facts.peer.as_ref().map_or(Peer::Silent, |probe| facts.says(probe));
        let place = facts.peer.as_ref().map_or("the peer", |probe| probe.host.as_str());
        let (site, timeline) = (&self.site, facts.timeline());
        if facts.held && matches!(says, Peer::Silent | Peer::Untold) {
            return Some(Birth::Held(format!(
                "site {site} was held, as its peer led with this database, and the peer can't be asked now: it may lead still. To lead here all the \
                 same, end the other site, then `lifeboat release`"
            )));
        }
        if facts.held && facts.system_id().is_none() && self.role == Role::Active {
            return Some(Birth::Held(format!(
                "site {site} was held as an old primary, and its data is gone: it would be born as a new primary. Make it the standby of its peer \
                 (runbook, \"The way back\"), or end the other site and `lifeboat release`"
            )));
        }
        if !facts.may_lead_twice() {
            return None;
        }
        match says {
            Peer::Silent | Peer::Other => None,
            Peer::Untold => Some(Birth::Unsure(format!(
                "the peer lives, and does not say whether it leads with this database: site {site} does not start beside it yet, and asks again. {}",
                facts.peer.as_ref().map_or("", |probe| probe.reason.as_str())
            ))),
            // A promotion leaves the higher timeline. On the same one nobody knows who is the older: two of the same are no choice.
            Peer::Ours { leads: true, timeline: theirs } => (theirs >= timeline).then(|| {
                Birth::Held(format!(
                    "{place} leads with this database on timeline {theirs} (ours is {timeline}): site {site} would be a second primary, and does \
                     not start. Nothing is changed. To follow the new primary, make this site its standby: runbook, \"The way back\". To lead \
                     again here, end the other site first"
                ))
            }),
            // A standby of ours follows our timelines and no other: this one was promoted, and a primary that restarts is in recovery for a while.
            Peer::Ours { leads: false, timeline: theirs } => (theirs > timeline).then(|| {
                let why = format!(
                    "{place} is in recovery on timeline {theirs} of this database (ours is {timeline}): it was promoted, or follows one that was, and \
                     may lead in a moment. Site {site} does not start beside it yet, and asks again"
                );
                if facts.held { Birth::Held(why) } else { Birth::Unsure(why) }
            }),
        }
    }

    fn decide_birth(&self, facts: &Facts) -> Birth {
        if let Some(birth) = self.give_way(facts) {
            // A site that would be born as a standby is no second primary.
            return if self.is_standby(facts.phase, &facts.config) && facts.config.initialize.is_none() {
                self.decide_standby(facts)
            } else {
                birth
            };
        }
        if let Some(id) = facts.config.initialize {
            return Birth::AsItIs(format!("the cluster exists (system id {id}): Patroni's own records rule"));
        }
        if !self.is_standby(facts.phase, &facts.config) {
            let why = if facts.phase.is_some_and(|phase| matches!(phase, Phase::Promoted | Phase::Promoting)) {
                "was promoted and stays the primary"
            } else {
                "is born as the primary"
            };
            return Birth::AsItIs(format!("site {} {why}", self.site));
        }
        self.decide_standby(facts)
    }

    fn decide_standby(&self, facts: &Facts) -> Birth {
        // Also for a complete copy whose pod was made anew before Patroni had written `initialize`, though Patroni would take it: of a copy that was
        // never started the control file says "in production", and there Patroni makes crash recovery without `standby.signal` (ha.py,
        // `recover` and `_handle_crash_recovery`), which leaves a fork of the peer.
        if facts.data.is_some() {
            let dir = self.data_dir.as_deref().unwrap_or(Path::new("PGDATA")).display();
            return Birth::Refused(format!(
                "{dir} holds a database, but the cluster of scope {} is not initialized: whose data it is can't be known. To make \
                 this site a new standby, delete its data volumes; to keep the data, restore the annotation initialize of ConfigMap {}",
                self.scope.0,
                self.scope.config()
            ));
        }
        Birth::Standby
    }

    fn standby_cluster(&self, host: &str, port: u16) -> Value {
        let mut value = json!({ "host": host, "port": port, "create_replica_methods": ["basebackup"] });
        if let Some(slot) = &self.slot {
            value["primary_slot_name"] = json!(slot);
        }
        value
    }

    /// The template with `bootstrap.dcs.standby_cluster`.
    fn render(&self, standby_cluster: Option<&Value>) -> anyhow::Result<String> {
        let template = self.template.as_deref().context("--template is missing")?;
        let text = fs::read_to_string(template).with_context(|| format!("read {}", template.display()));
        let mut value: Value = misconfigured(text.and_then(|text| {
            serde_json::from_str(&text).with_context(|| format!("parse {} as JSON", template.display()))
        }))?;
        let dcs = value.pointer_mut("/bootstrap/dcs").and_then(Value::as_object_mut);
        let dcs = misconfigured(dcs.with_context(|| format!("{} has no bootstrap.dcs", template.display())))?;
        if dcs.contains_key("standby_cluster") {
            return misconfigured(Err(anyhow!("{} already has a standby_cluster: it must not", template.display())));
        }
        if let Some(standby_cluster) = standby_cluster {
            dcs.insert("standby_cluster".to_owned(), standby_cluster.clone());
        }
        Ok(serde_json::to_string_pretty(&value)?)
    }

    /// Writes the files, then reads back what Patroni will read.
    fn write_birth(&self, rendered: &str) -> anyhow::Result<()> {
        let file = self.bootstrap_file.as_deref().context("--bootstrap-file is missing")?;
        let name = file.file_name().and_then(|name| name.to_str()).context("--bootstrap-file names no file")?;
        let folder = file.parent().unwrap_or(Path::new("."));
        Intercom::new(folder).write(name, rendered.as_bytes())?;
        if let Some(dir) = &self.passwd_dir {
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            let intercom = Intercom::new(dir);
            intercom.write("passwd", format!("postgres:x:{uid}:{gid}:PostgreSQL:/tmp:/sbin/nologin\n").as_bytes())?;
            intercom.write("group", format!("postgres:x:{gid}:\n").as_bytes())?;
        }
        if fs::read_to_string(file)? != rendered {
            bail!("{} does not hold what was written", file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::{Credentials, TlsOptions},
        probe::{PeerFacts, Verdict},
    };

    fn follow(role: Role) -> Follow {
        Follow {
            scope: "pg".parse().unwrap(),
            site: "golddr".into(),
            role,
            host: Some("pg-primary-gold".into()),
            port: Some(36760),
            port_file: None,
            slot: Some("golddr".into()),
            template: None,
            bootstrap_file: None,
            passwd_dir: None,
            data_dir: None,
            merge_file: None,
            probe_file: None,
            fence: true,
            credentials: Credentials { user: "replicator".into(), dbname: "postgres".into(), password_file: None },
            tls: TlsOptions::default(),
            facts_max_age: std::time::Duration::from_mins(1),
            alert_repeat: std::time::Duration::from_hours(1),
            wait: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn birth_follows_the_records_before_the_flag() {
        let none = Facts::default();
        let control = Some(ControlFile { system_id: SystemId(7), timeline: Timeline(2) });
        let config = ClusterConfig { initialize: Some(SystemId(7)), ..ClusterConfig::default() };
        let data = Facts { data: control, ..none.clone() };
        let promoted = Facts { phase: Some(Phase::Promoted), data: control, ..none.clone() };
        let exists = Facts { config, data: control, ..none.clone() };
        let decide = |role, facts: &Facts| follow(role).decide_birth(facts);
        assert_eq!(decide(Role::Standby, &none), Birth::Standby);
        assert!(matches!(decide(Role::Active, &none), Birth::AsItIs(_)));
        assert!(matches!(decide(Role::Standby, &data), Birth::Refused(_)), "an unknown database is never overwritten");
        assert!(matches!(decide(Role::Active, &data), Birth::AsItIs(_)));
        assert!(matches!(decide(Role::Standby, &promoted), Birth::AsItIs(_)), "a promoted site stays the primary");
        assert!(matches!(decide(Role::Standby, &exists), Birth::AsItIs(_)));
        let decided = Facts { phase: Some(Phase::Promoting), ..none.clone() };
        assert_eq!(decide(Role::Standby, &decided), Birth::Standby, "a promotion that is only decided made no primary");
        let following = Facts { phase: Some(Phase::Following), ..none };
        assert_eq!(decide(Role::Active, &following), Birth::Standby);
    }

    #[test]
    fn old_primary_whose_peer_leads_does_not_start() {
        let peer = |system_id, timeline, in_recovery| {
            let (system_id, timeline) = (Some(SystemId(system_id)), Some(Timeline(timeline)));
            let peer = PeerFacts { system_id, timeline, in_recovery: Some(in_recovery), lsn: None };
            Some(ProbeFacts { peer, ..ProbeFacts::of_verdict(Verdict::Healthy) })
        };
        let config =
            ClusterConfig { initialize: Some(SystemId(7)), timeline: Some(Timeline(2)), ..ClusterConfig::default() };
        let gold = |peer| Facts { config: config.clone(), peer, ..Facts::default() };
        let held = |facts: &Facts| matches!(follow(Role::Active).decide_birth(facts), Birth::Held(_));
        let starts = |facts: &Facts| matches!(follow(Role::Active).decide_birth(facts), Birth::AsItIs(_));
        assert!(held(&gold(peer(7, 3, false))), "the peer was promoted");
        assert!(held(&gold(peer(7, 2, false))), "the peer was promoted while we switched too");
        assert!(!held(&gold(peer(7, 1, false))), "the peer is the older one");
        assert!(!held(&gold(peer(7, 2, true))) && !held(&gold(peer(8, 3, false))) && !held(&gold(None)));
        let gone = peer(7, 3, false).map(|probe| ProbeFacts { verdict: Verdict::Unreachable, ..probe });
        assert!(starts(&gold(gone.clone())));
        // What was held stays so until the peer is met and does not lead, nor may in a moment.
        let was_held = |peer| Facts { held: true, phase: Some(Phase::Watching), ..gold(peer) };
        assert!(
            held(&was_held(gone))
                && held(&was_held(None))
                && held(&was_held(Some(ProbeFacts::of_verdict(Verdict::Rejected))))
        );
        assert!(held(&was_held(peer(7, 3, true))), "a promoted peer that restarts");
        assert!(starts(&was_held(peer(7, 2, true))) && starts(&was_held(peer(8, 3, false))));
        let promoted = |peer| Facts { phase: Some(Phase::Promoted), ..gold(peer) };
        for peer in
            [peer(7, 2, false), peer(7, 3, false), peer(7, 3, true), Some(ProbeFacts::of_verdict(Verdict::Rejected))]
        {
            assert!(starts(&promoted(peer)), "it holds the accepted writes");
        }
        let emptied = Facts { held: true, peer: peer(7, 3, false), ..Facts::default() };
        assert!(held(&emptied), "no new primary beside the peer");
        let followed = Facts { held: true, phase: Some(Phase::Following), peer: peer(7, 3, false), ..Facts::default() };
        assert_eq!(follow(Role::Active).decide_birth(&followed), Birth::Standby, "it was made a standby before");
        // Installed anew over kept volumes: Patroni's records are gone, the data directory tells who we were.
        let data = Some(ControlFile { system_id: SystemId(7), timeline: Timeline(2) });
        let kept = |peer| Facts { data, peer, ..Facts::default() };
        assert!(held(&kept(peer(7, 3, false))) && !held(&kept(peer(7, 3, true))));
        let standby = follow(Role::Standby);
        assert_eq!(standby.decide_birth(&Facts { peer: peer(7, 3, false), ..Facts::default() }), Birth::Standby);
        assert!(matches!(standby.decide_birth(&kept(peer(7, 3, false))), Birth::Refused(_)));
    }

    #[test]
    fn peer_that_lives_and_does_not_say_what_it_is_is_waited_for() {
        let peer = |timeline, in_recovery| {
            let peer = PeerFacts { system_id: Some(SystemId(7)), timeline, in_recovery, lsn: None };
            Some(ProbeFacts { peer, ..ProbeFacts::of_verdict(Verdict::Healthy) })
        };
        let config =
            ClusterConfig { initialize: Some(SystemId(7)), timeline: Some(Timeline(2)), ..ClusterConfig::default() };
        let gold = |peer| Facts { config: config.clone(), peer, ..Facts::default() };
        let birth = |facts: &Facts| follow(Role::Active).decide_birth(facts);
        for peer in [
            Some(ProbeFacts::of_verdict(Verdict::Rejected)),
            Some(ProbeFacts::of_verdict(Verdict::Starting)),
            Some(ProbeFacts::of_verdict(Verdict::Healthy)),
            peer(None, Some(false)),
            peer(Some(Timeline(3)), None),
            peer(Some(Timeline(3)), Some(true)),
        ] {
            assert!(matches!(birth(&gold(peer.clone())), Birth::Unsure(_)), "{peer:?}");
            let unfenced = Follow { fence: false, ..follow(Role::Active) };
            assert!(matches!(unfenced.decide_birth(&gold(peer.clone())), Birth::AsItIs(_)));
            // Neither who has nothing to lead with nor who follows is a second primary.
            let new = Facts { peer: peer.clone(), ..Facts::default() };
            assert!(matches!(birth(&new), Birth::AsItIs(_)), "{peer:?}");
            assert_eq!(follow(Role::Standby).decide_birth(&new), Birth::Standby);
            let mut follows = gold(peer);
            follows.config.standby_cluster = Some(crate::patroni::StandbyCluster::default());
            assert!(matches!(birth(&follows), Birth::AsItIs(_)));
        }
        for verdict in [Verdict::Unreachable, Verdict::Misconfigured, Verdict::Unknown] {
            assert!(matches!(birth(&gold(Some(ProbeFacts::of_verdict(verdict)))), Birth::AsItIs(_)), "{verdict}");
        }
    }

    #[test]
    fn configuration_of_an_earlier_cluster_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let follow = Follow { data_dir: Some(dir.path().into()), ..follow(Role::Active) };
        follow.set_aside_old_configuration().unwrap();
        fs::write(dir.path().join(DYNAMIC), "{}").unwrap();
        follow.set_aside_old_configuration().unwrap();
        let names: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.len() == 1 && names[0].starts_with("patroni.dynamic.json."), "{names:?}");
    }

    #[test]
    fn template_is_rendered_with_the_standby_cluster_and_without_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"scope":"pg","bootstrap":{"dcs":{"ttl":30}}}"#).unwrap();
        let follow = Follow { template: Some(file.path().into()), ..follow(Role::Standby) };
        let standby = follow.standby_cluster("pg-primary-gold", 36760);
        let rendered: Value = serde_json::from_str(&follow.render(Some(&standby)).unwrap()).unwrap();
        assert_eq!(
            rendered["bootstrap"]["dcs"]["standby_cluster"],
            json!({"host":"pg-primary-gold","port":36760,"create_replica_methods":["basebackup"],"primary_slot_name":"golddr"})
        );
        let rendered: Value = serde_json::from_str(&follow.render(None).unwrap()).unwrap();
        assert_eq!(rendered, json!({"scope":"pg","bootstrap":{"dcs":{"ttl":30}}}));
        for bad in ["", "{}", r#"{"bootstrap":{"dcs":{"standby_cluster":{}}}}"#] {
            fs::write(file.path(), bad).unwrap();
            assert!(follow.render(None).is_err(), "{bad}");
        }
    }
}
