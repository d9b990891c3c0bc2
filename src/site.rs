//! The state of a site: what it remembers between runs (contracts: ConfigMap `<scope>-dr`).

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    postgres::{Lsn, SystemId, Timeline},
    probe::Path,
};

/// The audit keeps this many events.
const AUDIT_LIMIT: usize = 50;

/// Annotation: no promotion while it is there; its value says why.
pub const HOLD: &str = "lifeboat/hold";
/// Annotation: an operator's word for the promotion to this epoch.
pub const APPROVE: &str = "lifeboat/approve";
/// Annotation: no promotion before this time (RFC 3339).
pub const MAINTENANCE: &str = "lifeboat/maintenance-until";

/// Where the site stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The peer answers.
    #[default]
    Watching,
    /// The peer is unreachable, not yet long enough or not surely enough.
    Suspect,
    /// Everything is ready for promotion but an operator's word.
    AwaitingApproval,
    /// A promotion was decided and is not verified yet.
    Promoting,
    /// This site leads since its last promotion.
    Promoted,
    /// This site must not lead.
    Held,
    /// This site was made a standby again.
    Following,
}

impl Phase {
    /// The monitor does not reach the peer, and has not promoted this site yet.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Suspect | Self::AwaitingApproval | Self::Promoting)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Watching => "watching",
            Self::Suspect => "suspect",
            Self::AwaitingApproval => "awaiting-approval",
            Self::Promoting => "promoting",
            Self::Promoted => "promoted",
            Self::Held => "held",
            Self::Following => "following",
        })
    }
}

/// The peer as the last good probe saw it, beside our own position then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    /// When.
    pub time: Timestamp,
    /// The peer's system identifier.
    pub system_id: SystemId,
    /// The peer's timeline.
    pub timeline: Timeline,
    /// The peer's write position.
    pub peer_lsn: Lsn,
    /// Our own received position, if our leader could be asked.
    pub local_lsn: Option<Lsn>,
    /// Which way the peer was asked: through its API server its position is Patroni's word, up to a round old.
    #[serde(default, skip_serializing_if = "Path::is_usual")]
    pub path: Path,
}

impl LastGood {
    /// Bytes that we had not received; none if our own position wasn't known.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        self.local_lsn.map(|local| self.peer_lsn.bytes_since(local))
    }
}

/// A promotion, decided or done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// When it was decided.
    pub decided: Timestamp,
    /// Who decided: `auto`, `approved`, `confirmed`, or `observed` where somebody else did it.
    pub by: String,
    /// Why, with overrides.
    pub reason: String,
    /// The timeline before.
    pub from_timeline: Option<Timeline>,
    /// Our own received position before.
    pub lsn: Option<Lsn>,
    /// The timeline after, once verified.
    pub to_timeline: Option<Timeline>,
    /// When it was verified.
    pub verified: Option<Timestamp>,
    /// Guards that a person set aside: a run that finishes this promotion sets them aside too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<String>,
    /// When people were told that it is verified; until then each run tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announced: Option<Timestamp>,
}

impl Promotion {
    /// Who decided, where somebody else did it.
    pub const OBSERVED: &str = "observed";
}

/// The peer's lease as its own API server showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerLease {
    /// Who holds it; nobody if absent.
    pub leader: Option<String>,
    /// The holder's stamp, by its own clock.
    pub renew_time: Option<String>,
    /// Since when it is seen so, by our clock.
    pub since: Timestamp,
    /// When somebody was last seen to renew it, by our clock. The first sight says nothing: it may have been so for years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Timestamp>,
    /// Whose it is: system identifier, namespace and scope. What was seen of another one says nothing of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When.
    pub time: Timestamp,
    /// What happened.
    pub event: String,
}

/// The last alert that was sent, so that it isn't sent again each minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastAlert {
    /// Its kind.
    pub kind: String,
    /// When it was sent.
    pub time: Timestamp,
}

/// Alerts about an outage: each outage is told of its own.
const OUTAGE: [&str; 3] = ["PeerUnreachable", "PromotionRefused", "AwaitingApproval"];

/// Older news of a promotion are none: an upgrade to a version that keeps what was told does not tell it again.
const NEWS_LAST: SignedDuration = SignedDuration::from_hours(24);

/// The whole record. What a newer version wrote and this one does not know is kept as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRecord {
    /// The schema's version, 1.
    pub version: u8,
    /// The site's name.
    pub site: String,
    /// Counts this site's promotions.
    pub epoch: u64,
    /// Where the site stands.
    pub phase: Phase,
    /// Unreachable attempts in a row.
    pub failures: u32,
    /// The first of them.
    pub first_failure: Option<Timestamp>,
    /// The last of them.
    pub last_failure: Option<Timestamp>,
    /// The last good probe.
    pub last_good: Option<LastGood>,
    /// The current or last promotion.
    pub promotion: Option<Promotion>,
    /// What happened, newest last.
    pub audit: VecDeque<AuditEvent>,
    /// The last alert.
    pub last_alert: Option<LastAlert>,
    /// When an alert of each kind was last delivered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alerts: BTreeMap<String, Timestamp>,
    /// When each witness, by its address, last saw the peer alive: only one that could see it can tell that it is gone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub witnesses: BTreeMap<String, Timestamp>,
    /// The peer's lease by the second path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_lease: Option<PeerLease>,
    /// Where the site stood before it was held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_hold: Option<Phase>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl SiteRecord {
    /// The record of a site that nothing is known of yet.
    #[must_use]
    pub fn new(site: &str) -> Self {
        Self {
            version: 1,
            site: site.to_owned(),
            epoch: 0,
            phase: Phase::Watching,
            failures: 0,
            first_failure: None,
            last_failure: None,
            last_good: None,
            promotion: None,
            audit: VecDeque::new(),
            last_alert: None,
            alerts: BTreeMap::new(),
            witnesses: BTreeMap::new(),
            peer_lease: None,
            before_hold: None,
            unknown: Map::new(),
        }
    }

    /// Where the site stands apart from a hold: a hold makes no other site of it.
    #[must_use]
    pub fn standing(&self) -> Phase {
        if self.phase == Phase::Held { self.before_hold.unwrap_or_default() } else { self.phase }
    }

    /// This site must not lead, until [`SiteRecord::let_go`].
    pub fn hold_back(&mut self) {
        self.before_hold = Some(self.standing());
        self.phase = Phase::Held;
    }

    /// Back to where it stood before it was held.
    pub fn let_go(&mut self) {
        self.phase = self.standing();
        self.before_hold = None;
    }

    /// Adds a line to the audit and drops the oldest beyond the limit.
    pub fn note(&mut self, time: Timestamp, event: impl Into<String>) {
        self.audit.push_back(AuditEvent { time, event: event.into() });
        while self.audit.len() > AUDIT_LIMIT {
            self.audit.pop_front();
        }
    }

    /// Forgets the failures: the peer answered.
    pub fn reset_failures(&mut self) {
        (self.failures, self.first_failure, self.last_failure) = (0, None, None);
    }

    /// The epoch that the next promotion has. One that is decided but not verified keeps its own.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        if self.phase == Phase::Promoting { self.epoch } else { self.epoch + 1 }
    }

    /// Whether this record says more than one read before: something else than newer sights of a living peer that are no worse, or sights that
    /// are newer by this time. A greater lag is never kept back.
    #[must_use]
    pub fn tells_more_than(&self, before: &Self, age: Duration) -> bool {
        let mut same = self.clone();
        same.last_good.clone_from(&before.last_good);
        same.witnesses.clone_from(&before.witnesses);
        same.peer_lease.clone_from(&before.peer_lease);
        let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        let newer = |now: Timestamp, then: Timestamp| now.duration_since(then) >= age;
        let better = match (&self.last_good, &before.last_good) {
            (Some(now), Some(then)) => {
                newer(now.time, then.time)
                    || (now.system_id, now.timeline) != (then.system_id, then.timeline)
                    || now.lag() > then.lag()
            }
            (now, then) => now != then,
        };
        let others = self.witnesses.len() != before.witnesses.len()
            || self.witnesses.iter().any(|(url, now)| before.witnesses.get(url).is_none_or(|then| newer(*now, *then)));
        let lease = match (&self.peer_lease, &before.peer_lease) {
            (Some(now), Some(then)) => {
                now.leader != then.leader
                    || now.of != then.of
                    || now.renewed.is_some() != then.renewed.is_some()
                    || newer(now.since, then.since)
            }
            (now, then) => now.is_some() != then.is_some(),
        };
        same != *before || better || others || lease
    }

    /// Whether people know of this already: told of the same kind within `repeat`; of an outage, since it began. Of each promotion they
    /// are told once, and of what happens once (`PeerMoved`) each time.
    #[must_use]
    pub fn knows_alert(&self, kind: &str, now: Timestamp, repeat: Duration) -> bool {
        match kind {
            "Promoted" => return self.promotion.as_ref().is_some_and(|promotion| promotion.announced.is_some()),
            "PeerMoved" => return false,
            "PeerBack" => return !self.owes_all_clear(),
            _ => {}
        }
        let repeat = SignedDuration::try_from(repeat).unwrap_or(SignedDuration::MAX);
        let of_this_outage =
            |time: Timestamp| !OUTAGE.contains(&kind) || self.first_failure.is_none_or(|first| time >= first);
        self.told(kind).is_some_and(|time| now.duration_since(time) < repeat && of_this_outage(time))
    }

    /// Whether people were told of an outage, and not yet that it is over.
    #[must_use]
    pub fn owes_all_clear(&self) -> bool {
        let last = OUTAGE.iter().filter_map(|kind| self.told(kind)).max();
        last.is_some_and(|last| self.told("PeerBack").is_none_or(|told| told < last))
    }

    /// Whether a promotion took place lately that people were not told of.
    #[must_use]
    pub fn has_news(&self, now: Timestamp) -> bool {
        let untold = self.promotion.as_ref().filter(|promotion| promotion.announced.is_none());
        untold.and_then(|promotion| promotion.verified).is_some_and(|time| now.duration_since(time) < NEWS_LAST)
    }

    /// Keeps that people were told.
    pub fn remember_alert(&mut self, kind: &str, now: Timestamp) {
        self.last_alert = Some(LastAlert { kind: kind.to_owned(), time: now });
        self.alerts.insert(kind.to_owned(), now);
        if kind == "Promoted"
            && let Some(promotion) = &mut self.promotion
        {
            promotion.announced = Some(now);
        }
    }

    fn told(&self, kind: &str) -> Option<Timestamp> {
        let last = self.last_alert.as_ref().filter(|last| last.kind == kind).map(|last| last.time);
        self.alerts.get(kind).copied().max(last)
    }

    /// Who besides this site last saw the peer alive, and when: one of these witnesses, or its own API server.
    #[must_use]
    pub fn seen_alive(&self, trusted: impl Fn(&str) -> bool) -> Option<(Timestamp, &str)> {
        let lease = self.peer_lease.as_ref().and_then(|lease| Some((lease.renewed?, "its own API server")));
        let witnesses = self.witnesses.iter().filter(|(url, _)| trusted(url));
        witnesses.map(|(url, time)| (*time, url.as_str())).chain(lease).max()
    }

    /// Leaves `promoting` without a promotion: the epoch counts only those that took place.
    pub fn call_off(&mut self, phase: Phase) {
        if self.phase == Phase::Promoting {
            self.epoch = self.epoch.saturating_sub(1);
        }
        self.phase = phase;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_written_as_in_the_contract() {
        let text = serde_json::to_string(&SiteRecord::new("golddr")).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"site":"golddr","epoch":0,"phase":"watching","failures":0,"first_failure":null,"last_failure":null,"last_good":null,"promotion":null,"audit":[],"last_alert":null}"#
        );
    }

    #[test]
    fn newer_sights_alone_are_written_only_when_they_are_much_newer() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let good = |second| {
            let (system_id, timeline, peer_lsn) = (SystemId(7), Timeline(1), Lsn(9));
            let (local_lsn, path) = (Some(Lsn(9)), Path::default());
            Some(LastGood { time: at(second), system_id, timeline, peer_lsn, local_lsn, path })
        };
        let before = SiteRecord { last_good: good(0), ..SiteRecord::new("golddr") };
        let after = |second| SiteRecord { last_good: good(second), ..before.clone() };
        let age = Duration::from_secs(20);
        assert!(!after(19).tells_more_than(&before, age));
        assert!(after(20).tells_more_than(&before, age));
        let mut behind = after(5);
        behind.last_good.as_mut().unwrap().peer_lsn = Lsn(10);
        assert!(behind.tells_more_than(&before, age), "a greater lag is written at once");
        assert!(
            !after(24).tells_more_than(&SiteRecord { last_good: behind.last_good, ..before.clone() }, age),
            "a smaller one waits"
        );
        assert!(SiteRecord { failures: 1, ..after(5) }.tells_more_than(&before, age));
        assert!(after(5).tells_more_than(&SiteRecord::new("golddr"), age));
        let seen = |second| SiteRecord { witnesses: [("w".to_owned(), at(second))].into(), ..after(5) };
        assert!(seen(5).tells_more_than(&before, age), "a first sight");
        assert!(!seen(24).tells_more_than(&seen(5), age));
        assert!(seen(25).tells_more_than(&seen(5), age), "though the last good probe stands still");
    }

    #[test]
    fn site_that_is_let_go_stands_where_it_stood_before() {
        let mut record = SiteRecord { phase: Phase::Following, ..SiteRecord::new("gold") };
        record.hold_back();
        record.hold_back();
        assert_eq!((record.phase, record.standing()), (Phase::Held, Phase::Following));
        record.let_go();
        assert_eq!((record.phase, record.before_hold), (Phase::Following, None));
        let mut older = SiteRecord { phase: Phase::Held, ..SiteRecord::new("gold") };
        older.let_go();
        assert_eq!(older.phase, Phase::Watching, "a record that does not tell");
    }

    #[test]
    fn alert_of_each_kind_is_known_for_an_hour_and_in_its_outage() {
        let (mut record, hour) = (SiteRecord::new("golddr"), Duration::from_hours(1));
        let at = |minutes| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        assert!(!record.knows_alert("PromotionRefused", at(0), hour));
        record.first_failure = Some(at(0));
        record.remember_alert("PromotionRefused", at(1));
        record.remember_alert("ProbeBlind", at(2));
        assert!(record.knows_alert("PromotionRefused", at(60), hour), "another kind in between does not make it new");
        assert!(!record.knows_alert("PromotionRefused", at(61), hour));
        assert!(!record.knows_alert("AwaitingApproval", at(3), hour), "a change is told at once");
        record.first_failure = Some(at(5));
        assert!(!record.knows_alert("PromotionRefused", at(6), hour), "the next outage is told at once");
        record.remember_alert("PeerMoved", at(7));
        assert!(!record.knows_alert("PeerMoved", at(8), hour), "it moved again");
    }

    #[test]
    fn all_clear_is_owed_until_it_is_told() {
        let mut record = SiteRecord::new("golddr");
        let at = |minutes| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        record.remember_alert("ProbeBlind", at(0));
        assert!(!record.owes_all_clear(), "that was no outage");
        record.remember_alert("PromotionRefused", at(1));
        record.remember_alert("ProbeBlind", at(2));
        assert!(record.owes_all_clear());
        record.remember_alert("PeerBack", at(3));
        assert!(!record.owes_all_clear());
        record.remember_alert("AwaitingApproval", at(4));
        assert!(record.owes_all_clear());
        assert!(!record.knows_alert("PeerBack", at(5), Duration::from_hours(1)), "the second outage within the hour");
    }

    #[test]
    fn fields_of_a_newer_version_are_kept() {
        let mut value = serde_json::to_value(SiteRecord::new("golddr")).unwrap();
        value["from_the_future"] = serde_json::json!({"a": [1]});
        let record: SiteRecord = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&record).unwrap(), value);
    }

    #[test]
    fn audit_keeps_the_newest_fifty() {
        let mut record = SiteRecord::new("golddr");
        for number in 0..60 {
            record.note(Timestamp::UNIX_EPOCH, format!("event {number}"));
        }
        assert_eq!(record.audit.len(), 50);
        assert_eq!(record.audit.back().unwrap().event, "event 59");
    }
}
