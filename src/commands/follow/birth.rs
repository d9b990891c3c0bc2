//! Before Patroni starts: its whole configuration, with `standby_cluster` where this site must be born as a standby.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::info;

use super::{Follow, Role, running::ROUNDS};
use crate::{
    alerts::Alert,
    cli::{Session, misconfigured},
    commands::pg_probe::probe_server,
    intercom::Intercom,
    kubernetes::{Cluster, Conflict},
    outcome::{Conclusion, Refused, Report},
    patroni::ClusterConfig,
    postgres::{ControlFile, Server, Timeline},
    probe::{ProbeFacts, Verdict},
    site::Phase,
};

/// What decides how a cluster is born.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// Patroni's records of a cluster that exists already.
    config: ClusterConfig,
    phase: Option<Phase>,
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
}

/// The name of the alert about an old primary that is kept from leading.
const HELD: &str = "OldPrimaryHeld";
/// Time that the peer has to answer before Patroni starts without its word.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Patroni's own copy of its dynamic configuration, in the data directory.
const DYNAMIC: &str = "patroni.dynamic.json";

impl Follow {
    pub(super) async fn prepare_birth(&self, session: &Session) -> anyhow::Result<Report> {
        let cluster = session.cluster().await?;
        let facts = self.observe_birth(cluster).await?;
        let birth = self.decide_birth(&facts);
        let held = matches!(birth, Birth::Held(_));
        if !session.dry_run && held != (facts.phase == Some(Phase::Held)) {
            self.record_hold(cluster, held).await?;
        }
        let (standby_cluster, reason) = match birth {
            Birth::Refused(why) => return Err(anyhow!(why).context(Refused)),
            Birth::Held(why) => {
                let mut report = Report::new(Conclusion::Refused, why);
                report.alerts.push(Alert::warning(HELD, report.reason.clone()));
                session.tell("follow", &mut report, &self.scope, self.alert_repeat).await;
                return Ok(report);
            }
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
        let phase = cluster.find_site_record(&self.scope).await?.map(|(record, _)| record.phase);
        let data = self.data_dir.as_deref().map(ControlFile::find).transpose()?.flatten();
        let peer = if self.fence { self.probe_peer().await } else { None };
        Ok(Facts { config, phase, data, peer })
    }

    /// Looks at the peer right now: a pod that is held starts this step again and again, and the peer may change in between. A peer that can't
    /// be asked is no reason not to start.
    async fn probe_peer(&self) -> Option<ProbeFacts> {
        let look = async {
            let (host, port) = self.peer()?;
            let password = self.credentials.password(&host, port)?;
            let (credentials, tls) = (self.credentials.clone(), self.tls.clone());
            let server = Server { host, port, credentials, password, tls };
            anyhow::Ok(probe_server(&server, 1, Duration::ZERO, PROBE_TIMEOUT).await)
        };
        look.await.map_err(|error| info!("the peer is not asked: {error:#}")).ok()
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
            record.phase = if held { Phase::Held } else { Phase::Watching };
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

    /// Why this site must not start as it is: its peer leads with the same database. A site that was promoted never gives way here. One that was
    /// held stays so until the peer is met and does not lead, or a person releases it.
    fn peer_leads(&self, facts: &Facts) -> Option<String> {
        // A promoted site holds the accepted writes: a number that the other branch reached by itself must not end it.
        if matches!(facts.phase, Some(Phase::Promoted | Phase::Promoting)) {
            return None;
        }
        let met =
            facts.peer.as_ref().filter(|probe| probe.verdict == Verdict::Healthy && probe.peer.in_recovery.is_some());
        let Some(peer) = met else {
            let was_held = self.fence && facts.phase == Some(Phase::Held);
            return was_held.then(|| {
                format!(
                    "site {} was held, as its peer led with this database, and the peer can't be asked now: it may lead still. To lead here all the \
                     same, end the other site, then `lifeboat release`",
                    self.site
                )
            });
        };
        let ours = facts.config.initialize.or(facts.data.map(|data| data.system_id));
        if facts.phase == Some(Phase::Held) && ours.is_none() && self.role == Role::Active {
            return Some(format!(
                "site {} was held as an old primary, and its data is gone: it would be born as a new primary. Make it the standby of its peer \
                 (runbook, \"The way back\"), or end the other site and `lifeboat release`",
                self.site
            ));
        }
        if facts.config.standby_cluster.is_some() || ours.is_none() || peer.peer.system_id != ours {
            return None;
        }
        let theirs = peer.peer.timeline.filter(|_| peer.peer.in_recovery == Some(false))?;
        let timeline = facts.config.timeline.max(facts.data.map(|data| data.timeline)).unwrap_or(Timeline(1));
        let newer = theirs >= timeline;
        newer.then(|| {
            format!(
                "{} leads with this database on timeline {theirs} (ours is {timeline}): site {} would be a second primary, and does not start. \
                 Nothing is changed. To follow the new primary, make this site its standby: runbook, \"The way back\". To lead again here, end \
                 the other site first",
                peer.host, self.site
            )
        })
    }

    fn decide_birth(&self, facts: &Facts) -> Birth {
        if let Some(why) = self.peer_leads(facts) {
            return if self.is_standby(facts.phase, &facts.config) && facts.config.initialize.is_none() {
                self.decide_standby(facts)
            } else {
                Birth::Held(why)
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
        postgres::{Credentials, SystemId, TlsOptions},
        probe::PeerFacts,
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
        assert!(held(&gold(peer(7, 3, false))), "the peer was promoted");
        assert!(held(&gold(peer(7, 2, false))), "the peer was promoted while we switched too");
        assert!(!held(&gold(peer(7, 1, false))), "the peer is the older one");
        assert!(!held(&gold(peer(7, 3, true))) && !held(&gold(peer(8, 3, false))) && !held(&gold(None)));
        let gone = peer(7, 3, false).map(|probe| ProbeFacts { verdict: Verdict::Unreachable, ..probe });
        assert!(!held(&gold(gone.clone())));
        // What was held stays so until the peer is met and does not lead.
        let was_held = |peer| Facts { phase: Some(Phase::Held), ..gold(peer) };
        assert!(held(&was_held(gone)) && held(&was_held(None)) && !held(&was_held(peer(7, 3, true))));
        let promoted = |peer| Facts { phase: Some(Phase::Promoted), ..gold(peer) };
        assert!(
            !held(&promoted(peer(7, 2, false))) && !held(&promoted(peer(7, 3, false))),
            "it holds the accepted writes"
        );
        let emptied = Facts { phase: Some(Phase::Held), peer: peer(7, 3, false), ..Facts::default() };
        assert!(held(&emptied), "no new primary beside the peer");
        // Installed anew over kept volumes: Patroni's records are gone, the data directory tells who we were.
        let data = Some(ControlFile { system_id: SystemId(7), timeline: Timeline(2) });
        let kept = |peer| Facts { data, peer, ..Facts::default() };
        assert!(held(&kept(peer(7, 3, false))) && !held(&kept(peer(7, 3, true))));
        let standby = follow(Role::Standby);
        assert_eq!(standby.decide_birth(&Facts { peer: peer(7, 3, false), ..Facts::default() }), Birth::Standby);
        assert!(matches!(standby.decide_birth(&kept(peer(7, 3, false))), Birth::Refused(_)));
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
