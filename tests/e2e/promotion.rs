//! Promotions: by the CronJob after a power loss, by a run that was killed after each of its steps, by two runs at once, by an
//! operator's word, by the second path.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    chain::{Chain, Ended, SECOND_PATH, finish},
    pair::{GOLD, GOLDDR, Pair, Stopped, hasten_streaming, upgrade},
    sql::Session,
    system::{Cut, await_condition, cluster_script, container, run},
};

pub fn timeline() -> u32 {
    let session = GOLDDR.session();
    assert_eq!(session.one("SELECT pg_is_in_recovery()"), "f");
    session.one("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int").parse().unwrap()
}

pub fn audit(record: &Value, what: &str) -> usize {
    let events = record["audit"].as_array().unwrap();
    events.iter().filter(|event| event["event"].as_str().unwrap_or_default().contains(what)).count()
}

/// Gold can be reached by nobody.
pub fn cut_gold() -> [Cut; 2] {
    [Cut::new(&["cut", "gold", "golddr"]), Cut::new(&["cut", "gold", "third"])]
}

/// Gold's PostgreSQL is gone, and its own API server, which lives, shows a lease that nobody renews.
#[test]
fn gold_gone_beside_its_living_api_server_is_promoted_by_the_second_path() {
    let _pair = Pair::ready();
    let chain = Chain::calm_asking(&SECOND_PATH);
    assert_eq!(GOLDDR.record()["peer_lease"]["leader"].as_str().map(ToOwned::to_owned), GOLD.leader());
    // The first sight of a lease says nothing of renewals.
    await_condition("a run sees the lease renewed", Duration::from_secs(30), || {
        chain.run(&[]);
        let lease = GOLDDR.record()["peer_lease"].clone();
        if lease["renewed"].is_string() { Ok(()) } else { Err(lease.to_string()) }
    });
    let _stopped = Stopped::new(GOLD);
    let first = chain.run(&[]);
    assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
    let ended = await_condition("a run promotes", Duration::from_mins(2), || {
        let ended = chain.run(&[]);
        if ended.outcome["outcome"] == "done" { Ok(ended) } else { Err(format!("{ended:#?}")) }
    });
    let record = GOLDDR.record();
    assert_eq!((&record["phase"], &record["promotion"]["by"]), (&"promoted".into(), &"auto".into()), "{record:#}");
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let watched = time(&record["promotion"]["decided"]).duration_since(time(&record["peer_lease"]["since"]));
    println!("second path: {}", ended.found("second-path"));
    assert!(watched.as_secs() >= 30, "promoted after {watched:?}, sooner than the lease's time to live");
}

/// Two outages: the first ends though its promotion was approved, the second one is approved too.
#[test]
fn approval_counts_in_the_outage_in_which_it_was_given_and_promotes_in_no_other() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let approve = ["--mode", "approve"];
    let removed = || (GOLDDR.annotation("lifeboat/approve"), audit(&GOLDDR.record(), "approval \"1\" removed"));
    GOLDDR.annotate_record("lifeboat/approve=1");
    let early = chain.run(&approve);
    assert_eq!((early.code, removed()), (Some(0), (None, 1)), "{early:#?}");

    let cuts = chain.isolate_gold();
    let awaiting = chain.run(&approve);
    assert_eq!((awaiting.code, &awaiting.outcome["phase"]), (Some(0), &"awaiting-approval".into()), "{awaiting:#?}");
    assert_eq!(awaiting.alerts(), ["AwaitingApproval"], "{awaiting:#?}");
    GOLDDR.annotate_record("lifeboat/approve=1");
    drop(cuts);
    let back = chain.run(&approve);
    assert_eq!((&back.outcome["phase"], removed()), (&"watching".into(), (None, 2)), "{back:#?}");
    hasten_streaming();

    let _cuts = chain.isolate_gold();
    let awaiting = chain.run(&approve);
    assert_eq!((awaiting.code, &awaiting.outcome["phase"]), (Some(0), &"awaiting-approval".into()), "{awaiting:#?}");
    assert!(GOLDDR.is_standby(), "promoted by the word of another outage");
    GOLDDR.annotate_record("lifeboat/approve=1");
    let ended = chain.run(&approve);
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
    let record = GOLDDR.record();
    assert_eq!((&record["phase"], &record["promotion"]["by"]), (&"promoted".into(), &"approved".into()), "{record:#}");
    assert_eq!(removed(), (None, 2), "the word is gone, and was not for another outage");
}

/// One promotion, whose run is killed after every single step and started again each time.
#[test]
fn run_killed_after_each_step_and_run_again_finishes_and_promotes_once() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let before: u32 = GOLDDR.session().one("SELECT timeline_id FROM pg_control_checkpoint()").parse().unwrap();
    let config_before = GOLDDR.config_text();
    let _cuts = chain.isolate_gold();
    // Gold is gone, and nothing but the API server is missing.
    chain.probe(&[]);
    let record = GOLDDR.record();
    let blind = finish(chain.promote_command(&[]).env("KUBECONFIG", chain.without_api_server()));
    assert_eq!((blind.code, GOLDDR.is_standby(), GOLDDR.record()), (Some(1), true, record), "{blind:#?}");
    for (step, phase, standby) in [
        ("decided", "suspect", true),
        ("recorded", "promoting", true),
        ("rechecked", "promoting", true),
        ("patched", "promoting", false),
        ("verified", "promoting", false),
    ] {
        chain.probe(&[]);
        let ended = finish(chain.promote_command(&[]).env("LIFEBOAT_KILL_AT", step));
        assert!(ended.code.is_none() || ended.code == Some(137), "{step}: {ended:#?}");
        assert!(ended.outcome.is_null(), "{step}: a killed run said how it ended");
        let record = GOLDDR.record();
        assert_eq!(
            (record["phase"].as_str(), GOLDDR.is_standby()),
            (Some(phase), standby),
            "killed at {step}: {record:#}"
        );
        println!("killed at {step}: phase {phase}, standby {standby}");
        if step == "rechecked" {
            upgrade(GOLDDR, &[]);
            assert_eq!((&GOLDDR.record()["phase"], GOLDDR.is_standby()), (&"promoting".into(), true), "by an upgrade");
        }
    }
    let ended = chain.run(&[]);
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
    let record = GOLDDR.record();
    assert_eq!((&record["phase"], &record["epoch"]), (&"promoted".into(), &1.into()), "{record:#}");
    assert_eq!(timeline(), before + 1, "promoted once");
    assert_eq!((audit(&record, "decided"), audit(&record, "promoted:")), (1, 1), "{record:#}");
    // Byte for byte, but for standby_cluster, which Patroni wrote last.
    let at = config_before.find(",\"standby_cluster\"").expect("standby_cluster");
    assert_eq!(GOLDDR.config_text(), format!("{}}}", &config_before[..at]));
    let again = chain.promote(&[]);
    assert_eq!((again.code, &again.outcome["outcome"]), (Some(0), &"nothing-to-do".into()), "{again:#?}");
    // The chart still says that this site is a standby.
    upgrade(GOLDDR, &["--set", "postgresql.parameters.work_mem=6MB"]);
    assert_eq!((&GOLDDR.record()["phase"], GOLDDR.is_standby()), (&"promoted".into(), false), "by an upgrade");
    await_condition("the parameter reaches the promoted site", Duration::from_secs(40), || {
        let session = GOLDDR.session();
        let found = (session.one("SHOW work_mem"), session.one("SELECT pg_is_in_recovery()"));
        if found == ("6MB".to_owned(), "f".to_owned()) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

#[test]
fn two_runs_at_once_promote_once() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let before: u32 = GOLDDR.session().one("SELECT timeline_id FROM pg_control_checkpoint()").parse().unwrap();
    let _cuts = chain.isolate_gold();
    chain.probe(&[]);
    // Somebody else writes to both records all the while: every write meets conflicts and must observe again.
    let stop = Arc::new(AtomicBool::new(false));
    let disturber = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let word = format!("e2e/disturbed={number}");
                let _ = GOLDDR.try_kubectl(&[
                    "annotate",
                    "--overwrite",
                    "configmap",
                    "lifeboat-config",
                    "lifeboat-dr",
                    &word,
                ]);
            }
        })
    };
    let runs: Vec<Ended> = thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| finish(&mut chain.promote_command(&[])))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    stop.store(true, Ordering::Relaxed);
    disturber.join().unwrap();
    assert!(runs.iter().all(|run| run.code == Some(0)), "{runs:#?}");
    let record = GOLDDR.record();
    assert_eq!((&record["phase"], &record["epoch"]), (&"promoted".into(), &1.into()), "{record:#}");
    assert_eq!((audit(&record, "decided"), audit(&record, "promoted:")), (1, 1), "{record:#}");
    assert_eq!(timeline(), before + 1);
    let conflicts: usize = runs.iter().map(|run| run.log.matches("observing again").count()).sum();
    println!(
        "two runs, {conflicts} conflicts, outcomes {} and {}",
        runs[0].outcome["outcome"], runs[1].outcome["outcome"]
    );
    assert!(conflicts > 0, "nobody was in another's way: {runs:#?}");
}

#[test]
fn person_confirms_without_a_probe_and_sets_a_guard_aside() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _cuts = chain.isolate_gold();
    let mut record = GOLDDR.record();
    record["last_good"] = Value::Null;
    GOLDDR.write_record(&record);
    let confirm = ["--confirm", "--reason", "Gold's hall is under water"];
    let refused = chain.promote(&confirm);
    refused.assert_refused_by("lag");
    let unreasoned = chain.promote(&["--confirm"]);
    assert_eq!(unreasoned.code, Some(2), "{unreasoned:#?}");
    let set_aside = [&confirm[..], &["--override", "lag,system-id,timeline"]].concat();
    let killed = finish(chain.promote_command(&set_aside).env("LIFEBOAT_KILL_AT", "recorded"));
    assert!(killed.outcome.is_null() && GOLDDR.is_standby(), "{killed:#?}");
    assert_eq!(GOLDDR.record()["phase"], "promoting");
    // An ordinary run of the monitor would be refused by these guards; it finishes what the person decided.
    let ended = chain.run(&[]);
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
    let record = GOLDDR.record();
    let promotion = &record["promotion"];
    let reason = promotion["reason"].as_str().unwrap();
    assert_eq!((&record["phase"], &record["epoch"]), (&"promoted".into(), &1.into()), "{record:#}");
    assert_eq!(promotion["by"], "confirmed");
    assert!(reason.contains("under water") && reason.contains("lag"), "{promotion:#}");
}

/// A row that Gold acknowledged: its number, and a position behind its commit.
type Acknowledged = (u64, u64);

/// Writes rows to Gold as fast as one session can, and keeps what was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    rows: Arc<Mutex<Vec<Acknowledged>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    fn start() -> Self {
        let session = GOLD.session();
        session.query("CREATE TABLE written (id bigint PRIMARY KEY, text text)");
        let (stop, rows) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = {
            let (stop, rows) = (Arc::clone(&stop), Arc::clone(&rows));
            thread::spawn(move || {
                for id in 1.. {
                    if session.try_query(&format!("INSERT INTO written VALUES ({id}, 'row')")).is_err() {
                        return;
                    }
                    // Asked in one string with the row, the position would be that before the commit. Where nobody answers
                    // any more, it is behind all that was seen received.
                    let answer = session.try_query("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn");
                    let behind = answer.as_ref().map_or(u64::MAX, |answer| answer[0].parse().unwrap());
                    rows.lock().unwrap().push((id, behind));
                    if answer.is_err() || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            })
        };
        Self { stop, rows, thread: Some(thread) }
    }

    fn acknowledged(mut self) -> Vec<Acknowledged> {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
        std::mem::take(&mut *self.rows.lock().unwrap())
    }
}

fn position(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

/// The main job: Gold loses its power, and the CronJob on its real schedule promotes GoldDR, with the defaults that users get.
#[test]
fn gold_killed_is_promoted_by_the_cronjob_on_its_schedule() {
    let pair = Pair::ready();
    GOLDDR.set_config(&GOLDDR.config_text().replace("\"loop_wait\":2", "\"loop_wait\":10"));
    assert!(GOLDDR.config_text().contains("\"loop_wait\":10"), "{}", GOLDDR.config_text());
    let chain = Chain::of_site(&["--witness", &pair.witness.url]);
    let writer = Writer::start();
    // A few rows later, so that some of them are whole.
    let written = position(&GOLD.session().one("SELECT pg_current_wal_insert_lsn()"));
    await_condition("a good probe that saw rows received", Duration::from_secs(40), || {
        let healthy = chain.run(&[]);
        let seen = GOLDDR.record()["last_good"]["local_lsn"].as_str().map_or(0, position);
        if seen > written + 4096 { Ok(()) } else { Err(format!("{seen} of {written}: {healthy:#?}")) }
    });
    GOLDDR.kubectl(&["patch", "cronjob", "lifeboat-monitor", "-p", r#"{"spec":{"suspend":false}}"#]);
    let killed = Instant::now();
    run(cluster_script("kill").arg("gold"));
    let acknowledged = writer.acknowledged();
    let promoted = await_condition("the CronJob promotes GoldDR", Duration::from_mins(4), || {
        let record = GOLDDR.record();
        if record["phase"] == "promoted" {
            Ok(record)
        } else {
            Err(format!("phase {}, failures {}", record["phase"], record["failures"]))
        }
    });
    let took = killed.elapsed();
    GOLDDR.kubectl(&["patch", "cronjob", "lifeboat-monitor", "-p", r#"{"spec":{"suspend":true}}"#]);
    let session = GOLDDR.session();
    session.query("INSERT INTO written VALUES (0, 'after the promotion')");
    assert_eq!((&promoted["epoch"], &promoted["promotion"]["by"]), (&1.into(), &"auto".into()), "{promoted:#}");
    assert_eq!(audit(&promoted, "promoted:"), 1);
    assert!(timeline() >= 2);

    // What was acknowledged and is not there may only be what the last good probe saw lagging, or was written since.
    let present = session.one("SELECT count(*) FROM written WHERE id > 0").parse::<usize>().unwrap();
    let newest = session.one("SELECT coalesce(max(id), 0) FROM written").parse::<u64>().unwrap();
    let good = &promoted["last_good"];
    let received_then = position(good["local_lsn"].as_str().unwrap());
    let certain = acknowledged.iter().filter(|(_, lsn)| *lsn <= received_then).map(|(id, ..)| *id).max().unwrap_or(0);
    let lost = acknowledged.iter().filter(|(id, ..)| *id > newest).count();
    println!(
        "Gold killed: GoldDR accepts writes after {took:?}; {} rows acknowledged, {present} present, {lost} lost (the last good probe vouches for {certain})",
        acknowledged.len()
    );
    assert!(!acknowledged.is_empty() && certain > 0, "the writer or the probe did nothing");
    assert!(newest >= certain, "rows that the last good probe saw received are gone");
    assert_eq!(present as u64, newest, "a hole in the rows");
    // The seed's promise in a pod: the chain's last run told what it did in its termination message.
    // The record is written before the container ends, and the kubelet tells of that a moment later.
    await_condition("a pod of the monitor says that it promoted", Duration::from_secs(30), || {
        let pods = GOLDDR.get(&["pods", "-l", "app.kubernetes.io/component=monitor"]);
        let messages = pods["items"].as_array().unwrap().iter().map(|pod| {
            let ended = &container(pod, "promote")["state"]["terminated"];
            ended["message"].as_str().unwrap_or_default().to_owned()
        });
        let messages: Vec<String> = messages.collect();
        if messages.iter().any(|text| text.contains("accepts writes")) { Ok(()) } else { Err(format!("{messages:#?}")) }
    });
    drop(Session::open(&GOLDDR.host(), GOLDDR.node_port(), "app", &GOLDDR.password("app"), "app").unwrap());
}
