//! What the chart made: rights, security, its own test.

use crate::{
    pair::{GOLD, GOLDDR, NAMESPACE, Pair, SCOPE, Site},
    system::{tool, try_run},
};

fn may(site: Site, account: &str, verb: &str, what: &str) -> bool {
    let account = format!("system:serviceaccount:{NAMESPACE}:{account}");
    try_run(tool("kubectl").args([
        "--context",
        site.name,
        "-n",
        NAMESPACE,
        "auth",
        "can-i",
        verb,
        what,
        "--as",
        &account,
    ]))
    .is_ok()
}

#[test]
fn service_accounts_may_do_what_their_step_needs_and_no_more() {
    let _pair = Pair::ready();
    let monitor = "lifeboat-monitor";
    for (verb, what) in [
        ("get", "services/lifeboat-primary-gold"),
        ("get", "configmaps/lifeboat-config"),
        ("patch", "configmaps/lifeboat-config"),
        ("get", "configmaps/lifeboat-leader"),
        ("patch", "configmaps/lifeboat-dr"),
        ("get", "pods/lifeboat-golddr-0"),
        ("create", "events"),
    ] {
        assert!(may(GOLDDR, monitor, verb, what), "{monitor} may not {verb} {what}");
    }
    for account in [monitor, "lifeboat-follow", "lifeboat-patroni", "default"] {
        for (verb, what) in [
            ("get", "secrets"),
            ("list", "secrets"),
            ("get", "secrets/lifeboat-auth"),
            ("delete", "configmaps/lifeboat-dr"),
            ("patch", "configmaps/other"),
            ("delete", "pods/lifeboat-golddr-0"),
            ("create", "pods/exec"),
            ("create", "pods"),
            ("patch", "services/lifeboat-primary-gold"),
            ("get", "nodes"),
            ("update", "roles"),
        ] {
            assert!(!may(GOLDDR, account, verb, what), "{account} may {verb} {what}");
        }
    }
    for (verb, what) in
        [("list", "pods"), ("patch", "configmaps/lifeboat-leader"), ("create", "configmaps"), ("list", "services")]
    {
        assert!(!may(GOLDDR, monitor, verb, what), "{monitor} may {verb} {what}");
    }
}

/// The namespace refuses any pod below the restricted standard, and everything runs in it.
#[test]
fn pods_run_under_the_restricted_standard() {
    let _pair = Pair::ready();
    for site in [GOLD, GOLDDR] {
        let namespace = site.get(&["namespace", NAMESPACE]);
        assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
        let pods = site.get(&["pods", "-l", "application=patroni"]);
        let pods = pods["items"].as_array().unwrap();
        assert_eq!(pods.len(), 2, "{}", site.name);
        for container in pods.iter().flat_map(|pod| pod["spec"]["containers"].as_array().unwrap()) {
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{container:#}");
        }
    }
}

#[test]
fn helm_test_probes_the_primary() {
    let _pair = Pair::ready();
    for site in [GOLD, GOLDDR] {
        let said = site.helm(&["test", SCOPE, "--timeout=1m"]);
        assert!(said.contains("Succeeded"), "{said}");
    }
}

#[test]
fn secrets_are_in_no_log_event_or_configmap() {
    let _pair = Pair::ready();
    let passwords: Vec<String> = ["superuser", "replication", "app"].iter().map(|role| GOLD.password(role)).collect();
    for site in [GOLD, GOLDDR] {
        let mut texts = vec![site.kubectl(&["get", "configmaps,events,pods,jobs", "-o", "json"])];
        for pod in site.get(&["pods"])["items"].as_array().unwrap() {
            let name = pod["metadata"]["name"].as_str().unwrap();
            texts.extend(site.try_kubectl(&["logs", name, "--all-containers"]));
        }
        for text in texts {
            assert!(
                passwords.iter().all(|password| !text.contains(password.as_str())),
                "a password in the open on {}",
                site.name
            );
        }
    }
}
