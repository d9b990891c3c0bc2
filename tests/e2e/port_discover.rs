//! `port-discover` against a real API server, by hand and as a Job's container with the chart's own rights.

use std::time::Duration;

use crate::{
    chain::{Chain, finish},
    pair::{GOLDDR, NAMESPACE, Pair},
    system::{await_condition, container, kubeconfig},
};

fn discover(chain: &Chain, service: &str, more: &[&str]) -> crate::chain::Ended {
    let place = ["--context", "golddr", "--namespace", NAMESPACE];
    finish(chain.command(&["port-discover", "--service", service]).args(place).args(more))
}

#[test]
fn service_that_leads_to_the_peer_yields_its_port() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let port = GOLDDR.get(&["service", "lifeboat-primary-gold"])["spec"]["ports"][0]["port"].as_u64().unwrap();
    let ended = discover(&chain, "lifeboat-primary-gold", &[]);
    assert_eq!((ended.code, ended.outcome["port"].as_u64()), (Some(0), Some(port)), "{ended:#?}");
    assert_eq!(std::fs::read_to_string(chain.dir().join("tsc_port")).unwrap(), format!("{port}\n"));
    let named = discover(&chain, "lifeboat-primary-gold", &["--port-name", "tunnel"]);
    assert_eq!(named.outcome["port"].as_u64(), Some(port), "{named:#?}");
}

#[test]
fn service_missing_or_without_such_a_port_is_an_error_that_names_it_and_leaves_no_port() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    for (service, more) in [
        ("no-such-service", &[][..]),
        ("lifeboat-primary-gold", &["--port-name", "nothing"]),
        ("lifeboat-primary-gold", &["--port-index", "7"]),
        ("lifeboat-primary-gold", &["--node-port"]),
    ] {
        assert_eq!(discover(&chain, "lifeboat-primary-gold", &[]).code, Some(0));
        let ended = discover(&chain, service, more);
        assert_eq!(ended.code, Some(1), "{ended:#?}");
        assert!(ended.reason().contains(service), "{ended:#?}");
        assert!(
            !chain.dir().join("tsc_port").exists() && !chain.dir().join("port.json").exists(),
            "a port was left behind"
        );
    }
}

#[test]
fn service_that_may_not_be_read_is_an_error_that_says_so() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let token = GOLDDR.kubectl(&["create", "token", "default"]);
    let kubeconfig_text = std::fs::read_to_string(kubeconfig()).unwrap();
    let file = chain.dir().join("kubeconfig");
    let mut kept: Vec<String> =
        kubeconfig_text.lines().filter(|line| !line.contains("client-certificate-data")).map(Into::into).collect();
    let users = kept.iter().position(|line| line.starts_with("users:")).unwrap();
    kept.insert(users + 1, format!("- {{name: golddr, user: {{token: {}}}}}", token.trim()));
    std::fs::write(&file, kept.join("\n")).unwrap();
    let words =
        ["port-discover", "--service", "lifeboat-primary-gold", "--context", "golddr", "--namespace", NAMESPACE];
    let ended = finish(chain.command(&words).env("KUBECONFIG", &file));
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.reason().contains("forbids") && ended.reason().contains("lifeboat-primary-gold"), "{ended:#?}");
    assert!(!ended.log.contains(token.trim()), "the token is in the log");
}

#[test]
fn service_that_appears_while_waiting_is_found() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let mut waiting = chain.command(&[
        "port-discover",
        "--service",
        "late",
        "--wait",
        "30s",
        "--context",
        "golddr",
        "--namespace",
        NAMESPACE,
    ]);
    let child = waiting.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    GOLDDR.kubectl(&["create", "service", "clusterip", "late", "--tcp=36760:5432"]);
    let output = child.wait_with_output().unwrap();
    GOLDDR.kubectl(&["delete", "service", "late"]);
    assert!(output.status.success());
    assert_eq!(std::fs::read_to_string(chain.dir().join("tsc_port")).unwrap(), "36760\n");
}

#[test]
fn api_server_that_is_gone_is_an_error_within_its_time_limit() {
    let pair = Pair::ready();
    let chain = Chain::calm(&pair);
    let discover = ["port-discover", "--service", "lifeboat-primary-gold", "--context", "golddr", "-n", NAMESPACE];
    let ended = finish(chain.command(&discover).env("KUBECONFIG", chain.without_api_server()));
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(!chain.dir().join("tsc_port").exists(), "it left a port");
}

#[test]
fn step_runs_as_a_job_of_the_chart_with_its_own_rights() {
    let _pair = Pair::ready();
    GOLDDR.kubectl(&["delete", "job", "by-hand", "--ignore-not-found"]);
    GOLDDR.kubectl(&["create", "job", "by-hand", "--from=cronjob/lifeboat-monitor"]);
    let pod = await_condition("the Job's pod ends", Duration::from_mins(1), || {
        let pods = GOLDDR.get(&["pods", "-l", "job-name=by-hand"]);
        let pod = pods["items"][0].clone();
        let ended = ["promote", "follow"].map(|name| !container(&pod, name)["state"]["terminated"].is_null());
        if ended.contains(&false) { Err(format!("{:#}", pod["status"])) } else { Ok(pod) }
    });
    let statuses = &pod["status"];
    for (name, status) in [
        ("port-discover", &statuses["initContainerStatuses"][0]),
        ("pg-probe", &statuses["initContainerStatuses"][1]),
        ("promote", container(&pod, "promote")),
        ("follow", container(&pod, "follow")),
    ] {
        let ended = &status["state"]["terminated"];
        assert_eq!((&status["name"], &ended["exitCode"]), (&name.into(), &0.into()), "{status:#}");
        // The termination message tells the story to `kubectl describe pod`.
        let outcome = crate::system::json(ended["message"].as_str().unwrap());
        assert_eq!(outcome["command"], name, "{outcome:#}");
    }
    GOLDDR.kubectl(&["delete", "job", "by-hand"]);
}
