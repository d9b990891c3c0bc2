//! The leader's lease: the annotations of `<scope>-leader`.

use std::time::{Duration, Instant};

use super::Scope;
use crate::{
    kubernetes::{Cluster, Snapshot},
    postgres::Lsn,
};

/// Between two looks at a lease that is watched.
const POLL: Duration = Duration::from_secs(1);

/// Who holds the lease, and the stamp that it renews.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderRecord {
    /// The member's name, which is its pod's name.
    pub leader: String,
    /// When the holder last renewed, by its own clock. Compare two readings with each other, not with our clock.
    pub renew_time: String,
}

/// The leader's write position, as it last told (`optime`, bytes).
#[must_use]
pub fn leader_lsn(map: &Snapshot) -> Option<Lsn> {
    map.annotations.get("optime")?.parse().ok().map(Lsn)
}

/// The stamp of the last renewal, by the clock of who renewed. It stays when the lease is given up, and changes with whoever takes
/// it (Patroni: `delete_leader`, `attempt_to_acquire_leader` in `dcs/kubernetes.py`).
#[must_use]
pub fn lease_stamp(map: &Snapshot) -> Option<String> {
    map.annotations.get("renewTime").filter(|text| !text.is_empty()).cloned()
}

impl LeaderRecord {
    /// Reads the annotations; none while nobody holds the lease.
    #[must_use]
    pub fn read(map: &Snapshot) -> Option<Self> {
        let annotation = |key: &str| map.annotations.get(key).filter(|text| !text.is_empty()).cloned();
        Some(Self { leader: annotation("leader")?, renew_time: lease_stamp(map).unwrap_or_default() })
    }
}

/// When the lease was last seen to be renewed, by our own clock, over many looks at it.
#[derive(Debug, Default)]
pub struct LeaseWatch {
    last: Option<Sight>,
}

#[derive(Debug)]
struct Sight {
    record: LeaderRecord,
    since: Instant,
    /// The stamp changed while we watched, under the same leader; the first sight says nothing.
    renewed: bool,
}

impl LeaseWatch {
    /// Takes a look into account.
    pub fn see(&mut self, record: Option<&LeaderRecord>, now: Instant) {
        let Some(record) = record else {
            self.last = None;
            return;
        };
        let renewed = match &self.last {
            Some(last) if last.record == *record => return,
            Some(last) => last.record.leader == record.leader,
            None => false,
        };
        self.last = Some(Sight { record: record.clone(), since: now, renewed });
    }

    /// Whether this leader was seen to renew its lease within this time.
    #[must_use]
    pub fn renewed_within(&self, leader: &str, limit: Duration, now: Instant) -> bool {
        self.holds_until(leader, limit).is_some_and(|end| now <= end)
    }

    /// Until when this leader's lease of this time to live holds, if it was seen to renew it.
    #[must_use]
    pub fn holds_until(&self, leader: &str, ttl: Duration) -> Option<Instant> {
        let last = self.last.as_ref().filter(|last| last.record.leader == leader && last.renewed)?;
        Some(last.since + ttl)
    }
}

/// Watches the lease until this leader is seen to renew it, for at most this time; whether it was. What its pod says of itself stays
/// when it dies, and the stamp's age says nothing: it is written by another clock.
pub async fn renews_lease(cluster: &Cluster, scope: &Scope, leader: &str, limit: Duration) -> anyhow::Result<bool> {
    let (mut watch, begun) = (LeaseWatch::default(), Instant::now());
    loop {
        let read = cluster.configmap(&scope.leader()).await.map(|map| LeaderRecord::read(&map));
        if let Ok(record) = &read {
            watch.see(record.as_ref(), Instant::now());
        }
        if watch.renewed_within(leader, limit, Instant::now()) {
            return Ok(true);
        }
        if begun.elapsed() >= limit {
            return read.map(|_| false);
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_fresh_when_its_stamp_was_seen_to_change_lately() {
        let record = |leader: &str, stamp: &str| LeaderRecord { leader: leader.into(), renew_time: stamp.into() };
        let (mut watch, limit, start) = (LeaseWatch::default(), Duration::from_secs(15), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        watch.see(Some(&record("a", "1")), at(0));
        assert!(!watch.renewed_within("a", limit, at(0)), "one look is none");
        watch.see(Some(&record("a", "2")), at(5));
        watch.see(Some(&record("a", "2")), at(10));
        assert!(watch.renewed_within("a", limit, at(20)) && !watch.renewed_within("a", limit, at(21)));
        assert!(!watch.renewed_within("b", limit, at(10)));
        watch.see(Some(&record("b", "3")), at(12));
        assert!(!watch.renewed_within("b", limit, at(12)), "a new leader has yet to renew");
        watch.see(None, at(13));
        assert!(!watch.renewed_within("b", limit, at(13)));
    }
}
