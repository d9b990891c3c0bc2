//! The leader's lease: the annotations of `<scope>-leader`.

use crate::kubernetes::Snapshot;

/// Who holds the lease, and the stamp that it renews.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    /// The member's name, which is its pod's name.
    pub leader: String,
    /// When the holder last renewed, by its own clock. Compare two readings with each other, not with our clock.
    pub renew_time: String,
}

impl LeaderRecord {
    /// Reads the annotations; none while nobody holds the lease.
    #[must_use]
    pub fn read(map: &Snapshot) -> Option<Self> {
        let annotation = |key: &str| map.annotations.get(key).filter(|text| !text.is_empty()).cloned();
        Some(Self { leader: annotation("leader")?, renew_time: annotation("renewTime").unwrap_or_default() })
    }
}
