//! ConfigMaps read as snapshots and written by compare-and-swap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Cluster, EventTarget, is_not_found, patiently};

/// A ConfigMap at one resource version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// What a later write is compared with.
    pub resource_version: String,
    /// Its annotations: here Patroni keeps its records.
    pub annotations: BTreeMap<String, String>,
    /// Its data.
    pub data: BTreeMap<String, String>,
}

impl Snapshot {
    /// The object for Events.
    #[must_use]
    pub fn event_target(&self) -> EventTarget {
        EventTarget { kind: "ConfigMap".to_owned(), name: self.name.clone(), uid: self.uid.clone() }
    }
}

/// Somebody else wrote first: observe again.
#[derive(Debug, thiserror::Error)]
#[error("ConfigMap {0} changed since it was read")]
pub struct Conflict(pub String);

impl Cluster {
    /// Reads a ConfigMap; `None` if it doesn't exist.
    pub async fn find_configmap(&self, name: &str) -> anyhow::Result<Option<Snapshot>> {
        let api = self.api::<ConfigMap>();
        match patiently(|| api.get(name)).await {
            Ok(map) => Ok(Some(map.into())),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(self.explain("get", "ConfigMap", name, error)),
        }
    }

    /// Reads a ConfigMap that must exist.
    pub async fn configmap(&self, name: &str) -> anyhow::Result<Snapshot> {
        let api = self.api::<ConfigMap>();
        let found = patiently(|| api.get(name)).await;
        found.map(Snapshot::from).map_err(|error| self.explain("get", "ConfigMap", name, error))
    }

    /// Creates a ConfigMap with one data key; fails with [`Conflict`] if somebody else was first.
    pub async fn create_configmap(&self, name: &str, key: &str, value: &str) -> anyhow::Result<Snapshot> {
        let map = ConfigMap {
            metadata: kube::core::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
            data: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..Default::default()
        };
        let (api, parameters) = (self.api::<ConfigMap>(), PostParams::default());
        match patiently(|| api.create(&parameters, &map)).await {
            Ok(map) => Ok(map.into()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(Conflict(name.to_owned()).into()),
            Err(error) => Err(self.explain("create", "ConfigMap", name, error)),
        }
    }

    /// Sets one annotation, provided that nobody wrote since the snapshot; fails with [`Conflict`] otherwise.
    pub async fn swap_annotation(&self, seen: &Snapshot, key: &str, value: &str) -> anyhow::Result<Snapshot> {
        self.swap(seen, json!({ "metadata": { "annotations": { key: value } } })).await
    }

    /// Sets one data key, and sets or removes annotations, provided that nobody wrote since the snapshot; fails with [`Conflict`]
    /// otherwise.
    pub async fn swap_data(
        &self,
        seen: &Snapshot,
        key: &str,
        value: &str,
        annotations: &[(&str, Option<&str>)],
    ) -> anyhow::Result<Snapshot> {
        // In a merge patch, null removes.
        let annotations: BTreeMap<&str, Option<&str>> = annotations.iter().copied().collect();
        self.swap(seen, json!({ "metadata": { "annotations": annotations }, "data": { key: value } })).await
    }

    /// A merge patch that carries the resource version is refused with 409 when it isn't the current one
    /// (Kubernetes API conventions, "Concurrency Control and Consistency").
    async fn swap(&self, seen: &Snapshot, mut patch: Value) -> anyhow::Result<Snapshot> {
        patch["metadata"]["resourceVersion"] = json!(seen.resource_version);
        let (api, parameters, patch) = (self.api::<ConfigMap>(), PatchParams::default(), Patch::Merge(&patch));
        match patiently(|| api.patch(&seen.name, &parameters, &patch)).await {
            Ok(map) => Ok(map.into()),
            Err(kube::Error::Api(status)) if status.code == 409 => Err(Conflict(seen.name.clone()).into()),
            Err(error) => Err(self.explain("patch", "ConfigMap", &seen.name, error)),
        }
    }
}

impl From<ConfigMap> for Snapshot {
    fn from(map: ConfigMap) -> Self {
        Self {
            name: map.name_any(),
            uid: map.uid().unwrap_or_default(),
            resource_version: map.resource_version().unwrap_or_default(),
            annotations: map.metadata.annotations.unwrap_or_default(),
            data: map.data.unwrap_or_default(),
        }
    }
}
