//! The state record of a site in its ConfigMap.

use anyhow::{Context, bail};

use super::{Cluster, Snapshot};
use crate::{patroni::Scope, site::SiteRecord};

/// The data key of the record.
const KEY: &str = "state.json";

impl Cluster {
    /// Reads a site's record with the ConfigMap that it came from; `None` if there is neither. A record that can't be read is an
    /// error: to start anew would forget a promotion.
    pub async fn find_site_record(&self, scope: &Scope) -> anyhow::Result<Option<(SiteRecord, Snapshot)>> {
        let Some(map) = self.find_configmap(&scope.state()).await? else { return Ok(None) };
        Ok(parse(&map)?.map(|record| (record, map)))
    }

    /// Reads a site's record, or begins one.
    pub async fn site_record(&self, scope: &Scope, site: &str) -> anyhow::Result<(SiteRecord, Option<Snapshot>)> {
        let map = self.find_configmap(&scope.state()).await?;
        let record = map.as_ref().map(parse).transpose()?.flatten();
        match &record {
            Some(other) if other.site != site => {
                bail!("ConfigMap {} is the record of site {}, not of {site}", scope.state(), other.site)
            }
            _ => Ok((record.unwrap_or_else(|| SiteRecord::new(site)), map)),
        }
    }

    /// Writes a site's record, and sets or removes annotations of its ConfigMap, provided that nobody wrote since it was read.
    pub async fn write_site_record(
        &self,
        scope: &Scope,
        record: &SiteRecord,
        seen: Option<&Snapshot>,
        annotations: &[(&str, Option<&str>)],
    ) -> anyhow::Result<Snapshot> {
        let text = serde_json::to_string(record).context("write the state record")?;
        match seen {
            Some(map) => self.swap_data(map, KEY, &text, annotations).await,
            None => self.create_configmap(&scope.state(), KEY, &text).await,
        }
    }
}

/// The record in a ConfigMap; `None` where there is none yet.
fn parse(map: &Snapshot) -> anyhow::Result<Option<SiteRecord>> {
    let Some(text) = map.data.get(KEY).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let record: SiteRecord =
        serde_json::from_str(text).with_context(|| format!("read {KEY} of ConfigMap {}", map.name))?;
    if record.version != 1 {
        bail!("{KEY} of ConfigMap {} has version {}, this binary knows version 1", map.name, record.version);
    }
    Ok(Some(record))
}
