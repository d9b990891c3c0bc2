//! A monitor outside both sites, with nothing but two contexts: the peer is probed through its own API server.

use std::time::Duration;

use tempfile::TempDir;

use crate::{
    chain::{Ended, finish},
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, kubeconfig_path},
    promotion::cut_gold,
    system::{LIFEBOAT, await_condition, cluster_script},
};

/// A step at the third place; it reaches both API servers, and GoldDR's primary by its entrance.
fn step(dir: &TempDir, words: &[&str]) -> Ended {
    let mut command = cluster_script("enter");
    command.args(["third", LIFEBOAT]).args(words).args(["--namespace", NAMESPACE, "--scope", SCOPE]);
    command.args(["--dir", dir.path().to_str().unwrap()]).env("KUBECONFIG", kubeconfig_path());
    finish(command.env("PGUSER", "replicator").env("PGPASSWORD", GOLDDR.password("replication")))
}

fn probe(dir: &TempDir) -> Ended {
    step(dir, &["pg-probe", "--context", "gold", "--third-place", "--attempts", "2", "--interval", "500ms"])
}

fn promote(dir: &TempDir) -> Ended {
    let primary = format!("{}:{}", GOLDDR.host(), GOLDDR.node_port());
    let policy = ["--mode", "auto", "--failures", "4", "--for", "1s", "--period", "60s"];
    step(dir, &[&["promote", "--context", "golddr", "--site", "golddr", "--primary", &primary], &policy[..]].concat())
}

#[test]
fn monitor_outside_both_sites_promotes_by_two_contexts() {
    let _pair = Pair::ready();
    let dir = tempfile::tempdir().unwrap();
    let healthy = probe(&dir);
    assert_eq!((&healthy.outcome["verdict"], healthy.code), (&"healthy".into(), Some(0)), "{healthy:#?}");
    assert_eq!(healthy.outcome["peer"]["in_recovery"], false, "{healthy:#?}");
    let calm = promote(&dir);
    assert_eq!((calm.code, &calm.outcome["phase"]), (Some(0), &"watching".into()), "{calm:#?}");
    assert!(GOLDDR.record()["last_good"]["local_lsn"].is_string());

    let _cuts = cut_gold();
    await_condition("the WAL receiver notices", Duration::from_secs(40), || {
        let rows = GOLDDR
            .session()
            .query("SELECT pid FROM pg_stat_wal_receiver WHERE last_msg_receipt_time > now() - interval '10s'");
        if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    let silent = step(&dir, &["pg-probe", "--context", "gold", "--attempts", "1"]);
    assert_eq!(silent.outcome["verdict"], "unknown", "at a site, a silent API server may be a cut link: {silent:#?}");
    let gone = probe(&dir);
    assert_eq!(gone.outcome["verdict"], "unreachable", "{gone:#?}");
    let first = promote(&dir);
    assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
    assert_eq!(probe(&dir).outcome["verdict"], "unreachable");
    let second = promote(&dir);
    assert_eq!((second.code, &second.outcome["outcome"]), (Some(0), &"done".into()), "{second:#?}");
    assert_eq!(GOLDDR.session().one("SELECT pg_is_in_recovery()"), "f");
}
