//! What stops a promotion once the failures are enough, and what a person can set aside.

use super::*;

#[test]
fn receiver_that_has_been_silent_for_long_enough_does_not_stop_the_promotion() {
    let mut facts = gone();
    facts.guard.local.as_mut().unwrap().receiver = heard(11, 10);
    assert_eq!(decide(&facts, &policy()).plan, Plan::Promote);
}

/// A change to what was observed.
type Change = fn(&mut Facts);

/// Each change alone stops the promotion, and the named guard says so.
fn assert_each_stops(changes: &[(&str, Change)]) {
    for (guard, change) in changes {
        let mut facts = gone();
        change(&mut facts);
        let decision = decide(&facts, &policy());
        assert_eq!(decision.plan, Plan::Refuse, "{guard}: {}", decision.reason);
        assert!(stopped(&decision).contains(guard), "{guard}: {:?}", decision.evidence);
        assert_ne!(decision.record.phase, Phase::Promoting, "{guard}");
        assert_eq!(decision.record.failures, 6, "{guard}: a refusal keeps the count");
        assert_eq!(decision.alert.unwrap().kind, "PromotionRefused");
    }
}

#[test]
fn any_single_guard_stops_the_promotion() {
    assert_each_stops(&[
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
        // The outage was of our link alone, and the peer took writes for long.
        ("lag", |f| {
            f.record.last_good.as_mut().unwrap().time = at(-290);
            f.record.witnesses.insert(WITNESS.into(), at(11));
        }),
        ("lag", |f| {
            let mut path = second_path(Some("pg-gold-0"), at(11));
            path.lease.as_mut().unwrap().renewed = Some(at(11));
            f.record.last_good.as_mut().unwrap().time = at(-290);
            f.guard.second_path = Some(path);
        }),
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
    ]);
}

#[test]
fn second_path_that_is_not_sure_stops_the_promotion() {
    assert_each_stops(&[
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
        // What was never seen to be renewed, or long before the outage, may be another cluster's, or long gone.
        ("second-path", |f| {
            let mut path = second_path(Some("pg-gold-0"), at(0));
            path.lease.as_mut().unwrap().renewed = None;
            f.guard.second_path = Some(path);
        }),
        ("second-path", |f| {
            let mut path = second_path(Some("pg-gold-0"), at(0));
            path.lease.as_mut().unwrap().renewed = Some(at(-301));
            f.guard.second_path = Some(path);
        }),
        ("second-path", |f| {
            f.guard.second_path =
                Some(SecondPath { system_id: Some(SystemId(1)), ..second_path(Some("pg-gold-0"), at(0)) });
        }),
        ("second-path", |f| {
            f.guard.second_path = Some(SecondPath { system_id: None, ..second_path(None, at(0)) });
        }),
    ]);
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

/// Three hours: each run refuses, as a witness sees the peer. Then the peer is lost too, and nobody can say what it wrote.
#[test]
fn peer_that_outlived_the_link_by_long_is_not_promoted_without_a_word() {
    let mut facts = gone();
    facts.guard.witnesses[0].said = Ok(Verdict::Healthy);
    let mut minute = 1;
    while minute < 180 {
        (facts.now, facts.probe) = (at(minute * 60 + 15), Ok(probe(minute * 60, &[Verdict::Unreachable; 3])));
        let decision = decide(&facts, &policy());
        assert!(stopped(&decision).contains(&"witness"), "{decision:?}");
        facts.record = decision.record;
        minute += 1;
    }
    assert_eq!(facts.record.first_failure, Some(at(0)), "one outage");
    facts.guard.witnesses[0].said = Ok(Verdict::Unreachable);
    (facts.now, facts.probe) = (at(minute * 60 + 15), Ok(probe(minute * 60, &[Verdict::Unreachable; 3])));
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan.clone(), stopped(&decision)), (Plan::Refuse, vec!["lag"]), "{decision:?}");
    assert!(decision.reason.contains("saw the peer alive at"), "{}", decision.reason);
    facts.record = decision.record;
    facts.confirm = Some(Confirm { overrides: vec![Guard::Lag], reason: "the hall burnt down".into() });
    assert_eq!(decide(&facts, &policy()).plan, Plan::Promote, "a person may");
}

/// What the monitor saw of the peer's lease outlives a person's run that asks nobody, or by a way that leads elsewhere; so does what a
/// witness saw.
#[test]
fn person_who_asks_fewer_makes_nobody_forget_what_was_seen() {
    let known = second_path(Some("pg-gold-0"), at(11)).lease.unwrap();
    let asked = |record: &SiteRecord, second_path: Option<SecondPath>| {
        let mut facts = Facts { record: record.clone(), ..gone() };
        (facts.guard.second_path, facts.guard.hold) = (second_path, Some("drill".into()));
        facts.confirm = Some(Confirm { overrides: Vec::new(), reason: "drill".into() });
        decide(&facts, &policy())
    };
    let mut record = gone().record;
    record.peer_lease = Some(known.clone());
    let foreign = SecondPath { system_id: Some(SystemId(1)), ..second_path(None, at(74)) };
    for path in [None, Some(foreign)] {
        assert_eq!(asked(&record, path).record.peer_lease, Some(known.clone()));
    }
    record.last_good.as_mut().unwrap().time = at(-290);
    assert!(!stopped(&asked(&record, None)).contains(&"lag"));
    record.peer_lease.as_mut().unwrap().renewed = Some(at(11));
    assert!(stopped(&asked(&record, None)).contains(&"lag"));
    record.peer_lease = None;
    record.witnesses.insert("http://asked-no-more".into(), at(11));
    assert!(stopped(&asked(&record, None)).contains(&"lag"), "a person may ask fewer");
    assert_eq!(decide(&Facts { record, ..gone() }, &policy()).plan, Plan::Promote, "it was taken away");
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
fn mode_off_only_reports() {
    assert_eq!(decide(&gone(), &Policy { mode: Mode::Off, ..policy() }).plan, Plan::Nothing);
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
