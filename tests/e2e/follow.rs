//! `follow` on a running cluster: it mends where that loses nothing, and refuses all else.

use std::time::Duration;

use crate::{
    chain::{Chain, Ended, finish},
    pair::{GOLD, GOLDDR, NAMESPACE, Pair, await_streaming, cluster_ip, upgrade},
    system::{LIFEBOAT, await_condition, cluster_script},
};

fn follow(words: &[&str]) -> Ended {
    let mut command = cluster_script("enter");
    command.args([
        "golddr",
        LIFEBOAT,
        "follow",
        "--context",
        "golddr",
        "-n",
        NAMESPACE,
        "--scope",
        "lifeboat",
        "--site",
        "golddr",
    ]);
    finish(command.args(words).env("KUBECONFIG", crate::pair::kubeconfig_path()))
}

/// Corrected to where nobody listens, then to the right port. Right after each correction, Patroni's word is that of before.
#[test]
fn port_that_changed_is_corrected_and_streams_again() {
    let _pair = Pair::ready();
    let (_, port) = cluster_ip(GOLDDR, "lifeboat-primary-gold");
    await_word(true);
    let standby = ["--role", "standby", "--host", "lifeboat-primary-gold"];
    let ended = follow(&[&standby[..], &["--port", "9", "--wait", "15s"]].concat());
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(4), &"unverified".into()), "{ended:#?}");
    assert!(GOLDDR.config_text().contains("\"port\":9"));
    assert!(ended.reason().ends_with("is StandbyLeader, running, replication unknown"), "{ended:#?}");
    await_word(false);
    let port = port.to_string();
    let standby = [&standby[..], &["--port", &port, "--wait", "60s"]].concat();
    let ended = follow(&standby);
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
    assert!(GOLDDR.config_text().contains(&format!("\"port\":{port}")));
    await_streaming();
    let again = follow(&standby);
    assert_eq!((again.code, &again.outcome["outcome"]), (Some(0), &"nothing-to-do".into()), "{again:#?}");
}

/// Waits until the leader's pod says that it streams, or that it does not.
fn await_word(streams: bool) {
    await_condition("Patroni's word", Duration::from_secs(30), || {
        let pod = GOLDDR.get(&["pod", &GOLDDR.leader().unwrap()]);
        let status = pod["metadata"]["annotations"]["status"].as_str().unwrap_or_default().to_owned();
        if status.contains("\"streaming\"") == streams { Ok(()) } else { Err(status) }
    });
}

#[test]
fn parameters_are_merged_and_standby_cluster_is_left_alone() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let (_, port) = cluster_ip(GOLDDR, "lifeboat-primary-gold");
    let file = chain.dir().join("dcs.json");
    std::fs::write(&file, r#"{"postgresql": {"parameters": {"log_min_duration_statement": "1234ms"}}}"#).unwrap();
    let port = port.to_string();
    let words = [
        "--role",
        "standby",
        "--host",
        "lifeboat-primary-gold",
        "--port",
        &port,
        "--wait",
        "60s",
        "--merge-file",
        file.to_str().unwrap(),
    ];
    let ended = follow(&words);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let config = crate::system::json(&GOLDDR.config_text());
    assert_eq!(config["postgresql"]["parameters"]["log_min_duration_statement"], "1234ms");
    assert_eq!(config["standby_cluster"]["port"].to_string(), port);
    await_condition("the parameter reaches the server", Duration::from_secs(40), || {
        let value = GOLDDR.session().one("SHOW log_min_duration_statement");
        if value == "1234ms" { Ok(()) } else { Err(value) }
    });
    std::fs::write(&file, r#"{"standby_cluster": null}"#).unwrap();
    assert_eq!(follow(&words).code, Some(2), "a merge file must not promote");
}

/// Patroni's annotations, the state record and the standby itself survive an upgrade.
#[test]
fn helm_upgrade_keeps_the_standby_and_its_record() {
    let pair = Pair::ready();
    drop(Chain::calm(&pair));
    let before = (GOLDDR.record(), crate::system::json(&GOLDDR.config_text())["standby_cluster"].clone());
    for site in [GOLD, GOLDDR] {
        upgrade(site, &["--set", "postgresql.parameters.work_mem=5MB"]);
    }
    let after = (GOLDDR.record(), crate::system::json(&GOLDDR.config_text())["standby_cluster"].clone());
    assert_eq!(after, before);
    for site in [GOLD, GOLDDR] {
        await_condition("the parameter reaches the server", Duration::from_secs(40), || {
            let value = site.session().one("SHOW work_mem");
            if value == "5MB" { Ok(()) } else { Err(value) }
        });
    }
    assert!(!GOLD.is_standby() && GOLD.config_text().contains("\"slots\""), "{}", GOLD.config_text());
    await_streaming();
}
