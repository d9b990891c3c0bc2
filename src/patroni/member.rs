//! A member as Patroni describes it: the annotation `status` of its pod.

use anyhow::{Context, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};
use serde::{Deserialize, Serialize};
use tokio_postgres::config::Host;

use super::Scope;
use crate::{
    kubernetes::{Cluster, patiently},
    postgres::{Lsn, Timeline},
};

/// A member's role as Patroni names it. The pod's label is no source for it: its values differ by version and configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberRole {
    /// Leads and accepts writes (`master` before Patroni 4).
    #[serde(alias = "master")]
    Primary,
    /// On the way to lead: Patroni asked PostgreSQL for it, and says `primary` one round after it is done.
    Promoted,
    /// Leads a standby cluster.
    StandbyLeader,
    /// Follows.
    Replica,
    /// Any other word.
    #[serde(other)]
    Other,
}

/// What Patroni says of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The pod's name.
    pub name: String,
    /// Its role.
    pub role: MemberRole,
    /// PostgreSQL's state, such as `running`.
    pub state: String,
    /// PostgreSQL's host.
    pub host: String,
    /// PostgreSQL's port.
    pub port: u16,
    /// The timeline, where Patroni knows it.
    pub timeline: Option<Timeline>,
    /// The position written, or received and replayed, as Patroni last told.
    pub lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`; absent where neither is so, and always before Patroni 3.0.4.
    pub replication_state: Option<String>,
    /// Patroni's version.
    pub version: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    role: MemberRole,
    state: String,
    conn_url: String,
    timeline: Option<Timeline>,
    xlog_location: Option<u64>,
    replication_state: Option<String>,
    version: Option<String>,
}

impl Member {
    /// Whether Patroni would say `streaming` if it were so: it tells the replication state from 3.0.4 on.
    #[must_use]
    pub fn tells_replication_state(&self) -> bool {
        let numbers: Vec<u32> =
            self.version.as_deref().unwrap_or_default().split('.').map_while(|part| part.parse().ok()).collect();
        numbers.as_slice() >= [3, 0, 4].as_slice()
    }

    /// Reads a member's pod.
    pub async fn of_pod(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let api = cluster.api::<Pod>();
        let pod = patiently(|| api.get(name)).await.map_err(|error| cluster.explain("get", "Pod", name, error))?;
        let status = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get("status"))
            .with_context(|| format!("pod {name} has no annotation status: Patroni does not run in it (yet)"))?;
        Self::parse(name, status).with_context(|| format!("read annotation status of pod {name}"))
    }

    /// Reads all members of a cluster: the pods that Patroni wrote its status to, with the scope as the value of one of their labels
    /// (which label that is can be configured).
    pub async fn all(cluster: &Cluster, scope: &Scope) -> anyhow::Result<Vec<Self>> {
        let (api, parameters) = (cluster.api::<Pod>(), ListParams::default());
        let pods = patiently(|| api.list(&parameters)).await;
        let pods = pods.map_err(|error| cluster.explain("list", "pods", "all", error))?;
        let ours = |pod: &Pod| pod.labels().values().any(|value| *value == scope.0);
        let members = pods.items.iter().filter(|pod| ours(pod)).filter_map(|pod| {
            let (name, status) = (pod.name_any(), pod.annotations().get("status")?);
            Some(Self::parse(&name, status).with_context(|| format!("read annotation status of pod {name}")))
        });
        members.collect()
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let status: Status = serde_json::from_str(text)?;
        let url: tokio_postgres::Config = status.conn_url.parse().context("parse conn_url")?;
        let host = match url.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            _ => return Err(anyhow!("conn_url names no TCP host")),
        };
        Ok(Self {
            name: name.to_owned(),
            role: status.role,
            state: status.state,
            host,
            port: url.get_ports().first().copied().unwrap_or(5432),
            timeline: status.timeline,
            lsn: status.xlog_location.map(Lsn),
            replication_state: status.replication_state,
            version: status.version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_each_version_is_read() {
        let v4 = r#"{"conn_url":"postgres://10.88.2.5:5432/postgres","api_url":"http://10.88.2.5:8008/patroni","state":"running","role":"standby_leader","version":"4.0.7","xlog_location":100663296,"replication_state":"streaming","timeline":1}"#;
        let member = Member::parse("pg-0", v4).unwrap();
        assert_eq!((member.role, member.host.as_str(), member.port), (MemberRole::StandbyLeader, "10.88.2.5", 5432));
        assert_eq!((member.timeline, member.lsn), (Some(Timeline(1)), Some(Lsn(100_663_296))));
        assert!(member.tells_replication_state());
        let v3 = r#"{"conn_url":"postgres://[fd00::5]:5433/postgres","state":"running","role":"master"}"#;
        let member = Member::parse("pg-0", v3).unwrap();
        assert_eq!((member.role, member.host.as_str(), member.port), (MemberRole::Primary, "fd00::5", 5433));
        assert!(!member.tells_replication_state(), "an unknown version promises nothing");
        let other = r#"{"conn_url":"postgres://h/","state":"starting","role":"uninitialized"}"#;
        assert_eq!(Member::parse("pg-0", other).unwrap().role, MemberRole::Other);
        let promoted = r#"{"conn_url":"postgres://h/","state":"running","role":"promoted"}"#;
        assert_eq!(Member::parse("pg-0", promoted).unwrap().role, MemberRole::Promoted);
    }

    #[test]
    fn status_malformed_is_an_error() {
        for bad in ["", "{}", r#"{"role":"replica","state":"running","conn_url":"://"}"#] {
            assert!(Member::parse("pg-0", bad).is_err(), "{bad}");
        }
    }
}
