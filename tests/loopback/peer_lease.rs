//! The lease of the peer's leader at the peer's own API server, as `promote --peer-context` and `pg-probe --scope` watch it.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::{
    api::{Site, status},
    http::HttpServer,
    lifeboat::{Ended, Probe, lifeboat},
};

/// What the lease is at this time after the first look at it: its holder, if any, and its stamp.
type Lease = Box<dyn Fn(Duration) -> (Option<&'static str>, Option<String>) + Send>;

/// An API server that knows Patroni's two ConfigMaps of a cluster with the system id 7; `ttl` 2 s, `loop_wait` 1 s.
fn peer(config: &str, lease: Lease) -> HttpServer {
    peer_of("7", config, lease)
}

fn peer_of(id: &str, config: &str, lease: Lease) -> HttpServer {
    let id = id.to_owned();
    let config = format!(r#"{{"ttl": 2, "loop_wait": 1{config}}}"#);
    let lease = Mutex::new((None::<Instant>, lease));
    HttpServer::start(move |request| {
        let map = |annotations: Value| {
            let map =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "annotations": annotations}});
            Some((200, map.to_string()))
        };
        match request.path.rsplit('/').next().unwrap() {
            "demo-config" => map(json!({"config": config, "initialize": id})),
            "demo-leader" => {
                let mut lease = lease.lock().unwrap();
                let since = lease.0.get_or_insert_with(Instant::now).elapsed();
                let (leader, stamp) = lease.1(since);
                map(
                    json!({"leader": leader.unwrap_or_default(), "renewTime": stamp.unwrap_or_default(), "optime": "9"}),
                )
            }
            _ => Some(status(404)),
        }
    })
}

fn renewed() -> Lease {
    Box::new(|since| (Some("gold-0"), Some(since.as_secs().to_string())))
}

fn unrenewed() -> Lease {
    Box::new(|_| (Some("gold-0"), Some("new".to_owned())))
}

fn id(site: &Site) -> String {
    site.standby.sql("SELECT system_identifier FROM pg_control_system()")
}

/// A person decides, with nothing changed; what the second path says, and how long the run took.
fn ask(site: &Site, peer: &HttpServer, more: &[&str]) -> (bool, String, Duration) {
    let kubeconfig = site.kubeconfig_with("gold", &peer.url(""));
    let mut command = site.promote(&["--dry-run", "--context=test", "--peer-context=gold", "--peer-namespace=app"]);
    let ended = Ended::of(command.args(more).env("KUBECONFIG", kubeconfig.path()));
    let outcome = ended.outcome();
    let guards = outcome["evidence"].as_array().unwrap_or_else(|| panic!("{outcome}"));
    let path = guards.iter().find(|guard| guard["guard"] == "second-path").unwrap_or_else(|| panic!("{outcome}"));
    let passed = path["passed"].as_bool().unwrap();
    ended.assert_code(if passed { 0 } else { 3 });
    (passed, path["found"].as_str().unwrap().to_owned(), ended.took)
}

/// It is as it is for an hour, and was last seen renewed so many minutes ago.
fn remember(site: &Site, leader: Option<&str>, stamp: Option<&str>, renewed: i64) {
    let (since, renewed) =
        (Timestamp::now() - SignedDuration::from_hours(1), Timestamp::now() - SignedDuration::from_mins(renewed));
    let of = format!("{}/app/demo", id(site));
    site.edit_record(|record| {
        record["peer_lease"] =
            json!({"leader": leader, "renew_time": stamp, "since": since, "renewed": renewed, "of": of});
    });
}

#[test]
fn person_is_answered_by_what_this_run_watched_whatever_the_record_says() {
    let site = Site::start();
    let id = id(&site);
    let peer = |config: &str, lease: Lease| peer_of(&id, config, lease);
    // The monitor looked last an hour ago; the leader died later.
    remember(&site, Some("gold-0"), Some("old"), 60);
    let (passed, found, took) = ask(&site, &peer("", unrenewed()), &[]);
    assert!(passed && found.contains("gold-0 has not renewed"), "{found}");
    assert!(took >= Duration::from_secs(6), "a round of Patroni and more: {took:?}");

    let (passed, found, took) = ask(&site, &peer("", renewed()), &[]);
    assert!(!passed && took < Duration::from_secs(5), "{found}, {took:?}");

    // The clock was set forward: what the run before saw looks an hour old, and its leader lives.
    remember(&site, Some("gold-0"), Some("new"), 1);
    let late: Lease =
        Box::new(|since| (Some("gold-0"), Some(if since.as_secs() < 4 { "new" } else { "newer" }.to_owned())));
    let (passed, found, _) = ask(&site, &peer("", late), &[]);
    assert!(!passed, "{found}");

    // It was given up, and nobody took it since.
    let released: Lease = Box::new(|_| (None, Some("new".to_owned())));
    let (passed, found, _) = ask(&site, &peer("", released), &[]);
    assert!(passed && found.contains("nobody holds the lease"), "{found}");
    let set_aside = ask(&site, &peer("", renewed()), &["--override=second-path"]);
    assert!(set_aside.0 && set_aside.2 < Duration::from_secs(4), "{set_aside:?}");
}

/// A context, namespace or scope that leads elsewhere shows a lease that nobody renews, too.
#[test]
fn lease_that_is_not_known_to_be_the_living_peers_confirms_nothing() {
    let site = Site::start();
    let id = id(&site);
    let (passed, found, _) = ask(&site, &peer_of(&id, "", unrenewed()), &[]);
    assert!(!passed && found.contains("never seen renewed"), "{found}");
    remember(&site, Some("gold-0"), Some("new"), 60);
    let (passed, found, _) = ask(&site, &peer_of(&id, "", unrenewed()), &[]);
    assert!(!passed && found.contains("last seen renewed at"), "{found}");
    remember(&site, Some("gold-0"), Some("new"), 1);
    let (passed, found, _) = ask(&site, &peer("", unrenewed()), &[]);
    assert!(!passed && found.contains("with system id 7, is not that of this site"), "{found}");
    let (passed, found, _) = ask(&site, &peer_of(&id, "", unrenewed()), &[]);
    assert!(passed, "{found}");
    // What was seen of another one says nothing of this.
    site.edit_record(|record| record["peer_lease"]["of"] = format!("{id}/app/other").into());
    let (passed, found, _) = ask(&site, &peer_of(&id, "", unrenewed()), &[]);
    assert!(!passed && found.contains("never seen renewed"), "{found}");
}

#[test]
fn peer_that_may_lead_without_its_lease_is_never_taken_for_dead() {
    let site = Site::start();
    let id = id(&site);
    remember(&site, Some("gold-0"), Some("new"), 1);
    for (config, says) in [(r#", "pause": true"#, "paused"), (r#", "failsafe_mode": true"#, "failsafe_mode")] {
        let (passed, found, _) = ask(&site, &peer_of(&id, config, unrenewed()), &[]);
        assert!(!passed && found.contains(says), "{found}");
        let facts = probe(&peer(config, unrenewed()), 2);
        assert_eq!(facts["verdict"], "unknown", "{facts}");
        assert!(facts["reason"].as_str().unwrap().contains(says), "{facts}");
        let facts = probe(&peer(config, renewed()), 2);
        assert_eq!(facts["verdict"], "healthy", "{facts}");
        assert!(facts["reason"].as_str().unwrap().contains(says), "{facts}");
    }
    // Nor one whose lease has no stamp.
    let (passed, found, _) = ask(&site, &peer_of(&id, "", Box::new(|_| (Some("gold-0"), None))), &[]);
    assert!(!passed && found.contains("no renewTime"), "{found}");
}

/// What `pg-probe` writes of a scope.
fn probe(peer: &HttpServer, attempts: u32) -> Value {
    let (probe, kubeconfig) = (Probe::new(), crate::api::kubeconfig(&peer.url("")));
    let mut command = lifeboat(&["pg-probe", "--context=test", "--scope=demo", "--interval=100ms", "--dir"]);
    command.arg(probe.dir.path()).args(["--attempts", &attempts.to_string()]);
    Ended::of(command.env("KUBECONFIG", kubeconfig.path())).assert_code(0);
    let facts: Value = serde_json::from_str(&fs::read_to_string(probe.dir.path().join("probe.json")).unwrap()).unwrap();
    assert_eq!(facts["path"], "api", "{facts}");
    facts
}

#[test]
fn leader_that_took_the_lease_a_moment_ago_has_time_to_renew_it() {
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    // It took over when the old one's time had almost run out, and renews two seconds later.
    let taken: Lease = Box::new(move |since| {
        *count.lock().unwrap() += 1;
        let (leader, stamp) = match since.as_millis() {
            0..1500 => ("gold-0", "a"),
            1500..3000 => ("gold-1", "b"),
            _ => ("gold-1", "c"),
        };
        (Some(leader), Some(stamp.to_owned()))
    });
    let facts = probe(&peer("", taken), 3);
    assert_eq!(facts["verdict"], "healthy", "{facts}");
    assert_eq!(facts["attempts"].as_array().unwrap().len(), 1, "{facts}");
    assert!(*asked.lock().unwrap() >= 4);

    let facts = probe(&peer("", unrenewed()), 3);
    assert_eq!(facts["verdict"], "unreachable", "{facts}");
    let facts = probe(&peer("", Box::new(|_| (None, None))), 1);
    assert_eq!(facts["verdict"], "unreachable", "{facts}");
    let hands: Lease = Box::new(|since| {
        (Some(if since.as_secs().is_multiple_of(2) { "gold-0" } else { "gold-1" }), Some("a".to_owned()))
    });
    let facts = probe(&peer("", hands), 1);
    assert_eq!(facts["verdict"], "unknown", "{facts}");
}
