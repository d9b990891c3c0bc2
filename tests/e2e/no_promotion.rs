//! Every fault that must not promote, made for real: after each, `standby_cluster` is still there and the right guard said no.

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Ended, SECOND_PATH, end_wal_receiver, finish},
    pair::{GOLD, GOLDDR, NAMESPACE, Pair, Witness, await_streaming},
    sql::Session,
    system::{Cut, Frozen, address, await_condition, processes_named, processes_of},
};

#[test]
fn one_blip_resets_the_count() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let cut = Cut::new(&["cut", "gold", "golddr"]);
    let first = chain.run(&[]);
    assert_eq!((&first.outcome["phase"], &first.outcome["failures"]), (&"suspect".into(), &3.into()), "{first:#?}");
    drop(cut);
    let second = chain.run(&[]);
    assert_eq!((&second.outcome["phase"], &second.outcome["failures"]), (&"watching".into(), &0.into()), "{second:#?}");
    assert!(GOLDDR.is_standby());
}

#[test]
fn same_probe_read_again_is_not_counted_again() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.probe(&[]);
    for _ in 0..4 {
        let ended = chain.promote(&[]);
        assert_eq!((ended.code, &ended.outcome["failures"]), (Some(0), &3.into()), "{ended:#?}");
    }
    drop(cut);
    assert!(GOLDDR.is_standby());
}

/// With the defaults that users get: five failures over a minute. Gold's own failover is quicker.
#[test]
fn leader_of_gold_dies_and_its_replica_takes_over() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let old = GOLD.leader().unwrap();
    let frozen = Frozen::new(processes_of(&old, NAMESPACE));
    let begun = Instant::now();
    let defaults = ["--failures", "5", "--for", "60s", "--period", "60s"];
    let mut unreachable = 0;
    loop {
        let probe = chain.probe(&[]);
        let ended = chain.promote(&defaults);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        assert!(GOLDDR.is_standby());
        match probe.outcome["verdict"].as_str().unwrap() {
            "healthy" if GOLD.leader().is_some_and(|leader| leader != old) => break,
            "healthy" => {}
            _ => unreachable += 1,
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "Gold's replica did not take over");
        thread::sleep(Duration::from_secs(1));
    }
    assert!(unreachable > 0, "the fault was never seen");
    println!("Gold's replica took over after {:?}, {unreachable} probes failed", begun.elapsed());
    drop(frozen);
    await_streaming();
}

#[test]
fn peer_out_of_connections_is_alive() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let mut sessions = Vec::new();
    let full = loop {
        match GOLD.try_session("app", "app") {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        assert!(sessions.len() < 500, "Gold takes any number of connections");
    };
    assert!(full.starts_with("53300"), "{full}");
    for _ in 0..2 {
        let probe = chain.probe(&[]);
        assert_eq!(probe.outcome["verdict"], "rejected", "{probe:#?}");
        let ended = chain.promote(&[]);
        assert_eq!((ended.code, &ended.outcome["failures"]), (Some(0), &0.into()), "{ended:#?}");
    }
    drop(sessions);
    assert!(GOLDDR.is_standby());
}

#[test]
fn peer_that_rejects_the_password_is_alive() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let (host, port) = crate::pair::cluster_ip(GOLDDR, "lifeboat-primary-gold");
    for _ in 0..2 {
        let probe = finish(
            chain.command(&["pg-probe", "--host", &host, "--port", &port.to_string()]).env("PGPASSWORD", "wrong"),
        );
        assert_eq!(probe.outcome["verdict"], "rejected", "{probe:#?}");
        assert_eq!(chain.promote(&[]).code, Some(0));
    }
    assert!(GOLDDR.is_standby());
}

/// A server that starts answers SQLSTATE 57P03, here from a listener that speaks just that (the loopback suite has the real one).
#[test]
fn peer_that_is_starting_is_alive() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let listener = TcpListener::bind((address("machine"), 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";
            let mut message = vec![b'E'];
            message.extend(u32::try_from(fields.len() + 4).unwrap().to_be_bytes());
            message.extend(fields);
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(&message);
        }
    });
    for _ in 0..2 {
        let probe = finish(&mut chain.command(&[
            "pg-probe",
            "--host",
            &address("machine"),
            "--port",
            &port,
            "--sslmode",
            "disable",
        ]));
        assert_eq!(probe.outcome["verdict"], "starting", "{probe:#?}");
        let ended = chain.promote(&[]);
        assert_eq!((ended.code, &ended.outcome["failures"]), (Some(0), &0.into()), "{ended:#?}");
    }
    assert!(GOLDDR.is_standby());
}

#[test]
fn port_missing_or_empty_is_never_a_dead_peer() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let file = chain.dir().join("tsc_port");
    for content in [None, Some(""), Some("\n"), Some("null")] {
        let _ = std::fs::remove_file(&file);
        if let Some(text) = content {
            std::fs::write(&file, text).unwrap();
        }
        for _ in 0..3 {
            let probe = finish(&mut chain.command(&[
                "pg-probe",
                "--host",
                "lifeboat-primary-gold",
                "--port-file",
                file.to_str().unwrap(),
            ]));
            assert_eq!(probe.outcome["verdict"], "misconfigured", "{probe:#?}");
            assert!(!chain.dir().join("health").exists(), "a word on the peer's health");
            let ended = chain.promote(&[]);
            assert_eq!((ended.code, &ended.outcome["failures"]), (Some(2), &0.into()), "{ended:#?}");
        }
    }
    assert!(GOLDDR.is_standby());
}

#[test]
fn facts_stale_missing_or_malformed_refuse() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.probe(&[]);
    drop(cut);
    let file = chain.dir().join("probe.json");
    let fresh = std::fs::read_to_string(&file).unwrap();
    let with_time = |time: &str| {
        let mut facts = crate::system::json(&fresh);
        facts["taken"] = time.into();
        facts.to_string()
    };
    let cases = [
        (Some(with_time("2020-01-01T00:00:00Z")), "is too old"),
        (Some(with_time("2999-01-01T00:00:00Z")), "in the future"),
        (Some("{".to_owned()), "is malformed"),
        (Some("{}".to_owned()), "is malformed"),
        (Some(String::new()), "is malformed"),
        (None, "No such file"),
    ];
    for (content, said) in cases {
        match &content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let ended = chain.promote(&["--failures", "1", "--for", "0s"]);
        assert!(ended.code == Some(3) && ended.reason().contains(said), "{content:?}, {said}: {ended:#?}");
    }
    assert!(GOLDDR.is_standby());
}

/// The seed's gravest case: the probe fails, and yet every byte arrives.
#[test]
fn probe_path_cut_while_replication_streams_is_refused_by_the_wal_receiver() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _witness_blind = Cut::new(&["cut", "gold", "third"]);
    let _cut = Cut::new(&["drop-new", "gold", "golddr"]);
    let ended = chain.run_twice(&[]);
    ended.assert_refused_by("wal-receiver");
    assert!(ended.outcome["failures"].as_u64().unwrap() >= 4, "a refusal keeps the count");
}

#[test]
fn link_cut_with_gold_alive_is_refused_by_the_witness_that_sees_it() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _cut = Cut::new(&["cut", "gold", "golddr"]);
    chain.run_twice(&[]).assert_refused_by("witness");
}

#[test]
fn link_cut_and_nobody_else_to_ask_never_promotes() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _witness_blind = Cut::new(&["cut", "gold", "third"]);
    let _cut = Cut::new(&["cut", "gold", "golddr"]);
    chain.probe(&[]);
    // A witness that does not answer is no witness, though the usual one says that Gold is gone.
    let silent = format!("http://{}:9", address("third"));
    let ended = chain.promote(&["--witness", &silent, "--failures", "1", "--for", "0s"]);
    ended.assert_refused_by("witness");
    let evidence = ended.outcome["evidence"].as_array().unwrap();
    let found = |word: &str| {
        let of_it = evidence.iter().find(|e| e["found"].as_str().is_some_and(|found| found.contains(word)));
        of_it.unwrap_or_else(|| panic!("nothing of {word}: {ended:#?}"))["passed"].clone()
    };
    assert_eq!((found(&silent), found(&pair.witness.url)), (false.into(), true.into()), "{ended:#?}");
    // Without any, mode auto is a configuration error, and mode approve waits for a person.
    let base = [
        "promote",
        "--context",
        "golddr",
        "-n",
        NAMESPACE,
        "--scope",
        "lifeboat",
        "--site",
        "golddr",
        "--failures",
        "1",
        "--for",
        "0s",
    ];
    let auto = finish(chain.command(&base).args(["--mode", "auto"]));
    assert_eq!(auto.code, Some(2), "{auto:#?}");
    await_condition("the WAL receiver notices", Duration::from_secs(30), || {
        chain.probe(&[]);
        let approve = finish(chain.command(&base).args(["--mode", "approve"]));
        match (approve.code, approve.outcome["phase"].as_str()) {
            (Some(0), Some("awaiting-approval")) => Ok(()),
            (Some(3), _) if approve.stopped_by() == ["wal-receiver"] => Err(approve.reason().to_owned()),
            _ => panic!("{approve:#?}"),
        }
    });
    assert!(GOLDDR.is_standby());
}

/// Nobody sees Gold's PostgreSQL any more, and only its API server can tell that it leads, if somebody has a way to it.
#[test]
fn peer_that_leads_by_its_own_api_server_is_refused_by_the_second_path() {
    let _pair = Pair::ready();
    let chain = Chain::calm_asking(&SECOND_PATH);
    let _cut = Cut::new(&["cut", "gold", "golddr"]);
    end_wal_receiver();
    chain.probe(&[]);
    let first = chain.promote_by_another_way(&[]);
    assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
    chain.probe(&[]);
    let seen = chain.promote_by_another_way(&[]);
    seen.assert_refused_by_nothing_but("second-path");
    let blind = chain.run(&[]);
    blind.assert_refused_by_nothing_but("second-path");
    assert!(blind.found("second-path").contains("no answer"), "{blind:#?}");
    println!("by another way: {}; by the cut link: {}", seen.found("second-path"), blind.found("second-path"));
}

/// It may look at the wrong place, so its blindness says nothing.
#[test]
fn witness_that_never_saw_the_peer_is_told_while_it_lives_and_refuses_in_the_outage() {
    let _pair = Pair::ready();
    let elsewhere = Witness::start(18082, 9);
    let chain = Chain::calm_asking(&["--witness", &elsewhere.url]);
    let told = chain.run(&["--alert-repeat", "0s"]);
    assert_eq!((told.code, told.alerts()), (Some(0), vec!["WitnessBlind"]), "{told:#?}");
    let _cuts = chain.isolate_gold();
    let ended = chain.run(&[]);
    ended.assert_refused_by_nothing_but("witness");
    assert!(ended.found("witness").ends_with("unreachable, but it never saw the peer alive"), "{ended:#?}");
}

/// Until its first copy is whole, GoldDR's configuration has no `standby_cluster`, as that of a site that leads.
#[test]
fn standby_that_is_being_born_is_never_taken_for_promoted() {
    let pair = Pair::ready();
    let runs = pair.runs_at_birth();
    let unborn = runs.iter().filter(|run| run.reason().contains("not initialized yet")).count();
    let reasons: Vec<&str> = runs.iter().map(Ended::reason).collect();
    println!("{unborn} of {} runs met an unborn cluster", runs.len());
    assert!(unborn > 0, "no run of the monitor came early enough: {reasons:#?}");
    for run in runs {
        assert!(!run.alerts().contains(&"Promoted") && run.outcome["phase"] != "promoted", "{run:#?}");
        assert!(run.outcome["epoch"].is_null() || run.outcome["epoch"] == 0, "{run:#?}");
    }
    let last = runs.last().unwrap();
    assert!(last.reason().starts_with("the peer is alive"), "{reasons:#?}");
    assert_eq!((last.code, &last.outcome["phase"]), (Some(0), &"watching".into()), "{last:#?}");
}

#[test]
fn lag_over_the_limit_is_refused() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let leader = GOLDDR.leader().unwrap();
    let frozen = Frozen::new(processes_named("walreceiver", &leader, NAMESPACE));
    GOLD.session().query("CREATE TABLE IF NOT EXISTS lagging AS SELECT repeat('x', 1000) FROM generate_series(1, 4000); DROP TABLE lagging");
    let healthy = chain.run(&[]);
    let lag = healthy.outcome["lag_bytes"].as_u64().unwrap();
    assert!(lag > 1 << 20, "no lag: {healthy:#?}");
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    let ended = chain.run_twice(&["--max-lag", "1MiB"]);
    drop(frozen);
    ended.assert_refused_by("lag");
}

#[test]
fn another_system_id_is_refused() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let mut record = GOLDDR.record();
    record["last_good"]["system_id"] = "1234567890123456789".into();
    GOLDDR.write_record(&record);
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.run_twice(&[]).assert_refused_by("system-id");
}

#[test]
fn hold_and_maintenance_are_refused_and_told() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    GOLDDR.annotate_record("lifeboat/hold=storage work until noon");
    GOLDDR.annotate_record("lifeboat/maintenance-until=2999-01-01T00:00:00Z");
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    let ended = chain.run_twice(&[]);
    ended.assert_refused_by("hold");
    ended.assert_refused_by("maintenance");
    // The alert is an Event on the record, where `kubectl describe` shows it.
    let events = GOLDDR.get(&["events", "--field-selector=involvedObject.name=lifeboat-dr"]);
    let reasons: Vec<&str> =
        events["items"].as_array().unwrap().iter().filter_map(|event| event["reason"].as_str()).collect();
    assert!(reasons.contains(&"PromotionRefused"), "{events:#}");
}

#[test]
fn local_leader_that_hangs_is_refused() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let patroni = processes_named("patroni", &GOLDDR.leader().unwrap(), NAMESPACE);
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.run(&[]);
    let frozen = Frozen::new(patroni);
    let ended = chain.run(&[]);
    drop(frozen);
    ended.assert_refused_by("leader");
}

#[test]
fn paused_patroni_is_refused() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let text = GOLDDR.config_text();
    GOLDDR.set_config(&text.replacen('{', "{\"pause\":true,", 1));
    let cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    let ended = chain.run_twice(&[]);
    GOLDDR.set_config(&text);
    drop(cut);
    ended.assert_refused_by("paused");
}

#[test]
fn dry_run_decides_and_changes_nothing() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let before = (GOLDDR.config_text(), GOLDDR.record());
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.probe(&[]);
    let ended = chain.promote(&["--dry-run"]);
    assert_eq!((ended.code, &ended.outcome["dry_run"]), (Some(0), &true.into()), "{ended:#?}");
    assert_eq!((GOLDDR.config_text(), GOLDDR.record()), before);
}

/// Not a fault of the peer's at all: somebody else's password in the pod must not look like one.
#[test]
fn local_server_that_can_not_be_asked_is_unknown_and_refuses() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let _cut = Cut::new(&["cut", "gold", "golddr", "--reject"]);
    chain.run(&[]);
    chain.probe(&[]);
    let ended = finish(chain.promote_command(&[]).env("PGPASSWORD", "wrong"));
    ended.assert_refused_by("system-id");
    assert!(Session::open(&GOLDDR.host(), GOLDDR.node_port(), "replicator", "wrong", "postgres").is_err());
}
