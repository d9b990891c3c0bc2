//! The monitor as one process that repeats its steps, and a port that drifts.

use std::time::{Duration, Instant};

use crate::{
    chain::Chain,
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, await_streaming, cluster_ip},
    promotion::{audit, cut_gold},
    system::{Background, address, await_condition, cluster_script, json, run},
};

/// A monitor on GoldDR's node that listens on this port.
pub fn monitor(chain: &Chain, port: u16, lease: &str, policy: &[&str]) -> Background {
    let listen = format!("{}:{port}", address("golddr"));
    let mut command = chain.command_as(
        &format!("monitor-{port}"),
        &[
            "monitor",
            "--context",
            "golddr",
            "--namespace",
            NAMESPACE,
            "--scope",
            SCOPE,
            "--every",
            "1s",
            "--listen",
            &listen,
            "--lease",
            lease,
            "--lease-duration",
            "6s",
            "--log-level",
            "warn",
            "--",
        ],
    );
    command.args(chain.probe_words(&["--attempts", "1"])).arg("--then");
    command.args(chain.promote_words(policy));
    Background::start(command.stdout(std::process::Stdio::null()))
}

fn ask(port: u16, path: &str) -> Result<String, String> {
    let answer = ureq::get(format!("http://{}:{port}{path}", address("golddr"))).call();
    answer.and_then(|mut answer| answer.body_mut().read_to_string()).map_err(|error| error.to_string())
}

pub fn await_metric(port: u16, line: &str, limit: Duration) {
    await_condition(line, limit, || {
        let text = ask(port, "/metrics")?;
        if text.lines().any(|found| found == line) { Ok(()) } else { Err(text) }
    });
}

/// Two monitors: one works. It dies, the other takes over; Gold dies, and GoldDR is promoted once.
#[test]
fn monitor_takes_over_from_a_dead_one_and_promotes_once() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let lease = format!("test-{}", std::process::id());
    let quick = ["--failures", "5", "--for", "8s"];
    let first = monitor(&chain, 18081, &lease, &quick);
    await_metric(18081, "lifeboat_monitor_leader 1.0", Duration::from_secs(20));
    let _second = monitor(&chain, 18082, &lease, &quick);
    await_metric(18082, "lifeboat_primary 0.0", Duration::from_secs(20));
    await_metric(18081, "lifeboat_phase{phase=\"watching\"} 1", Duration::from_secs(20));
    assert!(ask(18082, "/metrics").unwrap().contains("lifeboat_monitor_leader 0.0"), "two work at once");
    assert_eq!(ask(18081, "/healthz").unwrap(), "ok\n");
    assert!(ask(18081, "/primary").unwrap_err().contains("503"));
    drop(first);
    let died = Instant::now();
    await_metric(18082, "lifeboat_monitor_leader 1.0", Duration::from_secs(30));
    println!("the second monitor works {:?} after the first one's end", died.elapsed());

    let cuts = cut_gold();
    let cut = Instant::now();
    await_condition("the monitor promotes GoldDR", Duration::from_mins(2), || {
        let record = GOLDDR.record();
        if record["phase"] == "promoted" { Ok(()) } else { Err(format!("{record:#}")) }
    });
    let took = cut.elapsed();
    await_metric(18082, "lifeboat_phase{phase=\"promoted\"} 1", Duration::from_secs(10));
    await_condition("the site leads", Duration::from_secs(30), || ask(18082, "/primary"));
    let record = GOLDDR.record();
    assert_eq!((&record["epoch"], audit(&record, "decided")), (&1.into(), 1), "{record:#}");
    println!("Gold cut: GoldDR promoted after {took:?} with --for 8s");
    drop(cuts);
}

/// The claim is made anew: its Services get other ports. The next run of the CronJob finds the port, and replication follows it.
#[test]
fn port_that_drifted_is_followed_by_the_next_run_of_the_cronjob() {
    let _pair = Pair::ready();
    let before = cluster_ip(GOLDDR, "lifeboat-primary-gold").1;
    run(cluster_script("tunnel-provider").args(["reset", NAMESPACE, "lifeboat-primary"]));
    let after = await_condition("the Service has another port", Duration::from_secs(30), || {
        let service = json(&GOLDDR.try_kubectl(&["get", "service", "lifeboat-primary-gold", "-o", "json"])?);
        match service["spec"]["ports"][0]["port"].as_u64() {
            Some(port) if port != u64::from(before) => Ok(port),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(GOLDDR.config_text().contains(&format!("\"port\":{before}")), "it drifted");
    let job = format!("drift-{}", std::process::id());
    GOLDDR.kubectl(&["create", "job", &job, "--from=cronjob/lifeboat-monitor"]);
    GOLDDR.kubectl(&["wait", "job", &job, "--for=condition=Complete", "--timeout=90s", "--request-timeout=100s"]);
    assert_eq!(json(&GOLDDR.config_text())["standby_cluster"]["port"], after);
    await_streaming();
    let pods = GOLDDR.get(&["pods", "-l", &format!("job-name={job}")]);
    let statuses = pods["items"][0]["status"]["containerStatuses"].as_array().unwrap();
    let follow = statuses.iter().find(|status| status["name"] == "follow").unwrap();
    let said = follow["state"]["terminated"]["message"].as_str().unwrap();
    assert!(said.contains("PeerMoved") && said.contains(&after.to_string()), "{said}");
    GOLDDR.kubectl(&["delete", "job", &job]);
}
