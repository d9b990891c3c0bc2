//! Kubernetes Events: what `kubectl describe` shows beside an object, for an hour.

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{api::PostParams, core::ObjectMeta};

use super::Cluster;
use crate::alerts::Severity;

/// The API server refuses longer notes ("events.k8s.io/v1": at most 1kB).
const MESSAGE_LIMIT: usize = 1024;

/// The object that an Event belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventTarget {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid: `kubectl describe` looks Events up by it.
    pub uid: String,
}

impl EventTarget {
    /// The pod that we run in, if the downward API says which.
    #[must_use]
    pub fn own_pod() -> Option<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Some(Self { kind: "Pod".to_owned(), name: variable("POD_NAME")?, uid: variable("POD_UID")? })
    }
}

impl Cluster {
    /// Creates an Event.
    pub async fn emit_event(
        &self,
        target: &EventTarget,
        reason: &str,
        severity: Severity,
        message: &str,
    ) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let mut message = message.to_owned();
        message.truncate(
            (0..=MESSAGE_LIMIT.min(message.len())).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0),
        );
        let event = Event {
            metadata: ObjectMeta {
                // Unique among the Events of one object, as client-go names them.
                name: Some(format!("{}.{:x}", target.name, now.as_nanosecond())),
                namespace: Some(self.namespace().to_owned()),
                ..Default::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some(target.kind.clone()),
                name: Some(target.name.clone()),
                namespace: Some(self.namespace().to_owned()),
                uid: Some(target.uid.clone()),
                ..Default::default()
            },
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(format!("{severity:?}")),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            source: Some(EventSource { component: Some("lifeboat".to_owned()), host: None }),
            ..Default::default()
        };
        self.api::<Event>().create(&PostParams::default(), &event).await.map(|_| ()).context("create an Event")
    }
}
