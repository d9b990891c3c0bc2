//! What a probe does to the record: failures counted, answers remembered.

use super::*;

#[test]
fn peer_that_answers_but_is_not_learned_of_for_long_is_told() {
    let mut facts = gone();
    facts.record = SiteRecord::new("golddr");
    facts.probe = Ok(probe(60, &[Verdict::Rejected]));
    let decision = decide(&facts, &policy());
    assert_eq!((decision.plan, decision.alert.unwrap().kind.as_str()), (Plan::Nothing, "ProbeBlind"));
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
