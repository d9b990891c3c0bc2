//! Promotions from their beginning to their end, and sites that lead already.

use super::*;

#[test]
fn peer_gone_and_every_guard_passed_promotes() {
    let decision = decide(&gone(), &policy());
    assert_eq!(decision.plan, Plan::Promote, "{decision:?}");
    assert_eq!((decision.record.phase, decision.record.epoch), (Phase::Promoting, 1));
    let promotion = decision.record.promotion.unwrap();
    assert_eq!((promotion.by.as_str(), promotion.from_timeline), ("auto", Some(Timeline(1))));
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
fn two_sites_that_lead_are_told() {
    let mut facts = gone();
    (facts.config, facts.record.phase) = (config(false), Phase::Promoted);
    let mut both = probe(60, &[Verdict::Healthy]);
    both.peer = PeerFacts { in_recovery: Some(false), ..PeerFacts::default() };
    facts.probe = Ok(both);
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.alert.unwrap().kind.as_str()), (Plan::Refuse, "SplitBrain"));
}
