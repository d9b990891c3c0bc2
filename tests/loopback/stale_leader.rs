//! `status` and `follow` beside a leader that is gone: its pod's word and the lease's holder stay, and nobody renews the lease.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    api::{kubeconfig, kubeconfig_of, status},
    http::HttpServer,
    lifeboat::{Ended, lifeboat},
};

const STANDBY: &str = r#"{"ttl":2,"loop_wait":1,"standby_cluster":{"host":"gold","port":1}}"#;
const PRIMARY: &str = r#"{"ttl":2,"loop_wait":1}"#;

/// An API server that knows one site, whose leader lives or not.
struct Site {
    server: HttpServer,
    lives: Arc<AtomicBool>,
    config: Arc<Mutex<String>>,
    record: Arc<Mutex<String>>,
}

impl Site {
    fn start(name: &str, config: &str, lives: bool) -> Self {
        let standby = config == STANDBY;
        let record = json!({
            "version": 1, "site": name, "epoch": 0, "phase": "watching", "failures": 0, "first_failure": null,
            "last_failure": null, "last_good": null, "promotion": null, "audit": [], "last_alert": null,
        });
        let (lives, renewals) = (Arc::new(AtomicBool::new(lives)), AtomicU64::new(0));
        let config = Arc::new(Mutex::new(config.to_owned()));
        let record = Arc::new(Mutex::new(record.to_string()));
        let (alive, now, written) = (Arc::clone(&lives), Arc::clone(&config), Arc::clone(&record));
        let server = HttpServer::start(move |request| {
            let object = |name: &str, annotations: Value, data: Value| {
                let metadata = json!({
                    "name": name, "namespace": "app", "uid": name, "resourceVersion": "1", "labels": {"cluster": "demo"},
                    "annotations": annotations,
                });
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
            };
            let member = json!({
                "conn_url": "postgres://127.0.0.1:9/postgres", "state": "running", "version": "4.0.7",
                "role": if standby { "standby_leader" } else { "primary" }, "replication_state": standby.then_some("streaming"),
            });
            let mut pod = object("pg-0", json!({"status": member.to_string()}), Value::Null);
            pod["kind"] = "Pod".into();
            let sent = if request.method == "PATCH" { request.json() } else { Value::Null };
            if let Some(text) = sent["metadata"]["annotations"]["config"].as_str() {
                text.clone_into(&mut now.lock().unwrap());
            }
            if let Some(text) = sent["data"]["state.json"].as_str() {
                text.clone_into(&mut written.lock().unwrap());
            }
            let answer = match request.path.split('?').next().unwrap().rsplit('/').next().unwrap() {
                "demo-config" => {
                    let config = now.lock().unwrap().clone();
                    object("demo-config", json!({"config": config, "initialize": "7"}), json!({}))
                }
                "demo-leader" => {
                    let stamp = renewals.fetch_add(u64::from(alive.load(Ordering::SeqCst)), Ordering::SeqCst);
                    object("demo-leader", json!({"leader": "pg-0", "renewTime": stamp.to_string()}), json!({}))
                }
                "demo-dr" => object("demo-dr", json!({}), json!({"state.json": *written.lock().unwrap()})),
                "pg-0" => pod,
                "pods" => json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [pod]}),
                _ => return Some(status(404)),
            };
            Some((200, answer.to_string()))
        });
        Self { server, lives, config, record }
    }

    fn follow(&self, more: &[&str]) -> Ended {
        let kubeconfig = kubeconfig(&self.server.url(""));
        let mut command = lifeboat(&["follow", "--scope=demo", "--site=golddr", "--host=gold"]);
        Ended::of(command.args(more).env("KUBECONFIG", kubeconfig.path()))
    }
}

/// Both sites, asked from outside; GoldDR is this one.
fn look(golddr: &Site, gold: &Site, more: &[&str]) -> Ended {
    let kubeconfig = kubeconfig_of(&[("golddr", &golddr.server.url("")), ("gold", &gold.server.url(""))]);
    let mut command: Command = lifeboat(&["status", "--scope=demo", "--context=golddr", "--peer-context=gold"]);
    Ended::of(command.args(more).env("KUBECONFIG", kubeconfig.path()).env("PGPASSWORD", "x"))
}

#[test]
fn site_whose_leader_is_gone_leads_nowhere_by_status() {
    let gold = Site::start("gold", PRIMARY, true);
    let golddr = Site::start("golddr", STANDBY, true);
    let calm = look(&golddr, &gold, &[]);
    let outcome = calm.assert_code(0).outcome();
    assert_eq!(outcome["reason"], "gold (context gold) leads", "{outcome}");
    assert_eq!((&outcome["sites"][1]["role"], &outcome["sites"][1]["lease"]), (&"primary".into(), &"renewed".into()));
    assert_eq!(outcome["monitor"], "watches the peer", "{outcome}");
    assert!(outcome["promotion"]["evidence"].is_array(), "{outcome}");

    gold.lives.store(false, Ordering::SeqCst);
    let outcome = look(&golddr, &gold, &[]).assert_code(4).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.starts_with("no site leads; gold (context gold) is primary (not renewed): pg-0"), "{reason}");
    assert_eq!(outcome["sites"][1]["role"], "primary (not renewed)", "{outcome}");

    let promoted = Site::start("golddr", PRIMARY, true);
    let ended = look(&promoted, &gold, &[]);
    let outcome = ended.assert_code(4).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(
        reason.contains(" leads; gold (context gold) is primary (not renewed)") && !reason.contains("BOTH"),
        "{reason}"
    );
    assert!(outcome["monitor"].as_str().unwrap().starts_with("nothing to promote"), "{outcome}");
    assert!(ended.took < Duration::from_secs(12), "loop_wait + 5 s: {:?}", ended.took);

    // One look can't tell, and says so.
    let outcome = look(&promoted, &gold, &["--quick"]).assert_code(4).outcome();
    assert!(outcome["reason"].as_str().unwrap().starts_with("BOTH SITES LEAD"), "{outcome}");
    assert_eq!(outcome["sites"][1]["lease"], "not-watched", "{outcome}");
}

#[test]
fn follow_that_changes_nothing_is_no_success_beside_a_leader_that_is_gone() {
    for (config, role, says) in [(STANDBY, "standby", "streams from the peer"), (PRIMARY, "active", "leads")] {
        let site = Site::start("golddr", config, true);
        let words = [&format!("--role={role}"), "--port=1"];
        let ended = site.follow(&words);
        let outcome = ended.assert_code(0).outcome();
        assert_eq!(outcome["reason"], format!("pg-0 {says}"), "{outcome}");
        assert!(ended.took < Duration::from_secs(4), "one renewal: {:?}", ended.took);

        site.lives.store(false, Ordering::SeqCst);
        let ended = site.follow(&words);
        let outcome = ended.assert_code(4).outcome();
        let reason = outcome["reason"].as_str().unwrap();
        assert!(reason.contains(says) && reason.contains("was not seen to be renewed"), "{reason}");
        assert!(ended.took < Duration::from_secs(12), "loop_wait + 5 s: {:?}", ended.took);
    }
}

#[test]
fn port_that_is_corrected_is_told_though_nobody_sees_it_work() {
    let (site, webhook) = (Site::start("golddr", STANDBY, false), HttpServer::of_status(200));
    let probe = tempfile::NamedTempFile::new().unwrap();
    let facts = json!({
        "version": 1, "taken": jiff::Timestamp::now(), "path": "postgresql", "host": "gold", "port": 2, "verdict": "healthy",
        "reason": "it answers", "attempts": [], "system_id": "7", "timeline": 1, "lsn": "0/1", "in_recovery": false,
    });
    std::fs::write(probe.path(), facts.to_string()).unwrap();
    let kubeconfig = kubeconfig(&site.server.url(""));
    let mut command =
        lifeboat(&["follow", "--scope=demo", "--site=golddr", "--host=gold", "--role=standby", "--probe-file"]);
    command.arg(probe.path()).env("KUBECONFIG", kubeconfig.path()).env("LIFEBOAT_WEBHOOK_URL", webhook.url("/"));
    let outcome = Ended::of(&mut command).assert_code(4).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("changed standby_cluster to gold:2") && reason.contains("did not come round"), "{reason}");
    assert!(site.config.lock().unwrap().contains("\"port\":2"), "{}", site.config.lock().unwrap());
    let told: Vec<Value> = webhook.asked().iter().map(|asked| asked.json()["kind"].clone()).collect();
    assert_eq!(told, ["FollowFailed", "PeerMoved"]);
    let record: Value = serde_json::from_str(&site.record.lock().unwrap()).unwrap();
    assert!(record["audit"][0]["event"].as_str().unwrap().starts_with("changed standby_cluster to gold:2"), "{record}");
}
