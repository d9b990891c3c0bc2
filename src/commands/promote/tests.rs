//! The decision, case by case: one set of facts that promotes, and every single change to it that must not.

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
        .map(|(&verdict, index)| Attempt { at: at(seconds + index * 5), verdict, error: None })
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
    let lease =
        PeerLease { leader: leader.map(Into::into), renew_time: Some("2026-01-01T00:00:00+00:00".into()), since };
    let round = Duration::from_secs(15);
    let ttl = Duration::from_secs(30);
    SecondPath { context: "gold".into(), lease: Ok(lease), ttl, watched: round, round, leads_without: None }
}

fn heard(ago: u64, timeout: u64) -> Receiver {
    Receiver::Heard { ago: Duration::from_secs(ago), timeout: Duration::from_secs(timeout) }
}

fn stopped(decision: &Decision) -> Vec<&'static str> {
    decision.evidence.iter().filter(|evidence| !evidence.passed).map(|evidence| evidence.guard).collect()
}

#[test]
fn peer_gone_and_every_guard_passed_promotes() {
    let decision = decide(&gone(), &policy());
    assert_eq!(decision.plan, Plan::Promote, "{decision:?}");
    assert_eq!((decision.record.phase, decision.record.epoch), (Phase::Promoting, 1));
    let promotion = decision.record.promotion.unwrap();
    assert_eq!((promotion.by.as_str(), promotion.from_timeline), ("auto", Some(Timeline(1))));
}

#[test]
fn receiver_that_has_been_silent_for_long_enough_does_not_stop_the_promotion() {
    let mut facts = gone();
    facts.guard.local.as_mut().unwrap().receiver = heard(11, 10);
    assert_eq!(decide(&facts, &policy()).plan, Plan::Promote);
}

#[test]
fn peer_that_answers_but_is_not_learned_of_for_long_is_told() {
    let mut facts = gone();
    facts.record = SiteRecord::new("golddr");
    facts.probe = Ok(probe(60, &[Verdict::Rejected]));
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.alert.unwrap().kind.as_str()), (Plan::Nothing, "ProbeBlind"));
}

/// Each change alone stops the promotion, and the named guard says so.
#[test]
fn any_single_guard_stops_the_promotion() {
    type Change = fn(&mut Facts);
    let changes: [(&str, Change); 38] = [
        ("standby", |f| f.guard.local.as_mut().unwrap().in_recovery = Some(false)),
        ("leader", |f| f.guard.lease = Lease::Stale(Duration::from_secs(15))),
        ("leader", |f| f.guard.lease = Lease::Unknown),
        ("leader", |f| f.guard.member = Err("no local member holds the lease".into())),
        ("wal-receiver", |f| f.guard.local.as_mut().unwrap().receiver = heard(9, 10)),
        ("wal-receiver", |f| f.guard.local.as_mut().unwrap().receiver = heard(31, 60)),
        ("wal-receiver", |f| f.guard.local.as_mut().unwrap().receiver = heard(500, 0)),
        ("wal-receiver", |f| f.guard.local.as_mut().unwrap().receiver = Receiver::Unknown),
        ("wal-receiver", |f| f.guard.local = Err("refused".into())),
        ("lag", |f| f.record.last_good = None),
        ("lag", |f| f.record.last_good.as_mut().unwrap().local_lsn = None),
        ("lag", |f| f.record.last_good.as_mut().unwrap().peer_lsn = Lsn(4001 + (16 << 20))),
        ("lag", |f| f.record.last_good.as_mut().unwrap().time = at(-301)),
        ("system-id", |f| f.guard.local.as_mut().unwrap().system_id = Some(SystemId(1))),
        ("system-id", |f| f.guard.local.as_mut().unwrap().system_id = None),
        ("system-id", |f| f.record.last_good.as_mut().unwrap().system_id = SystemId(1)),
        ("system-id", |f| f.config.initialize = Some(SystemId(1))),
        ("timeline", |f| f.record.last_good.as_mut().unwrap().timeline = Timeline(2)),
        ("timeline", |f| f.guard.local.as_mut().unwrap().timeline = None),
        ("witness", |f| f.guard.witnesses[0].said = Ok(Verdict::Healthy)),
        ("witness", |f| f.guard.witnesses[0].said = Ok(Verdict::Unknown)),
        ("witness", |f| f.guard.witnesses[0].said = Err("timed out".into())),
        ("witness", |f| f.record.witnesses.clear()),
        ("witness", |f| _ = f.record.witnesses.insert(WITNESS.into(), at(-301))),
        ("second-path", |f| f.guard.second_path = Some(second_path(Some("pg-gold-0"), at(46)))),
        ("second-path", |f| f.guard.second_path = Some(second_path(None, at(46)))),
        ("second-path", |f| {
            f.guard.second_path = Some(second_path(None, at(0)));
            f.guard.second_path.as_mut().unwrap().lease = Err("timed out".into());
        }),
        // A clock that was set forward makes what earlier runs saw look old.
        ("second-path", |f| {
            let path = second_path(Some("pg-gold-0"), at(-3600));
            f.guard.second_path = Some(SecondPath { watched: Duration::from_secs(14), ..path });
        }),
        ("second-path", |f| {
            let path = second_path(Some("pg-gold-0"), at(0));
            f.guard.second_path = Some(SecondPath { leads_without: Some("its Patroni is paused"), ..path });
        }),
        ("second-path", |f| {
            let mut path = SecondPath { watched: Duration::from_mins(1), ..second_path(Some("pg-gold-0"), at(0)) };
            path.lease.as_mut().unwrap().renew_time = None;
            f.guard.second_path = Some(path);
        }),
        // Nobody held it when the last run looked, and nobody now: without a stamp that says nothing of the time in between.
        ("second-path", |f| {
            let mut path = SecondPath { watched: Duration::from_secs(29), ..second_path(None, at(0)) };
            path.lease.as_mut().unwrap().renew_time = None;
            f.guard.second_path = Some(path);
        }),
        ("third-party", |f| f.guard.witnesses.clear()),
        ("hold", |f| f.guard.hold = Some(String::new())),
        ("maintenance", |f| f.guard.maintenance = Some(at(76).to_string())),
        ("maintenance", |f| f.guard.maintenance = Some("tomorrow".into())),
        ("paused", |f| f.config.paused = true),
        ("record", |f| f.record.phase = Phase::Held),
        ("cooldown", |f| {
            f.record.promotion = Some(Promotion {
                decided: at(-500),
                by: "auto".into(),
                reason: String::new(),
                from_timeline: None,
                lsn: None,
                to_timeline: None,
                verified: Some(at(-500)),
                overrides: Vec::new(),
                announced: None,
            });
        }),
    ];
    for (guard, change) in changes {
        let mut facts = gone();
        change(&mut facts);
        let decision = decide(&facts, &policy());
        assert_eq!(decision.plan, Plan::Refuse, "{guard}: {}", decision.reason);
        assert!(stopped(&decision).contains(&guard), "{guard}: {:?}", decision.evidence);
        assert_ne!(decision.record.phase, Phase::Promoting, "{guard}");
        assert_eq!(decision.record.failures, 6, "{guard}: a refusal keeps the count");
        assert_eq!(decision.alert.unwrap().kind, "PromotionRefused");
    }
}

#[test]
fn cluster_that_is_still_copied_is_neither_promoted_nor_recorded_as_such() {
    let mut unborn = gone();
    unborn.config = ClusterConfig::default();
    let mut unnamed = gone();
    unnamed.config.initialize = None;
    for facts in [unborn, unnamed] {
        let decision = decide(&facts, &policy());
        assert_eq!((decision.plan, &decision.record), (Plan::Nothing, &facts.record));
        assert!(decision.alert.is_none());
    }
}

#[test]
fn phase_that_forbids_promotion_outlives_every_refusal() {
    for phase in [Phase::Held, Phase::Promoted] {
        let mut facts = gone();
        facts.record.phase = phase;
        for _ in 0..3 {
            let decision = decide(&facts, &policy());
            assert_eq!((decision.plan, decision.record.phase), (Plan::Refuse, phase));
            facts.record = decision.record;
        }
    }
}

#[test]
fn answer_resets_the_count_whatever_the_clocks_say() {
    let mut facts = gone();
    facts.record.last_failure = Some(at(600));
    facts.probe = Ok(probe(60, &[Verdict::Healthy]));
    assert_eq!(decide(&facts, &policy()).record.failures, 0);
}

#[test]
fn good_probe_without_our_own_position_replaces_no_better_one() {
    let mut facts = gone();
    let mut healthy = probe(60, &[Verdict::Healthy]);
    healthy.peer =
        PeerFacts { system_id: Some(ID), timeline: Some(Timeline(1)), lsn: Some(Lsn(9000)), in_recovery: Some(false) };
    facts.probe = Ok(healthy);
    facts.guard.local = Err("restarting".into());
    assert_eq!(decide(&facts, &policy()).record.last_good, Some(good()));
}

#[test]
fn failures_too_few_or_over_too_short_a_time_wait() {
    for (failures, first) in [(1, at(0)), (3, at(20))] {
        let mut facts = gone();
        (facts.record.failures, facts.record.first_failure) = (failures, Some(first));
        facts.record.last_failure = Some(at(20));
        let decision = decide(&facts, &policy());
        assert_eq!((decision.plan, decision.record.phase), (Plan::Nothing, Phase::Suspect), "{}", decision.reason);
    }
}

#[test]
fn first_failing_run_alone_never_promotes() {
    let mut facts = gone();
    facts.record.reset_failures();
    facts.probe = Ok(probe(60, &[Verdict::Unreachable; 5]));
    assert_eq!(decide(&facts, &policy()).plan, Plan::Nothing);
}

#[test]
fn peer_that_answers_in_any_way_resets_and_calls_off() {
    for verdict in [Verdict::Healthy, Verdict::Starting, Verdict::Rejected] {
        for phase in [Phase::Suspect, Phase::AwaitingApproval, Phase::Promoting] {
            let mut facts = gone();
            facts.record.phase = phase;
            facts.probe = Ok(probe(60, &[Verdict::Unreachable, verdict]));
            let decision = decide(&facts, &policy());
            assert_eq!(
                (decision.plan, decision.record.phase, decision.record.failures),
                (Plan::Nothing, Phase::Watching, 0),
                "{verdict}"
            );
        }
    }
}

#[test]
fn probe_that_learned_nothing_neither_counts_nor_resets() {
    for (verdict, plan) in [(Verdict::Misconfigured, Plan::Mend), (Verdict::Unknown, Plan::Nothing)] {
        let mut facts = gone();
        facts.probe = Ok(probe(60, &[verdict]));
        let decision = decide(&facts, &policy());
        assert_eq!((decision.plan, decision.record.failures), (plan, 3), "{verdict}");
    }
}

#[test]
fn facts_stale_or_missing_refuse() {
    let facts = Facts { probe: Err("too old".into()), ..gone() };
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.record.failures), (Plan::Refuse, 3));
}

#[test]
fn gap_longer_than_two_periods_restarts_the_count() {
    let mut facts = gone();
    facts.now = at(215);
    facts.probe = Ok(probe(200, &[Verdict::Unreachable; 3]));
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.record.failures), (Plan::Nothing, 3));
}

#[test]
fn same_facts_read_twice_count_once() {
    let facts = gone();
    let once = tally(&facts.record, facts.probe.as_ref().unwrap(), policy().period);
    assert_eq!(tally(&once, facts.probe.as_ref().unwrap(), policy().period), once);
    assert_eq!(once.failures, 6);
}

#[test]
fn lease_of_the_peer_not_renewed_for_its_time_to_live_confirms_its_loss() {
    for leader in [None, Some("pg-gold-0")] {
        let mut facts = gone();
        facts.guard.witnesses.clear();
        facts.guard.second_path = Some(second_path(leader, at(45)));
        let decision = decide(&facts, &policy());
        assert_eq!((decision.plan, decision.record.peer_lease.unwrap().since), (Plan::Promote, at(45)), "{leader:?}");
    }
}

#[test]
fn lag_that_patroni_told_is_said_to_be_older() {
    let mut facts = gone();
    let lag = |facts: &Facts| {
        let evidence = decide(facts, &policy()).evidence;
        evidence.into_iter().find(|evidence| evidence.guard == "lag").unwrap().found
    };
    assert!(!lag(&facts).contains("Patroni"), "{}", lag(&facts));
    facts.record.last_good.as_mut().unwrap().path = Path::Api;
    assert!(lag(&facts).contains("as old as its loop_wait"), "{}", lag(&facts));
    let mut alive = probe(60, &[Verdict::Healthy]);
    alive.path = Path::Api;
    alive.peer =
        PeerFacts { system_id: Some(ID), timeline: Some(Timeline(1)), lsn: Some(Lsn(9000)), in_recovery: Some(false) };
    facts = Facts { probe: Ok(alive), ..gone() };
    assert_eq!(decide(&facts, &policy()).record.last_good.unwrap().path, Path::Api);
}

/// Whatever the record says: what this run watched for the whole time to live counts.
#[test]
fn lease_of_the_peer_watched_by_this_run_alone_confirms_its_loss() {
    for (leader, stamp, since) in
        [(Some("pg-gold-0"), Some("a"), at(75)), (Some("pg-gold-0"), Some("a"), at(3600)), (None, None, at(75))]
    {
        let mut facts = gone();
        facts.confirm = Some(Confirm { overrides: Vec::new(), reason: "drill".into() });
        let mut path = SecondPath { watched: Duration::from_secs(30), ..second_path(leader, since) };
        path.lease.as_mut().unwrap().renew_time = stamp.map(Into::into);
        facts.guard.second_path = Some(path);
        let decision = decide(&facts, &policy());
        assert_eq!(decision.plan, Plan::Promote, "{leader:?}, {since}: {}", decision.reason);
    }
}

#[test]
fn sightings_of_a_living_peer_are_kept_and_a_blind_witness_is_told() {
    let mut facts = gone();
    let mut healthy = probe(60, &[Verdict::Healthy]);
    healthy.peer =
        PeerFacts { system_id: Some(ID), timeline: Some(Timeline(1)), lsn: Some(Lsn(9000)), in_recovery: Some(false) };
    facts.probe = Ok(healthy);
    facts.record.phase = Phase::Watching;
    let alert = |facts: &Facts| decide(facts, &policy()).alert.map(|alert| alert.kind);
    facts.guard.witnesses[0].said = Ok(Verdict::Healthy);
    facts.record.witnesses.insert("http://asked-no-more".into(), at(0));
    let decision = decide(&facts, &policy());
    assert_eq!(decision.record.witnesses.into_iter().collect::<Vec<_>>(), [(WITNESS.to_owned(), facts.now)]);
    assert_eq!(decision.alert, None);
    for said in [Ok(Verdict::Unreachable), Ok(Verdict::Misconfigured), Err("timed out".to_owned())] {
        facts.guard.witnesses[0].said = said;
        facts.record.witnesses = [(WITNESS.to_owned(), at(0))].into();
        assert_eq!(alert(&facts), None, "it saw the peer a minute ago");
        facts.record.witnesses = [(WITNESS.to_owned(), at(-226))].into();
        assert_eq!(alert(&facts).as_deref(), Some("WitnessBlind"));
        facts.record.witnesses.clear();
        assert_eq!(alert(&facts).as_deref(), Some("WitnessBlind"), "it never saw the peer");
    }
    facts.guard.witnesses.clear();
    let leads_without = Some("its Patroni has failsafe_mode");
    facts.guard.second_path = Some(SecondPath { leads_without, ..second_path(Some("pg-gold-0"), at(70)) });
    let told = decide(&facts, &policy()).alert.unwrap();
    assert!(told.kind == "WitnessBlind" && told.summary.contains("failsafe_mode"), "{told:?}");
    facts.guard.second_path = Some(second_path(Some("pg-gold-0"), at(70)));
    assert_eq!(alert(&facts), None);
    facts.guard.second_path = Some(second_path(Some("pg-gold-0"), at(-226)));
    assert_eq!(alert(&facts).as_deref(), Some("WitnessBlind"), "a lease that nobody renews though the peer lives");
    facts.guard.second_path.as_mut().unwrap().lease = Err("forbidden".into());
    assert_eq!(alert(&facts).as_deref(), Some("WitnessBlind"));
}

#[test]
fn mode_approve_waits_for_the_word_for_this_very_epoch() {
    let policy = Policy { mode: Mode::Approve, ..policy() };
    for (word, plan) in
        [(None, Plan::Nothing), (Some("0"), Plan::Nothing), (Some("yes"), Plan::Nothing), (Some("1"), Plan::Promote)]
    {
        let mut facts = gone();
        facts.guard.approval = word.map(Into::into);
        let decision = decide(&facts, &policy);
        assert_eq!((decision.plan, decision.forget_approval), (plan, false), "{word:?}");
    }
    let waiting = decide(&gone(), &policy);
    assert_eq!(
        (waiting.record.phase, waiting.alert.unwrap().kind.as_str()),
        (Phase::AwaitingApproval, "AwaitingApproval")
    );
}

#[test]
fn approval_counts_in_the_outage_in_which_it_was_given_only() {
    let policy = Policy { mode: Mode::Approve, ..policy() };
    let approved = || {
        let mut facts = gone();
        facts.guard.approval = Some("1".into());
        facts.record.phase = Phase::AwaitingApproval;
        facts
    };
    assert_eq!(decide(&approved(), &policy).plan, Plan::Promote);
    let mut back = approved();
    back.probe = Ok(probe(60, &[Verdict::Healthy]));
    let mut early = approved();
    (early.record.phase, early.record.first_failure) = (Phase::Watching, None);
    let mut next = approved();
    next.probe = Ok(probe(600, &[Verdict::Unreachable; 3]));
    let mut leads = approved();
    (leads.record.phase, leads.config) = (Phase::Promoted, config(false));
    for facts in [back, early, next, leads] {
        let decision = decide(&facts, &policy);
        assert!(decision.forget_approval && decision.plan == Plan::Nothing, "{decision:?}");
        assert!(decision.record.audit.back().unwrap().event.contains("approval"), "{:?}", decision.record.audit);
    }
    let mut refused = approved();
    refused.guard.hold = Some("look first".into());
    let decision = decide(&refused, &policy);
    assert_eq!((decision.plan, decision.forget_approval), (Plan::Refuse, false), "the outage lasts");
}

#[test]
fn promotion_called_off_takes_its_epoch_back() {
    let mut facts = gone();
    facts.record = decide(&facts, &policy()).record;
    assert_eq!((facts.record.phase, facts.record.epoch), (Phase::Promoting, 1));
    let mut back = Facts { probe: Ok(probe(60, &[Verdict::Healthy])), ..facts.clone() };
    back.guard.hold = None;
    let mut held = facts.clone();
    held.guard.hold = Some("wait".into());
    for facts in [back, held] {
        let decision = decide(&facts, &policy());
        assert_eq!((decision.record.epoch, decision.record.next_epoch()), (0, 1), "{}", decision.reason);
    }
    for mode in [Mode::Approve, Mode::Off] {
        let decision = decide(&facts, &Policy { mode, ..policy() });
        assert_eq!((decision.plan, decision.record.epoch), (Plan::Nothing, 0), "the mode was changed meanwhile");
    }
}

#[test]
fn persons_decision_that_was_killed_is_finished_as_it_was_meant() {
    let mut facts = gone();
    facts.record.last_good = None;
    facts.confirm = Some(Confirm {
        overrides: vec![Guard::Lag, Guard::SystemId, Guard::Timeline],
        reason: "fire in the hall".into(),
    });
    let policy = Policy { mode: Mode::Off, ..policy() };
    let decided = decide(&facts, &policy);
    assert_eq!((decided.plan, decided.record.epoch), (Plan::Promote, 1));
    facts.record = decided.record;
    facts.confirm = Confirm::unfinished(&facts.record, facts.now);
    facts.probe = Ok(probe(60, &[Verdict::Unreachable]));
    let again = decide(&facts, &policy);
    assert_eq!((again.plan, again.record.epoch, again.record.audit.len()), (Plan::Promote, 1, 1), "{}", again.reason);
    assert!(again.reason.contains("fire in the hall") && again.reason.contains("lag"), "{}", again.reason);
    assert!(Confirm::unfinished(&facts.record, facts.now + SignedDuration::from_mins(16)).is_none(), "days later");
    facts.record.phase = Phase::Promoted;
    assert!(Confirm::unfinished(&facts.record, facts.now).is_none());
}

#[test]
fn promotion_is_told_until_the_message_is_delivered() {
    let mut facts = gone();
    facts.record = decide(&facts, &policy()).record;
    (facts.config, facts.record.phase) = (config(false), Phase::Promoted);
    facts.record.promotion.as_mut().unwrap().verified = Some(at(80));
    let kind = |facts: &Facts| decide(facts, &policy()).alert.map(|alert| alert.kind);
    assert_eq!(kind(&facts).as_deref(), Some("Promoted"));
    facts.record.remember_alert("Promoted", at(81));
    assert_eq!(kind(&facts), None);
}

#[test]
fn mode_off_only_reports() {
    assert_eq!(decide(&gone(), &Policy { mode: Mode::Off, ..policy() }).plan, Plan::Nothing);
}

#[test]
fn promotion_begun_by_a_killed_run_is_finished_with_its_epoch() {
    let mut facts = gone();
    facts.record = decide(&facts, &policy()).record;
    let again = decide(&facts, &policy());
    assert_eq!((again.plan, again.record.epoch), (Plan::Promote, 1), "the patch was not made yet");
    facts.config = config(false);
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.record.epoch), (Plan::Verify, 1), "the patch was made");
}

#[test]
fn site_promoted_by_somebody_else_is_recorded_and_verified_like_any_other() {
    for sed_leftover in [false, true] {
        let mut facts = gone();
        facts.config = ClusterConfig { sed_leftover, ..config(false) };
        let decision = decide(&facts, &policy());
        assert_eq!((decision.plan, decision.record.phase, decision.record.epoch), (Plan::Verify, Phase::Promoting, 1));
        assert_eq!(decision.record.promotion.as_ref().unwrap().by, "observed");
        facts.record = decision.record;
        let again = decide(&facts, &policy());
        assert_eq!((again.plan, again.record.epoch), (Plan::Verify, 1), "until it accepts a write");
    }
}

#[test]
fn site_that_is_held_is_not_taken_for_promoted() {
    let mut facts = gone();
    (facts.config, facts.record.phase) = (config(false), Phase::Held);
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.record, decision.alert), (Plan::Nothing, facts.record, None));
}

#[test]
fn peer_in_recovery_is_alive_and_vouches_for_nothing() {
    let mut facts = gone();
    let before = facts.record.last_good.clone();
    let mut standby = probe(60, &[Verdict::Healthy]);
    standby.peer =
        PeerFacts { in_recovery: Some(true), system_id: Some(ID), timeline: Some(Timeline(1)), lsn: Some(Lsn(9000)) };
    facts.probe = Ok(standby);
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.record.failures), (Plan::Nothing, 0));
    assert_eq!(decision.record.last_good, before, "a standby behind the Service is no good probe");
}

#[test]
fn two_sites_that_lead_are_told() {
    let mut facts = gone();
    (facts.config, facts.record.phase) = (config(false), Phase::Promoted);
    let mut both = probe(60, &[Verdict::Healthy]);
    both.peer = PeerFacts { in_recovery: Some(false), ..PeerFacts::default() };
    facts.probe = Ok(both);
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.alert.unwrap().kind.as_str()), (Plan::Refuse, "SplitBrain"));
}

#[test]
fn person_needs_no_probe_but_every_other_guard_unless_set_aside() {
    let policy = Policy { mode: Mode::Off, ..policy() };
    let confirm =
        |overrides: &[Guard]| Some(Confirm { overrides: overrides.to_vec(), reason: "fire in the hall".into() });
    let mut facts = Facts { probe: Err("not asked".into()), confirm: confirm(&[]), ..gone() };
    facts.record.reset_failures();
    assert_eq!(decide(&facts, &policy).plan, Plan::Promote);
    facts.now = at(241);
    assert_eq!(stopped(&decide(&facts, &policy)), ["lag", "witness"], "what was seen long ago says nothing of now");
    facts.now = at(75);
    facts.record.last_good.as_mut().unwrap().peer_lsn = Lsn(1 << 40);
    assert_eq!(stopped(&decide(&facts, &policy)), ["lag"]);
    facts.confirm = confirm(&[Guard::Lag]);
    let decision = decide(&facts, &policy);
    assert_eq!(decision.plan, Plan::Promote);
    let promotion = decision.record.promotion.unwrap();
    assert!(promotion.reason.contains("lag") && promotion.reason.contains("fire in the hall"), "{}", promotion.reason);
    assert_eq!(promotion.overrides, ["lag"]);
    facts.guard.local.as_mut().unwrap().in_recovery = Some(false);
    facts.confirm = confirm(&[Guard::Lag, Guard::Standby]);
    assert_eq!(decide(&facts, &policy).plan, Plan::Refuse, "nothing to promote");
}

#[test]
fn healthy_probe_with_credentials_remembers_both_positions() {
    let mut healthy = probe(60, &[Verdict::Healthy]);
    healthy.peer =
        PeerFacts { system_id: Some(ID), timeline: Some(Timeline(1)), lsn: Some(Lsn(9000)), in_recovery: Some(false) };
    let facts = Facts { probe: Ok(healthy), ..gone() };
    let good = decide(&facts, &policy()).record.last_good.unwrap();
    assert_eq!((good.lag(), good.time), (Some(5000), at(60)));
}

proptest! {
    /// A thousand blips: however single runs fail, as long as no two failing runs follow each other there is no promotion.
    #[test]
    fn blips_that_end_before_the_next_run_never_promote(pattern in prop::collection::vec(any::<bool>(), 1..1000)) {
        let mut facts = gone();
        facts.record = SiteRecord { last_good: Some(good()), ..SiteRecord::new("golddr") };
        let mut failed_before = false;
        for (fails, index) in pattern.into_iter().zip(0..) {
            let verdict = if fails && !failed_before { Verdict::Unreachable } else { Verdict::Healthy };
            failed_before = verdict == Verdict::Unreachable;
            facts.now = at(index * 60 + 15);
            facts.probe = Ok(probe(index * 60, &[verdict; 3]));
            let decision = decide(&facts, &policy());
            prop_assert_eq!(decision.plan, Plan::Nothing);
            facts.record = decision.record;
        }
    }

    /// Whatever the probes say: a promotion needs five unreachable attempts without an answer between them, over a minute.
    #[test]
    fn promotion_needs_enough_failures_in_a_row(runs in prop::collection::vec((0..6usize, 20i64..150), 1..20)) {
        let verdicts = [Verdict::Healthy, Verdict::Starting, Verdict::Rejected, Verdict::Unreachable, Verdict::Unknown, Verdict::Misconfigured];
        let mut facts = gone();
        facts.record = SiteRecord { last_good: Some(LastGood { time: at(0), ..good() }), ..SiteRecord::new("golddr") };
        let (mut seconds, mut since_answer) = (0, Vec::new());
        for (choice, gap) in runs {
            seconds += gap;
            let probe = probe(seconds, &[verdicts[choice]; 3]);
            for attempt in &probe.attempts {
                if attempt.verdict.is_alive() { since_answer.clear() }
                if attempt.verdict == Verdict::Unreachable { since_answer.push(attempt.at) }
            }
            facts.now = probe.taken;
            facts.probe = Ok(probe);
            let decision = decide(&facts, &policy());
            if decision.plan == Plan::Promote {
                prop_assert!(since_answer.len() >= 5);
                let span = since_answer.last().unwrap().duration_since(since_answer[0]);
                prop_assert!(span >= SignedDuration::from_secs(60));
                break;
            }
            facts.record = decision.record;
        }
    }
}
