//! The decision, case by case: one set of facts that promotes, and every single change to it that must not.

mod counting;
mod guarding;
mod outages;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{
    decide::{Confirm, Decision, Facts, Mode, Plan, Policy, decide, tally},
    guards::{Guard, GuardFacts, Lease, Local, MemberFacts, Receiver, SecondPath, WitnessFacts},
};
use crate::{
    flags::Size,
    kubernetes::Snapshot,
    patroni::{ClusterConfig, MemberRole},
    postgres::{Lsn, SystemId, Timeline},
    probe::{Attempt, Path, PeerFacts, ProbeFacts, Verdict, conclude},
    site::{LastGood, PeerLease, Phase, Promotion, SiteRecord},
};

const ID: SystemId = SystemId(7_000_000_000_000_000_001);

const WITNESS: &str = "http://w:8080";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn policy() -> Policy {
    Policy {
        mode: Mode::Auto,
        failures: 5,
        span: Duration::from_mins(1),
        period: Duration::from_mins(1),
        max_lag: Size(16 << 20),
        receiver_silence: Duration::from_secs(10),
        cooldown: Duration::from_mins(10),
        accept_split_brain: false,
    }
}

fn probe(seconds: i64, verdicts: &[Verdict]) -> ProbeFacts {
    let attempts: Vec<Attempt> = verdicts
        .iter()
        .zip(0..)
        .map(|(&verdict, index)| Attempt { at: at(seconds + index * 5), verdict, error: None, answered: false })
        .collect();
    let verdict = conclude(&attempts);
    let taken = attempts.last().unwrap().at;
    ProbeFacts { taken, verdict, attempts, ..ProbeFacts::of_verdict(verdict) }
}

fn config(standby: bool) -> ClusterConfig {
    let text = if standby { r#"{"ttl": 30, "standby_cluster": {"host": "h", "port": 1}}"# } else { r#"{"ttl": 30}"# };
    let mut map = Snapshot::default();
    map.annotations.insert("config".into(), text.into());
    map.annotations.insert("initialize".into(), ID.to_string());
    ClusterConfig::read(&map).unwrap()
}

fn good() -> LastGood {
    LastGood {
        time: at(-60),
        system_id: ID,
        timeline: Timeline(1),
        peer_lsn: Lsn(5000),
        local_lsn: Some(Lsn(4000)),
        path: Path::Postgresql,
    }
}

/// A peer that is gone: three failures in the run before, three in this one, and every guard passes.
fn gone() -> Facts {
    let mut record = SiteRecord { last_good: Some(good()), phase: Phase::Suspect, ..SiteRecord::new("golddr") };
    (record.failures, record.first_failure, record.last_failure) = (3, Some(at(0)), Some(at(10)));
    record.witnesses.insert(WITNESS.to_owned(), at(-60));
    Facts {
        now: at(75),
        record,
        confirm: None,
        probe: Ok(probe(60, &[Verdict::Unreachable; 3])),
        config: config(true),
        guard: GuardFacts {
            local: Ok(Local {
                member: "pg-golddr-0".into(),
                system_id: Some(ID),
                in_recovery: Some(true),
                timeline: Some(Timeline(1)),
                lsn: Some(Lsn(4000)),
                receiver: Receiver::Absent,
            }),
            member: Ok(MemberFacts {
                role: MemberRole::StandbyLeader,
                state: "running".into(),
                replication_state: None,
            }),
            lease: Lease::Renewed,
            witnesses: vec![WitnessFacts { url: WITNESS.into(), said: Ok(Verdict::Unreachable) }],
            second_path: None,
            hold: None,
            maintenance: None,
            approval: None,
        },
    }
}

/// The peer's lease as it has been since then.
fn second_path(leader: Option<&str>, since: Timestamp) -> SecondPath {
    let (leader, renew_time) = (leader.map(Into::into), Some("2026-01-01T00:00:00+00:00".to_owned()));
    let lease = PeerLease { leader, renew_time, since, renewed: Some(at(-60)), of: Some("gold/app/pg".into()) };
    let round = Duration::from_secs(15);
    let ttl = Duration::from_secs(30);
    let context = "gold".to_owned();
    SecondPath { context, lease: Ok(lease), ttl, watched: round, round, leads_without: None, system_id: Some(ID) }
}

fn heard(ago: u64, timeout: u64) -> Receiver {
    Receiver::Heard { ago: Duration::from_secs(ago), timeout: Duration::from_secs(timeout) }
}

fn stopped(decision: &Decision) -> Vec<&'static str> {
    decision.evidence.iter().filter(|evidence| !evidence.passed).map(|evidence| evidence.guard).collect()
}
