//! Patroni's dynamic configuration: the annotations of `<scope>-config`.

use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::Value;

use super::Document;
use crate::{
    kubernetes::Snapshot,
    postgres::{History, Lsn, Switch, SystemId, Timeline},
};

/// The annotation that holds the dynamic configuration.
const CONFIG: &str = "config";
/// The annotation that holds the system identifier, once the cluster was bootstrapped.
const INITIALIZE: &str = "initialize";
/// The annotation that holds the history of timelines.
const HISTORY: &str = "history";
/// What `sed s/standby_cluster/null/g` made of the key: a site that was promoted so has this instead.
const SED_LEFTOVER: &str = "null";

/// Where a standby cluster streams from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StandbyCluster {
    /// The peer's host.
    pub host: Option<String>,
    /// The peer's port.
    pub port: Option<u16>,
    /// The replication slot on the peer.
    pub slot: Option<String>,
}

impl StandbyCluster {
    /// Whether it leads to one host by streaming: only that can be corrected to another one. Patroni also takes a list of hosts
    /// (`a,b`), and an archive alone (`restore_command`).
    #[must_use]
    pub fn is_one_place(&self) -> bool {
        self.host.as_deref().is_some_and(|host| !host.is_empty() && !host.contains(','))
    }
}

/// What the dynamic configuration says, with its text for an edit that leaves all else alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The text of the annotation; none before the cluster was bootstrapped.
    pub text: Option<String>,
    /// Where the cluster streams from; none if it is no standby cluster.
    pub standby_cluster: Option<StandbyCluster>,
    /// The key `"null"` that an edit by `sed` left behind.
    pub sed_leftover: bool,
    /// Patroni is in maintenance mode (`pause`): it does nothing by itself.
    pub paused: bool,
    /// A leader that loses its API server goes on leading while it reaches all members (`failsafe_mode`).
    pub failsafe: bool,
    /// Seconds between two rounds of Patroni (`loop_wait`, 10 by default).
    pub loop_wait: u64,
    /// Seconds after which a lease that was not renewed is lost (`ttl`, 30 by default).
    pub ttl: u64,
    /// Seconds that Patroni tries a failing operation again (`retry_timeout`, 10 by default).
    pub retry_timeout: u64,
    /// The system identifier, once the cluster was bootstrapped.
    pub initialize: Option<SystemId>,
    /// The timeline after the last switch that Patroni wrote down (`history`).
    pub timeline: Option<Timeline>,
    /// All switches that Patroni wrote down.
    pub history: History,
}

impl ClusterConfig {
    /// The annotation that [`ClusterConfig::promoted`] is written to.
    pub const ANNOTATION: &'static str = CONFIG;

    /// Reads the annotations. A configuration that can't be read is an error, never an empty one.
    pub fn read(map: &Snapshot) -> anyhow::Result<Self> {
        let annotation = |key: &str| map.annotations.get(key).map(String::as_str).filter(|text| !text.is_empty());
        let initialize = annotation(INITIALIZE)
            .map(|text| text.parse().with_context(|| format!("read annotation initialize of ConfigMap {}", map.name)))
            .transpose()?;
        let mut config = match annotation(CONFIG) {
            Some(text) => {
                Self::parse(text).with_context(|| format!("read annotation config of ConfigMap {}", map.name))?
            }
            None => Self { loop_wait: 10, ttl: 30, retry_timeout: 10, ..Self::default() },
        };
        config.initialize = initialize;
        config.history = annotation(HISTORY).and_then(history_of).unwrap_or_default();
        config.timeline = config.history.0.last().map(|last| Timeline(last.timeline.0 + 1));
        Ok(config)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let document = Document::parse(text)?;
        let value: Value = serde_json::from_str(text)?;
        let seconds = |key: &str, default| match &value[key] {
            Value::Null => Ok(default),
            other => other.as_u64().or_else(|| other.as_str()?.parse().ok()).ok_or_else(|| anyhow!("{key} is {other}")),
        };
        Ok(Self {
            text: Some(text.to_owned()),
            standby_cluster: standby_cluster(&value["standby_cluster"])?,
            sed_leftover: document.get(SED_LEFTOVER).is_some(),
            paused: is_true(&value["pause"]),
            failsafe: is_true(&value["failsafe_mode"]),
            loop_wait: seconds("loop_wait", 10)?,
            ttl: seconds("ttl", 30)?,
            retry_timeout: seconds("retry_timeout", 10)?,
            initialize: None,
            timeline: None,
            history: History::default(),
        })
    }

    /// Time in which a leader that lives is seen to renew its lease: a round of Patroni, and a little.
    #[must_use]
    pub fn round(&self) -> Duration {
        Duration::from_secs(self.loop_wait + 5)
    }

    /// Why a lease that nobody renews does not say that the leader is gone, where that is so: it leads on without one (Patroni's
    /// documentation, "Pause/Resume mode" and "DCS Failsafe Mode").
    #[must_use]
    pub fn leads_without_lease(&self) -> Option<&'static str> {
        match (self.paused, self.failsafe) {
            (true, _) => Some("its Patroni is paused, so its leader may lead without renewing"),
            (_, true) => Some("its Patroni has failsafe_mode, so its leader may lead without renewing"),
            (false, false) => None,
        }
    }

    /// The text without `standby_cluster`: Patroni promotes the standby leader when it reads it.
    pub fn promoted(&self) -> anyhow::Result<String> {
        let text = self.text.as_deref().context("Patroni's configuration is not there yet")?;
        Ok(Document::parse(text)?.without("standby_cluster"))
    }

    /// The text with other members in `standby_cluster`; what is `None`, and all else, stays.
    pub fn following(&self, peer: &StandbyCluster) -> anyhow::Result<String> {
        let text = self.text.as_deref().context("Patroni's configuration is not there yet")?;
        let document = Document::parse(text)?;
        let standby = document.get("standby_cluster").context("the cluster is no standby cluster")?;
        let members = [
            ("host", peer.host.as_deref().map(Value::from)),
            ("port", peer.port.map(Value::from)),
            ("primary_slot_name", peer.slot.as_deref().map(Value::from)),
        ];
        let mut standby = standby.to_owned();
        for (key, value) in members {
            if let Some(value) = value {
                standby = Document::parse(&standby)?.with(key, &value.to_string());
            }
        }
        Ok(document.with("standby_cluster", &standby))
    }
}

/// What Patroni takes for true (Patroni: `parse_bool`).
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_i64() == Some(1),
        Value::String(text) => ["on", "true", "yes", "1"].contains(&text.to_lowercase().as_str()),
        _ => false,
    }
}

/// The history is a list of switches, each with the timeline that it ended and where (Patroni: `TimelineHistory`).
fn history_of(text: &str) -> Option<History> {
    let lines: Vec<Vec<Value>> = serde_json::from_str(text).ok()?;
    let switch = |line: &Vec<Value>| {
        let timeline = u32::try_from(line.first()?.as_u64()?).ok()?;
        Some(Switch { timeline: Timeline(timeline), at: Lsn(line.get(1)?.as_u64()?) })
    };
    lines.iter().map(switch).collect::<Option<_>>().map(History)
}

/// Patroni takes a cluster for a standby cluster if one of `host`, `port` and `restore_command` is set
/// (Patroni: `GlobalConfig.is_standby_cluster`).
fn standby_cluster(value: &Value) -> anyhow::Result<Option<StandbyCluster>> {
    let Some(object) = value.as_object() else {
        return if value.is_null() { Ok(None) } else { Err(anyhow!("standby_cluster is {value}, not an object")) };
    };
    let is_set =
        |key: &str| object.get(key).is_some_and(|value| !matches!(value, Value::Null) && value.as_str() != Some(""));
    if !["host", "port", "restore_command"].into_iter().any(is_set) {
        return Ok(None);
    }
    // Patroni takes the port as a number or as a string; a list of hosts goes with a list of ports.
    let port = match &object.get("port") {
        Some(Value::Number(number)) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let text = |key: &str| object.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    Ok(Some(StandbyCluster { host: text("host"), port, slot: text("primary_slot_name") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> anyhow::Result<ClusterConfig> {
        let mut map = Snapshot { name: "pg-config".into(), ..Snapshot::default() };
        map.annotations.insert("config".into(), config.into());
        map.annotations.insert("initialize".into(), "7000000000000000001".into());
        ClusterConfig::read(&map)
    }

    #[test]
    fn standby_cluster_is_what_patroni_takes_for_one() {
        for (text, host, port) in [
            (r#"{"standby_cluster": {"host": "h", "port": 36760}}"#, Some("h"), Some(36760)),
            (r#"{"standby_cluster": {"host": "h", "port": "36760"}}"#, Some("h"), Some(36760)),
            (r#"{"standby_cluster": {"restore_command": "cp"}}"#, None, None),
        ] {
            let standby = read(text).unwrap().standby_cluster.unwrap();
            assert_eq!((standby.host.as_deref(), standby.port), (host, port), "{text}");
        }
        for text in
            [r#"{"standby_cluster": {}}"#, r#"{"standby_cluster": null}"#, "{}", r#"{"standby_cluster": {"host": ""}}"#]
        {
            assert_eq!(read(text).unwrap().standby_cluster, None, "{text}");
        }
    }

    #[test]
    fn timeline_is_the_one_after_the_last_switch() {
        for (history, timeline) in [
            (r#"[[1,83886080,"no recovery target specified","2026-01-01T00:00:00+00:00","pg-0"],[2,9,"x"]]"#, Some(3)),
            ("[]", None),
            ("", None),
            ("{", None),
        ] {
            let mut map = Snapshot::default();
            map.annotations.insert("history".into(), history.into());
            assert_eq!(ClusterConfig::read(&map).unwrap().timeline, timeline.map(Timeline), "{history}");
        }
    }

    #[test]
    fn leader_that_may_lead_without_its_lease_is_known() {
        for (text, says) in [
            (r#"{"pause": true}"#, Some("paused")),
            (r#"{"pause": "on"}"#, Some("paused")),
            (r#"{"failsafe_mode": 1}"#, Some("failsafe_mode")),
            (r#"{"failsafe_mode": "True", "pause": false}"#, Some("failsafe_mode")),
            (r#"{"failsafe_mode": "off", "pause": null}"#, None),
            ("{}", None),
        ] {
            let why = read(text).unwrap().leads_without_lease();
            assert_eq!(
                why.map(|why| says.is_some_and(|word| why.contains(word))),
                says.map(|_| true),
                "{text}: {why:?}"
            );
        }
    }

    #[test]
    fn key_that_sed_renamed_is_understood_as_promoted() {
        let config = read(r#"{"ttl": 30, "null": {"host": "h", "port": 1}}"#).unwrap();
        assert!(config.sed_leftover);
        assert_eq!(config.standby_cluster, None);
    }

    #[test]
    fn configuration_malformed_is_an_error_and_never_an_empty_one() {
        for bad in ["{", "[]", "null", r#"{"standby_cluster": 5}"#, r#"{"ttl": "soon"}"#, r#"{"a":1,"a":1}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn promoted_and_following_change_only_the_standby_cluster() {
        let config = read(r#"{"ttl": 3e1,"standby_cluster": {"host": "h","port": 1,"primary_slot_name":"s"}, "x":1}"#)
            .unwrap_err();
        assert!(config.to_string().contains("config"), "a ttl that is no whole number is refused: {config:#}");
        let config =
            read(r#"{"ttl": 30,"standby_cluster": {"host": "h","port": 1,"primary_slot_name":"s"}, "x":1.50}"#)
                .unwrap();
        assert_eq!(config.promoted().unwrap(), r#"{"ttl": 30,"x":1.50}"#);
        assert_eq!(
            config.following(&StandbyCluster { host: Some("peer".into()), port: Some(2), slot: None }).unwrap(),
            r#"{"ttl": 30,"standby_cluster": {"host": "peer","port": 2,"primary_slot_name":"s"}, "x":1.50}"#
        );
    }
}
