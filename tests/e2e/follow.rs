//! `follow` on a running cluster: it mends where that loses nothing, and refuses all else.

use std::time::Duration;

use serde_json::json;

use crate::{
    chain::{Chain, Ended, finish},
    pair::{GOLDDR, NAMESPACE, Pair, await_streaming, cluster_ip},
    system::{LIFEBOAT, cluster_script, tool, try_run},
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

#[test]
fn port_that_changed_is_corrected_and_streams_again() {
    let _pair = Pair::ready();
    let (_, port) = cluster_ip(GOLDDR, "lifeboat-primary-gold");
    let wrong = GOLDDR.config_text().replace(&format!("\"port\":{port}"), "\"port\":9");
    let patch = json!({"metadata": {"annotations": {"config": wrong}}}).to_string();
    GOLDDR.kubectl(&["patch", "configmap", "lifeboat-config", "--type=merge", "-p", &patch]);
    let port = port.to_string();
    let standby = ["--role", "standby", "--host", "lifeboat-primary-gold", "--port", &port, "--wait", "60s"];
    let ended = follow(&standby);
    assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
    assert!(GOLDDR.config_text().contains(&format!("\"port\":{port}")));
    await_streaming();
    let again = follow(&standby);
    assert_eq!((again.code, &again.outcome["outcome"]), (Some(0), &"nothing-to-do".into()), "{again:#?}");
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
    crate::system::await_condition("the parameter reaches the server", Duration::from_secs(40), || {
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
    let pods = || {
        GOLDDR.get(&["pods", "-l", "application=patroni"])["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pod| pod["metadata"]["uid"].clone())
            .collect::<Vec<_>>()
    };
    let uids = pods();
    let chart = crate::system::project("helm/lifeboat");
    try_run(
        tool("helm")
            .args([
                "--kube-context",
                "golddr",
                "-n",
                NAMESPACE,
                "upgrade",
                "lifeboat",
                chart.to_str().unwrap(),
                "--reuse-values",
            ])
            .args(["--set", "postgresql.parameters.work_mem=5MB", "--wait", "--timeout=3m"]),
    )
    .unwrap();
    let after = (GOLDDR.record(), crate::system::json(&GOLDDR.config_text())["standby_cluster"].clone());
    assert_eq!(after, before);
    assert_eq!(pods(), uids, "an upgrade of a dynamic parameter restarted the pods");
    assert_eq!(crate::system::json(&GOLDDR.config_text())["postgresql"]["parameters"]["work_mem"], "5MB");
    await_streaming();
}
