//! `promote` from the decision to the accepted write, with a real PostgreSQL, while the API server or Patroni fails in between.

use std::time::Duration;

use crate::{
    api::{Fault, Site, TOKEN},
    lifeboat::{Ended, Running, await_condition},
    postgres::{PASSWORD, Postgres},
};

fn assert_promoted_once(site: &Site) {
    assert_eq!(site.applied(), 1, "Patroni's configuration was patched once");
    let record = site.record();
    assert_eq!((&record["phase"], &record["epoch"]), (&"promoted".into(), &1.into()), "{record}");
    assert_eq!((&record["promotion"]["from_timeline"], &record["promotion"]["to_timeline"]), (&1.into(), &2.into()));
    assert!(!site.config().contains("standby_cluster"), "{}", site.config());
    assert_eq!(site.standby.sql("SELECT pg_is_in_recovery()"), "f");
    assert_eq!(site.standby.sql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), "00000002");
}

#[test]
fn promotion_whose_patch_meets_a_conflict_keeps_the_others_change_and_promotes_once() {
    let site = Site::start().with_faults([Fault::Conflict]);
    let ended = Ended::of(&mut site.promote(&["--log-level=trace"]));
    let outcome = ended.assert_code(0).outcome();
    assert_eq!((&outcome["outcome"], &outcome["timeline"]), (&"done".into(), &2.into()), "{outcome}");
    assert_promoted_once(&site);
    assert_eq!(site.config(), r#"{"ttl": 31,"loop_wait":1}"#);
    ended.assert_hides(PASSWORD);
    ended.assert_hides(TOKEN);
}

#[test]
fn promotion_whose_patch_fails_in_each_way_is_finished_once_by_a_later_run() {
    let site =
        Site::start().with_faults([Fault::Status(403), Fault::Status(401), Fault::Status(500), Fault::AnswerLost]);
    // The token may run out while it works.
    for (said, told) in [("forbids", true), ("does not know us", false), ("500", false), ("demo-config", false)] {
        let outcome = Ended::of(&mut site.promote(&[])).assert_code(1).outcome();
        assert!(outcome["reason"].as_str().unwrap().contains(said), "{said}: {outcome}");
        assert_eq!(outcome["alerts"][0]["kind"] == "PromoteFailed", told, "once an hour: {outcome}");
        let record = site.record();
        assert_eq!((&record["phase"], &record["epoch"]), (&"promoting".into(), &1.into()), "{record}");
    }
    assert_eq!(Ended::of(&mut site.promote(&[])).assert_code(0).outcome()["outcome"], "done");
    assert_promoted_once(&site);
    let writes = site.writes();
    assert_eq!(Ended::of(&mut site.promote(&[])).assert_code(0).outcome()["outcome"], "nothing-to-do");
    assert_eq!(site.writes(), writes, "a site that leads writes nothing more");
}

#[test]
fn promotion_that_patroni_does_not_follow_is_unverified_then_stopped_then_finished() {
    let site = Site::start();
    site.set_patroni(false);
    let outcome = Ended::of(&mut site.promote(&["--verify-timeout=1s"])).assert_code(4).outcome();
    assert_eq!(
        (&outcome["outcome"], &outcome["alerts"][0]["kind"]),
        (&"unverified".into(), &"PromotionNotVerified".into())
    );
    assert!(outcome["reason"].as_str().unwrap().contains("still in recovery"), "{outcome}");
    assert_eq!(site.record()["phase"], "promoting");

    let mut running = Running::start(&mut site.promote(&["--verify-timeout=60s", "--log-level=debug"]));
    running.await_log("still in recovery");
    let ended = running.terminate();
    assert!(ended.assert_code(1).outcome()["reason"].as_str().unwrap().contains("SIGTERM"), "{}", ended.stdout);
    assert!(ended.took < Duration::from_secs(2), "{:?}", ended.took);
    assert_eq!(site.record()["phase"], "promoting");

    site.set_patroni(true);
    let outcome = Ended::of(&mut site.promote(&[])).assert_code(0).outcome();
    assert_eq!((&outcome["outcome"], &outcome["alerts"][0]["kind"]), (&"done".into(), &"Promoted".into()));
    assert_promoted_once(&site);
}

/// The peer failed over within its own site a moment before it was lost: our leader replays the new timeline, but neither its control file
/// nor Patroni's last word (there is none here) tells of it.
#[test]
fn timeline_that_was_just_followed_is_found_in_the_wal() {
    let first = Postgres::start(&[]);
    let second = first.standby(&[]).until_ready();
    let ours = second.standby(&[]).until_ready();
    drop(first);
    second.sql("SELECT pg_promote()");
    await_condition("the second one leads", Duration::from_secs(20), || {
        second.try_sql("SELECT pg_logical_emit_message(true, 'test', 'on timeline 2')").map(drop)
    });
    let target = second.sql("SELECT pg_current_wal_lsn()");
    await_condition("our standby follows", Duration::from_secs(20), || {
        let there = ours.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'"));
        if there == "t" { Ok(()) } else { Err(there) }
    });
    drop(second);
    await_condition("the receiver has ended", Duration::from_secs(20), || {
        let rows = ours.sql("SELECT count(*) FROM pg_stat_wal_receiver");
        if rows == "0" { Ok(()) } else { Err(rows) }
    });
    let known = ours.sql("SELECT timeline_id FROM pg_control_checkpoint()");
    assert_eq!(known, "1", "the control file knows already: this test shows nothing");
    let site = Site::of(ours, 2);
    let outcome = Ended::of(&mut site.promote(&["--dry-run"])).assert_code(0).outcome();
    let timeline = outcome["evidence"].as_array().unwrap().iter().find(|guard| guard["guard"] == "timeline").unwrap();
    assert_eq!(timeline["found"], "local 2, peer 2", "{outcome}");
}
