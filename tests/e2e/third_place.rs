//! A monitor outside both sites, with nothing but two contexts: the peer is probed through its own API server.

use std::{process::Command, time::Duration};

use tempfile::TempDir;

use crate::{
    chain::{Ended, finish},
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, kubeconfig_path},
    promotion::cut_gold,
    system::{Background, LIFEBOAT, await_condition, cluster_script},
};

const PROBE: [&str; 8] = ["pg-probe", "--context", "gold", "--third-place", "--attempts", "2", "--interval", "500ms"];

/// A command at the third place; it reaches both API servers, and GoldDR's primary by its entrance.
fn third(dir: &TempDir, words: &[&str]) -> Command {
    let mut command = cluster_script("enter");
    command.args(["third", LIFEBOAT]).args(words).env("KUBECONFIG", kubeconfig_path()).current_dir(dir.path());
    command.env("PGUSER", "replicator").env("PGPASSWORD", GOLDDR.password("replication"));
    command
}

fn step(dir: &TempDir, words: &[&str]) -> Ended {
    let mut command = third(dir, words);
    finish(command.args(["--namespace", NAMESPACE, "--scope", SCOPE, "--dir", dir.path().to_str().unwrap()]))
}

fn probe(dir: &TempDir) -> Ended {
    step(dir, &PROBE)
}

fn promote_words() -> Vec<String> {
    let primary = format!("{}:{}", GOLDDR.host(), GOLDDR.node_port());
    let words =
        ["promote", "--context", "golddr", "--site", "golddr", "--mode", "auto", "--failures", "4", "--for", "1s"];
    words.into_iter().map(ToOwned::to_owned).chain(["--primary".to_owned(), primary]).collect()
}

fn promote(dir: &TempDir) -> Ended {
    step(dir, &promote_words().iter().map(String::as_str).collect::<Vec<_>>())
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
    // The same steps in one process, of which one asks the other cluster.
    let mut command = third(&dir, &["monitor", "--context", "golddr", "--namespace", NAMESPACE, "--scope", SCOPE]);
    command.args(["--every", "1s", "--listen", "127.0.0.1:18090", "--log-level", "warn", "--"]);
    let dir = format!("--dir={}", dir.path().display());
    command.args(PROBE).args(["--scope", SCOPE, &dir, "--then"]);
    let _monitor = Background::start(command.args(promote_words()).args(["--scope", SCOPE, &dir]));
    await_condition("the monitor promotes GoldDR", Duration::from_mins(1), || {
        let record = GOLDDR.record();
        if record["phase"] == "promoted" { Ok(()) } else { Err(format!("{record:#}")) }
    });
    assert_eq!(GOLDDR.session().one("SELECT pg_is_in_recovery()"), "f");
}
