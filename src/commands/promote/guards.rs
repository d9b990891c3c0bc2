//! The guards: each one reason not to promote. Evidence that is absent is unknown, and unknown refuses.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::decide::{Facts, Mode, Policy, enough_failures};
use crate::{
    flags::{Size, human},
    outcome::Evidence,
    patroni::MemberRole,
    postgres::{Lsn, SystemId, Timeline},
    probe::{self, Verdict},
    site::{PeerLease, SiteRecord},
};

/// The guards' names. `--override` takes those that can be set aside: a person's decision asks for no probe anyway, and where no
/// standby leads there is nothing to promote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Guard {
    /// The probe says, this time too, that the peer is unreachable.
    #[value(skip)]
    Peer,
    /// Enough failures over enough time.
    #[value(skip)]
    Failures,
    /// This site really is a standby.
    #[value(skip)]
    Standby,
    /// A local leader lives.
    Leader,
    /// The local WAL receiver hears nothing.
    WalReceiver,
    /// Little enough was missing at the last good probe.
    Lag,
    /// The peer's system identifier is ours.
    SystemId,
    /// Our timeline descends from the peer's.
    Timeline,
    /// Every witness answers, is blind too, and saw the peer right before the outage.
    Witness,
    /// The peer's own API server shows a lease that nobody has renewed for its time to live.
    SecondPath,
    /// Somebody besides the two sites was asked.
    #[value(skip)]
    ThirdParty,
    /// No operator holds.
    Hold,
    /// No maintenance.
    Maintenance,
    /// The last promotion is long enough ago.
    Cooldown,
    /// Patroni isn't paused.
    Paused,
    /// The record doesn't contradict.
    Record,
}

impl Guard {
    /// Its name in evidence and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Failures => "failures",
            Self::Standby => "standby",
            Self::Leader => "leader",
            Self::WalReceiver => "wal-receiver",
            Self::Lag => "lag",
            Self::SystemId => "system-id",
            Self::Timeline => "timeline",
            Self::Witness => "witness",
            Self::SecondPath => "second-path",
            Self::ThirdParty => "third-party",
            Self::Hold => "hold",
            Self::Maintenance => "maintenance",
            Self::Cooldown => "cooldown",
            Self::Paused => "paused",
            Self::Record => "record",
        }
    }
}

/// What SQL on the local leader says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Local {
    /// The leader's pod.
    pub member: String,
    /// The system identifier.
    pub system_id: Option<SystemId>,
    /// In recovery.
    pub in_recovery: Option<bool>,
    /// The timeline received, or replayed last.
    pub timeline: Option<Timeline>,
    /// The furthest position received or replayed.
    pub lsn: Option<Lsn>,
    /// The WAL receiver.
    pub receiver: Receiver,
}

/// The WAL receiver as `pg_stat_wal_receiver` shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Receiver {
    /// None is connected.
    Absent,
    /// It is connected.
    Heard {
        /// Its last message came this long ago.
        ago: Duration,
        /// `wal_receiver_timeout`: after half of it without a message, the receiver asks the peer for one. Zero: never.
        timeout: Duration,
    },
    /// It is there, but we may not see its columns, or nothing could be asked.
    #[default]
    Unknown,
}

/// Patroni's word on the local leader, the second source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberFacts {
    /// Its role.
    pub role: MemberRole,
    /// PostgreSQL's state.
    pub state: String,
    /// `streaming` or another word; absent before Patroni 3.0.4.
    pub replication_state: Option<String>,
}

/// Whether the local leader's lease was seen to be renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lease {
    /// It changed while we watched.
    Renewed,
    /// It did not change in this time.
    Stale(Duration),
    /// Not watched.
    #[default]
    Unknown,
}

/// What one witness said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessFacts {
    /// Its address.
    pub url: String,
    /// Its own verdict on the peer, or why there is none.
    pub said: Result<Verdict, String>,
}

/// What the peer's own API server shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondPath {
    /// The context that leads there.
    pub context: String,
    /// The leader's lease with the time since when it has been so, over all runs; or why it could not be read.
    pub lease: Result<PeerLease, String>,
    /// The lease's time to live: a leader renews it more often than that.
    pub ttl: Duration,
    /// How long this run has watched it as it is, by a clock that nobody sets.
    pub watched: Duration,
    /// How long this run must watch it at least: a living leader comes round in that time. A step of the clock may make what earlier
    /// runs saw look older than it is.
    pub round: Duration,
    /// Why a lease that nobody renews says nothing there, where that is so.
    pub leads_without: Option<&'static str>,
    /// The system identifier of the cluster there: Patroni's `initialize`.
    pub system_id: Option<SystemId>,
}

impl SecondPath {
    /// How long nobody has renewed the lease, as far as is known. Without a stamp a renewal can't be seen: of a lease that somebody
    /// holds that is nothing, of one that nobody holds what this run watched, as somebody may have held it between two runs.
    #[must_use]
    pub fn unrenewed(&self, now: Timestamp) -> Duration {
        match &self.lease {
            Ok(PeerLease { renew_time: Some(_), since, .. }) => {
                Duration::try_from(now.duration_since(*since)).unwrap_or_default().max(self.watched)
            }
            Ok(PeerLease { leader: None, .. }) => self.watched,
            Err(_) | Ok(PeerLease { leader: Some(_), .. }) => Duration::ZERO,
        }
    }

    /// Whether the cluster there is the one with this system identifier.
    #[must_use]
    pub fn is_of(&self, ours: Option<SystemId>) -> bool {
        ours.is_some() && self.system_id == ours
    }

    /// Whether the lease says that nobody leads there.
    #[must_use]
    pub fn is_dead(&self, now: Timestamp) -> bool {
        self.leads_without.is_none() && self.unrenewed(now) >= self.ttl && self.watched >= self.round
    }
}

/// Everything that the guards ask for.
#[derive(Debug, Clone)]
pub struct GuardFacts {
    /// SQL on the local leader, or why it could not be asked.
    pub local: Result<Local, String>,
    /// Patroni's word on it, or why there is none.
    pub member: Result<MemberFacts, String>,
    /// The local lease.
    pub lease: Lease,
    /// Every witness.
    pub witnesses: Vec<WitnessFacts>,
    /// The second path, where one is configured.
    pub second_path: Option<SecondPath>,
    /// The annotation `lifeboat/hold`.
    pub hold: Option<String>,
    /// The annotation `lifeboat/maintenance-until`.
    pub maintenance: Option<String>,
    /// The annotation `lifeboat/approve`.
    pub approval: Option<String>,
}

/// Asks every guard. `record` already counts the present probe.
#[must_use]
pub fn guards(facts: &Facts, record: &SiteRecord, policy: &Policy) -> Vec<Evidence> {
    let mut all = Vec::new();
    if facts.confirm.is_none() {
        all.push(peer(facts));
        all.push(failures(record, policy));
    }
    all.extend([
        standby(facts),
        leader(&facts.guard),
        wal_receiver(&facts.guard, policy),
        lag(facts, record, policy),
        system_id(facts, record),
        timeline(&facts.guard, record),
    ]);
    all.extend(facts.guard.witnesses.iter().map(|said| witness(said, facts, record, policy)));
    all.extend(facts.guard.second_path.as_ref().map(|path| second_path(path, facts, record, policy)));
    if facts.confirm.is_none() && policy.mode == Mode::Auto {
        all.push(third_party(facts, policy));
    }
    all.extend([
        hold(&facts.guard),
        maintenance(&facts.guard, facts.now),
        cooldown(record, facts.now, policy),
        paused(facts),
        consistent(record),
    ]);
    if let Some(confirm) = &facts.confirm {
        for evidence in all.iter_mut().filter(|evidence| !evidence.passed) {
            if confirm.overrides.iter().any(|guard| guard.name() == evidence.guard && *guard != Guard::Standby) {
                evidence.passed = true;
                evidence.found = format!("{} (set aside: {})", evidence.found, confirm.reason);
            }
        }
    }
    all
}

fn evidence(guard: Guard, passed: bool, found: impl Into<String>, required: impl Into<String>) -> Evidence {
    Evidence::new(guard.name(), passed, found, required)
}

fn peer(facts: &Facts) -> Evidence {
    let required = "the peer is unreachable in this run";
    match &facts.probe {
        Ok(probe) => evidence(Guard::Peer, probe.verdict == Verdict::Unreachable, &probe.reason, required),
        Err(why) => evidence(Guard::Peer, false, why, required),
    }
}

fn failures(record: &SiteRecord, policy: &Policy) -> Evidence {
    let found = match (record.first_failure, record.last_failure) {
        (Some(first), Some(last)) => format!("{} failures from {first:.0} to {last:.0}", record.failures),
        _ => "no failures".to_owned(),
    };
    let required = format!("{} over {}", policy.failures, human(policy.span));
    evidence(Guard::Failures, enough_failures(record, policy), found, required)
}

fn standby(facts: &Facts) -> Evidence {
    let required = "standby_cluster configured, and the local leader in recovery";
    let configured = facts.config.standby_cluster.is_some();
    let (recovers, found) = match (&facts.guard.local, &facts.guard.member) {
        (Ok(Local { in_recovery: Some(yes), member, .. }), _) => {
            (*yes, format!("{member} is {}in recovery", if *yes { "" } else { "not " }))
        }
        (_, Ok(member)) => (
            member.role == MemberRole::StandbyLeader && member.state == "running",
            format!("Patroni's status: {:?}, {}", member.role, member.state),
        ),
        (Err(why), Err(_)) | (Ok(_), Err(why)) => (false, format!("unknown: {why}")),
    };
    evidence(Guard::Standby, configured && recovers, found, required)
}

fn leader(facts: &GuardFacts) -> Evidence {
    let required = "a local leader that renews its lease";
    let (passed, found) = match (&facts.member, facts.lease) {
        (Err(why), _) => (false, why.clone()),
        (Ok(_), Lease::Renewed) => (true, "the lease is renewed".to_owned()),
        (Ok(_), Lease::Stale(time)) => (false, format!("the lease was not renewed within {}", human(time))),
        (Ok(_), Lease::Unknown) => (false, "the lease was not watched".to_owned()),
    };
    evidence(Guard::Leader, passed, found, required)
}

fn wal_receiver(facts: &GuardFacts, policy: &Policy) -> Evidence {
    let mut required = format!("no message from the peer for {}", human(policy.receiver_silence));
    let by_patroni = facts.member.as_ref().ok().and_then(|member| member.replication_state.as_deref());
    let (passed, found) = match (&facts.local, by_patroni) {
        (Ok(Local { receiver: Receiver::Absent, .. }), _) => (true, "no WAL receiver is connected".to_owned()),
        (Ok(Local { receiver: Receiver::Heard { ago, timeout }, .. }), _) => {
            // An idle peer that lives may keep silent until the receiver asks, and then has the same time to answer.
            let needed = policy.receiver_silence.max(*timeout);
            required = format!("no message from the peer for {}", human(needed));
            let asked = !timeout.is_zero();
            let never = if asked { "" } else { "; wal_receiver_timeout is 0, so silence says nothing" };
            (asked && *ago >= needed, format!("the last message came {} ago{never}", human(*ago)))
        }
        (_, Some("streaming")) => (false, "Patroni's status: streaming".to_owned()),
        (_, Some(other)) => (true, format!("Patroni's status: {other}")),
        (Err(why), None) => (false, format!("unknown: {why}")),
        (Ok(_), None) => (false, "unknown: the columns of pg_stat_wal_receiver need the role pg_monitor".to_owned()),
    };
    evidence(Guard::WalReceiver, passed, found, required)
}

/// A sight of the living peer, by the probe or by a witness, vouches for the outage only if it is from right before it. A person
/// who decides without an outage decides now.
fn right_before(time: Timestamp, facts: &Facts, record: &SiteRecord, policy: &Policy) -> bool {
    record.first_failure.unwrap_or(facts.now).duration_since(time) <= policy.memory()
}

fn lag(facts: &Facts, record: &SiteRecord, policy: &Policy) -> Evidence {
    let required = format!(
        "at most {}, seen no longer than five periods before the first failure, and before anybody last saw the peer alive",
        policy.max_lag
    );
    let Some(good) = &record.last_good else {
        return evidence(Guard::Lag, false, "unknown: no good probe yet", required);
    };
    let current = right_before(good.time, facts, record, policy);
    // The outage of our probe may be older than that of the peer, which took writes in between.
    // A witness that is asked no more may have been taken away because it looked at the wrong place. A person may ask fewer.
    let trusted = |url: &str| facts.confirm.is_some() || facts.guard.witnesses.iter().any(|asked| asked.url == url);
    let late = |seen: &(Timestamp, &str)| seen.0.duration_since(good.time) > policy.memory();
    if let Some((alive, who)) = record.seen_alive(trusted).filter(late) {
        let found = format!(
            "unknown: {who} saw the peer alive at {alive:.0}, long after the last good probe at {:.0}, so what it wrote in between is missing",
            good.time
        );
        return evidence(Guard::Lag, false, found, required);
    }
    match good.lag() {
        Some(lag) => {
            let by_patroni = match good.path {
                probe::Path::Api => {
                    ", by Patroni's word, which may be as old as its loop_wait: what was written since is not in it"
                }
                probe::Path::Postgresql => "",
            };
            let found = format!("{} at {:.0}{by_patroni}", Size(lag), good.time);
            evidence(Guard::Lag, current && lag <= policy.max_lag.0, found, required)
        }
        None => evidence(Guard::Lag, false, "unknown: our own position was not known at the last good probe", required),
    }
}

fn system_id(facts: &Facts, record: &SiteRecord) -> Evidence {
    let required = "one system identifier in the peer, the local server and Patroni's initialize";
    let local = facts.guard.local.as_ref().ok().and_then(|local| local.system_id);
    let peer = record.last_good.as_ref().map(|good| good.system_id);
    let show = |id: Option<SystemId>| id.map_or_else(|| "unknown".to_owned(), |id| id.to_string());
    let found = format!("peer {}, local {}, initialize {}", show(peer), show(local), show(facts.config.initialize));
    let same = peer.is_some() && peer == local && local == facts.config.initialize;
    evidence(Guard::SystemId, same, found, required)
}

/// A standby only ever follows its peer's timelines, so ours is the peer's or, if the peer switched after the last good probe, a
/// later one. An earlier one means that we did not follow the peer's last switch.
fn timeline(facts: &GuardFacts, record: &SiteRecord) -> Evidence {
    let required = "the local timeline is not before the peer's";
    let local = facts.local.as_ref().ok().and_then(|local| local.timeline);
    match (local, record.last_good.as_ref().map(|good| good.timeline)) {
        (Some(local), Some(peer)) => {
            evidence(Guard::Timeline, local >= peer, format!("local {local}, peer {peer}"), required)
        }
        (None, _) => evidence(Guard::Timeline, false, "unknown: the local timeline", required),
        (_, None) => evidence(Guard::Timeline, false, "unknown: no good probe yet", required),
    }
}

/// A witness that never saw the peer, or long ago, may look at the wrong place: its blindness says nothing.
fn witness(witness: &WitnessFacts, facts: &Facts, record: &SiteRecord, policy: &Policy) -> Evidence {
    let required =
        "it answers, can't reach the peer either, and saw it no longer than five periods before the first failure";
    let url = &witness.url;
    let (passed, found) = match (&witness.said, record.witnesses.get(url)) {
        (Err(why), _) => (false, format!("{url}: no answer: {why}")),
        (Ok(verdict), _) if *verdict != Verdict::Unreachable => (false, format!("{url}: {verdict}")),
        (Ok(verdict), None) => (false, format!("{url}: {verdict}, but it never saw the peer alive")),
        (Ok(verdict), Some(seen)) => {
            (right_before(*seen, facts, record, policy), format!("{url}: {verdict}, saw it alive at {seen:.0}"))
        }
    };
    evidence(Guard::Witness, passed, found, required)
}

/// Neither clock is compared with the other: the lease is dead when it was not renewed for its time to live while we watched. One that
/// was never seen to be renewed, or long ago, may be another cluster's, or one that is long gone: its silence says nothing.
fn second_path(path: &SecondPath, facts: &Facts, record: &SiteRecord, policy: &Policy) -> Evidence {
    let now = facts.now;
    let required = format!(
        "the peer's API server answers; its leader's lease, without which it can't lead, was seen renewed no longer than five periods \
         before the first failure, and is not renewed for {}, watched for {} of this run",
        human(path.ttl),
        human(path.round)
    );
    let context = &path.context;
    let for_how_long = format!("for {} (watched for {})", human(path.unrenewed(now)), human(path.watched));
    let renewed = path.lease.as_ref().ok().and_then(|lease| lease.renewed);
    let last = renewed
        .map_or_else(|| "; it was never seen renewed".to_owned(), |time| format!("; last seen renewed at {time:.0}"));
    let of_ours = path.is_of(facts.config.initialize);
    let found = match (&path.lease, path.leads_without) {
        (Err(why), _) => format!("no answer: {why}"),
        (Ok(_), _) if !of_ours => foreign(path),
        (Ok(_), Some(why)) => why.to_owned(),
        (Ok(PeerLease { leader: None, .. }), None) => format!("nobody holds the lease {for_how_long}{last}"),
        (Ok(PeerLease { leader: Some(leader), renew_time: None, .. }), None) => {
            format!("unknown: the lease of {leader} has no renewTime")
        }
        (Ok(PeerLease { leader: Some(leader), .. }), None) => {
            format!("{leader} has not renewed its lease {for_how_long}{last}")
        }
    };
    let known = renewed.is_some_and(|renewed| right_before(renewed, facts, record, policy));
    evidence(Guard::SecondPath, path.is_dead(now) && known && of_ours, format!("context {context}: {found}"), required)
}

/// What is said of a cluster that is not the peer's.
pub fn foreign(path: &SecondPath) -> String {
    let id = path.system_id.map_or_else(|| "of no system id".to_owned(), |id| format!("with system id {id}"));
    format!("the cluster there, {id}, is not that of this site")
}

/// Two sites alone can't tell a dead peer from a cut link.
fn third_party(facts: &Facts, policy: &Policy) -> Evidence {
    let required = "a witness, a second path or a probe through the peer's API server; or --accept-split-brain";
    let by_api = facts.probe.as_ref().is_ok_and(|probe| probe.path == probe::Path::Api);
    let asked = facts.guard.witnesses.len() + usize::from(facts.guard.second_path.is_some()) + usize::from(by_api);
    let found = if policy.accept_split_brain {
        format!("{asked} asked; a split brain is accepted")
    } else {
        format!("{asked} asked")
    };
    evidence(Guard::ThirdParty, asked > 0 || policy.accept_split_brain, found, required)
}

fn hold(facts: &GuardFacts) -> Evidence {
    let found = facts.hold.as_ref().map_or_else(|| "no hold".to_owned(), |why| format!("held: {why}"));
    evidence(Guard::Hold, facts.hold.is_none(), found, "no annotation lifeboat/hold")
}

fn maintenance(facts: &GuardFacts, now: Timestamp) -> Evidence {
    let required = "lifeboat/maintenance-until is absent or past";
    let Some(text) = &facts.maintenance else { return evidence(Guard::Maintenance, true, "no maintenance", required) };
    match text.trim().parse::<Timestamp>() {
        Ok(until) => evidence(Guard::Maintenance, until <= now, format!("maintenance until {until}"), required),
        Err(_) => evidence(Guard::Maintenance, false, format!("{text:?} is no RFC 3339 time"), required),
    }
}

fn cooldown(record: &SiteRecord, now: Timestamp, policy: &Policy) -> Evidence {
    let required = format!("{} since the last promotion", human(policy.cooldown));
    let last = record.promotion.as_ref().and_then(|promotion| promotion.verified);
    let limit = SignedDuration::try_from(policy.cooldown).unwrap_or(SignedDuration::MAX);
    let found = last.map_or_else(|| "never promoted".to_owned(), |time| format!("promoted at {time:.0}"));
    evidence(Guard::Cooldown, last.is_none_or(|time| now.duration_since(time) >= limit), found, required)
}

fn paused(facts: &Facts) -> Evidence {
    let found = if facts.config.paused { "Patroni is paused: it would not promote" } else { "Patroni is active" };
    evidence(Guard::Paused, !facts.config.paused, found, "Patroni is not in maintenance mode (pause)")
}

/// A record that says "promoted" beside a `standby_cluster` means that somebody made this site a standby by hand.
fn consistent(record: &SiteRecord) -> Evidence {
    use crate::site::Phase;
    let found = format!("phase {}", record.phase);
    let passed = !matches!(record.phase, Phase::Promoted | Phase::Held);
    evidence(Guard::Record, passed, found, "a record that knows this site as a standby")
}
