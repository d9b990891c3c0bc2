//! Patroni's records in Kubernetes, ConfigMap mode (Patroni documentation, "Using Patroni with Kubernetes").

mod config;
mod document;
mod leader;
mod member;

pub use config::{ClusterConfig, StandbyCluster};
pub use document::Document;
pub use leader::{LeaderRecord, LeaseWatch, leader_lsn, lease_stamp, renews_lease};
pub use member::{Member, MemberRole};

/// Names of Patroni's ConfigMaps for a scope, and of ours beside them.
#[derive(Debug, Clone)]
pub struct Scope(pub String);

impl Scope {
    /// The dynamic configuration, `initialize` and the history.
    #[must_use]
    pub fn config(&self) -> String {
        format!("{}-config", self.0)
    }

    /// The leader's lease.
    #[must_use]
    pub fn leader(&self) -> String {
        format!("{}-leader", self.0)
    }

    /// The state of the site: Lifeboat's own.
    #[must_use]
    pub fn state(&self) -> String {
        format!("{}-dr", self.0)
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if text.is_empty() || text.len() > 200 || !text.chars().all(fits) || text.starts_with(['-', '.']) {
            return Err(format!(
                "{text:?} is no Patroni scope: lower-case letters, digits, '-' and '.' name its ConfigMaps"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}
