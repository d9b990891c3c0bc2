//! Before Patroni starts: its whole configuration, with `standby_cluster` where this site must be born as a standby.

use std::{fs, path::Path};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::info;

use super::Follow;
use crate::{
    cli::{Session, failure, misconfigured},
    intercom::Intercom,
    kubernetes::Cluster,
    outcome::{Refused, Report},
    patroni::ClusterConfig,
    postgres::ControlFile,
    probe::ProbeFacts,
    site::Phase,
};

/// What decides how a cluster is born.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts {
    /// Patroni's records of a cluster that exists already.
    pub config: ClusterConfig,
    /// Where the site stands by its record, apart from a hold.
    pub phase: Option<Phase>,
    /// The record says that this site must not lead.
    pub held: bool,
    /// What the data directory holds.
    pub data: Option<ControlFile>,
    /// What is met at the peer right now, where it could be asked.
    pub peer: Option<ProbeFacts>,
    /// Our own TLS options can't be used: whatever the peer is, it was not asked.
    pub no_tls: bool,
    /// A member of this site leads already, and renewed its lease while the peer was asked: this one would only follow it.
    pub led: bool,
    /// Whether the peer's database is what ours became later, by its history; not asked where its timeline is no higher.
    pub outlived: Option<bool>,
}

/// How.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Birth {
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

/// Patroni's own copy of its dynamic configuration, in the data directory.
const DYNAMIC: &str = "patroni.dynamic.json";

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
        let facts = Facts { config, phase, held, data, peer: None, no_tls: false, led: false, outlived: None };
        Ok(if self.fence && (held || facts.may_lead_twice()) { self.ask_peer(cluster, facts).await } else { facts })
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

    pub(super) fn decide_birth(&self, facts: &Facts) -> Birth {
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
            return self.decide_primary(facts);
        }
        self.decide_standby(facts)
    }

    /// A promoted site holds the accepted writes. Where they are gone, Patroni would make a new, empty database of the same name, and its
    /// clients would be sent there.
    fn decide_primary(&self, facts: &Facts) -> Birth {
        match facts.phase.filter(|phase| matches!(phase, Phase::Promoted | Phase::Promoting)) {
            None => Birth::AsItIs(format!("site {} is born as the primary", self.site)),
            Some(_) if facts.data.is_some() => {
                Birth::AsItIs(format!("site {} was promoted and stays the primary", self.site))
            }
            Some(phase) => {
                let place = self.data_dir.as_ref().map_or_else(
                    || "no data is known here (--data-dir is missing)".to_owned(),
                    |dir| format!("{} is empty", dir.display()),
                );
                Birth::Refused(format!(
                    "the record (ConfigMap {}) says that site {} is {phase}, but {place} and the cluster of scope {} is not initialized: an empty \
                     primary would be born. If another member has the data, wait: this one starts once that one leads. If the data is gone, \
                     delete that ConfigMap: the site is then born by its --role",
                    self.scope.state(),
                    self.site,
                    self.scope.0,
                ))
            }
        }
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
pub(super) mod tests {
    use super::*;
    use crate::{
        commands::follow::Role,
        postgres::{Credentials, SystemId, Timeline, TlsOptions},
    };

    pub fn follow(role: Role) -> Follow {
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
        let emptied = Facts { data: None, ..promoted.clone() };
        let exists = Facts { config, data: control, ..none.clone() };
        let decide = |role, facts: &Facts| follow(role).decide_birth(facts);
        assert_eq!(decide(Role::Standby, &none), Birth::Standby);
        assert!(matches!(decide(Role::Active, &none), Birth::AsItIs(_)));
        assert!(matches!(decide(Role::Standby, &data), Birth::Refused(_)), "an unknown database is never overwritten");
        assert!(matches!(decide(Role::Active, &data), Birth::AsItIs(_)));
        assert!(matches!(decide(Role::Standby, &promoted), Birth::AsItIs(_)), "a promoted site stays the primary");
        for role in [Role::Active, Role::Standby] {
            let Birth::Refused(why) = decide(role, &emptied) else { panic!("an empty primary is born") };
            assert!(why.contains("ConfigMap pg-dr") && why.contains("another member"), "{why}");
        }
        let text = Some("{}".to_owned());
        let config = ClusterConfig { text, ..ClusterConfig::default() };
        let promoting = Facts { phase: Some(Phase::Promoting), config, ..emptied.clone() };
        assert!(matches!(decide(Role::Standby, &promoting), Birth::Refused(_)), "its promotion was done already");
        let beside = Facts { config: exists.config.clone(), ..emptied };
        assert!(
            matches!(decide(Role::Standby, &beside), Birth::AsItIs(_)),
            "a new member beside one that has the data"
        );
        assert!(matches!(decide(Role::Standby, &exists), Birth::AsItIs(_)));
        let decided = Facts { phase: Some(Phase::Promoting), ..none.clone() };
        assert_eq!(decide(Role::Standby, &decided), Birth::Standby, "a promotion that is only decided made no primary");
        let following = Facts { phase: Some(Phase::Following), ..none };
        assert_eq!(decide(Role::Active, &following), Birth::Standby);
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
