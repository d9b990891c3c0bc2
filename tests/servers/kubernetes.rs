//! `port-discover` and `promote` against an API server of the test's own that refuses, fails, babbles or hangs.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    http::{HttpServer, Request, request},
    lifeboat::{Ended, Probe, Running, await_condition, files, lifeboat},
    peers::ClosedPort,
};

const CORE: &str = "/api/v1/namespaces/app";

/// An API server, and the kubeconfig that leads to it.
pub struct Api {
    server: HttpServer,
    kubeconfig: tempfile::NamedTempFile,
}

impl Api {
    fn start(answer: impl Fn(&Request) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        let server = HttpServer::start(answer);
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server.url("")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "app"}}],
        });
        fs::write(kubeconfig.path(), config.to_string()).unwrap();
        Self { server, kubeconfig }
    }

    /// Answers everything with one status, as an API server says it.
    pub fn of_status(code: u16) -> Self {
        Self::start(move |_| Some(status(code)))
    }

    /// Knows one Service.
    pub fn with_service(port: u16) -> Self {
        Self::start(move |_| {
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "pg", "uid": "u-1"},
                "spec": {"ports": [{"name": "postgresql", "port": port}]},
            });
            Some((200, service.to_string()))
        })
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = lifeboat(arguments);
        command.env("KUBECONFIG", self.kubeconfig.path());
        command
    }

    fn asked_for(&self, end: &str) -> usize {
        self.server.asked().iter().filter(|request| request.path.ends_with(end)).count()
    }

    /// Whatever was not merely read, but for Events.
    fn writes(&self) -> Vec<Request> {
        let is_write = |request: &Request| request.method != "GET" && !request.path.contains("/events");
        self.server.asked().into_iter().filter(is_write).collect()
    }
}

fn status(code: u16) -> (u16, String) {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let text = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": format!("the test says {code}"),
    });
    (code, text.to_string())
}

fn discover(api: &Api, dir: &Path) -> Ended {
    Ended::of(api.command(&["port-discover", "--service=pg-primary-gold", "--dir"]).arg(dir))
}

fn assert_failed_naming(ended: &Ended, object: &str) {
    let outcome = ended.assert_code(1).outcome();
    assert_eq!(outcome["outcome"], "failed");
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains(object) && reason.contains("namespace app"), "names {object}: {reason}");
}

#[test]
fn port_discover_of_an_api_server_that_refuses_or_fails_names_the_service_and_leaves_no_port() {
    type Answer = (&'static str, fn() -> (u16, String));
    let answers: [Answer; 6] = [
        ("forbids", || status(403)),
        ("does not exist", || status(404)),
        ("500", || status(500)),
        ("pg-primary-gold", || (200, "{\"kind\": \"Serv".to_owned())),
        ("pg-primary-gold", || (200, "<html>captive portal</html>".to_owned())),
        ("pg-primary-gold", || (502, "<html>bad gateway</html>".to_owned())),
    ];
    for (said, answer) in answers {
        let (api, dir) = (Api::start(move |_| Some(answer())), tempfile::tempdir().unwrap());
        for name in ["tsc_port", "port.json"] {
            fs::write(dir.path().join(name), "36760\n").unwrap();
        }
        let ended = discover(&api, dir.path());
        assert_failed_naming(&ended, "Service pg-primary-gold");
        assert!(ended.outcome()["reason"].as_str().unwrap().contains(said), "{said}: {}", ended.stdout);
        assert!(files(dir.path()).is_empty(), "a port of an earlier run is left: {:?}", files(dir.path()));
        assert!(api.writes().is_empty());
    }
}

/// The fence of an active site does without its peer: no missing port, and no missing right, may keep a pod from its start.
#[test]
fn port_discover_that_is_optional_forgives_what_will_never_come_and_says_so() {
    let no_node_port = Api::with_service(36760);
    for (api, more, said) in [
        (Api::of_status(403), &[][..], "forbids"),
        (Api::of_status(404), &[], "does not exist"),
        (no_node_port, &["--node-port"], "no node port"),
        (Api::with_service(36760), &["--port-name=psql"], "no port named psql"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let words = ["port-discover", "--service=pg-primary-gold", "--optional", "--wait=1m", "--dir"];
        let ended = Ended::of(api.command(&words).arg(dir.path()).args(more));
        let outcome = ended.assert_code(0).outcome();
        assert_eq!(outcome["outcome"], "nothing-to-do", "{outcome}");
        assert!(outcome["reason"].as_str().unwrap().contains(said), "{said}: {outcome}");
        assert!(ended.stderr.contains("WARN") && ended.stderr.contains(said), "{}", ended.stderr);
        assert!(files(dir.path()).is_empty() && ended.took < Duration::from_secs(5), "{:?}", ended.took);
    }
    let failing = Api::of_status(500);
    let dir = tempfile::tempdir().unwrap();
    let words = ["port-discover", "--service=pg-primary-gold", "--optional", "--dir"];
    Ended::of(failing.command(&words).arg(dir.path())).assert_code(1);
}

#[test]
fn port_discover_finds_the_port_and_writes_both_files() {
    let (api, dir) = (Api::with_service(36760), tempfile::tempdir().unwrap());
    let outcome = discover(&api, dir.path()).assert_code(0).outcome();
    assert_eq!((&outcome["port"], &outcome["uid"]), (&36760.into(), &"u-1".into()));
    assert_eq!(fs::read_to_string(dir.path().join("tsc_port")).unwrap(), "36760\n");
    let facts: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("port.json")).unwrap()).unwrap();
    assert_eq!((&facts["port"], &facts["namespace"]), (&36760.into(), &"app".into()));
    assert_eq!(api.server.asked()[0].path, format!("{CORE}/services/pg-primary-gold"));
}

/// What the API server knows, by path.
type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

/// A standby site: its ConfigMaps, and its leader's pod with no PostgreSQL behind it.
struct Site {
    api: Api,
    objects: Objects,
    _closed: ClosedPort,
}

impl Site {
    /// `refuse` may answer first; what it leaves alone is answered from the objects. A merge patch sets what it names at the
    /// first two levels.
    fn start(refuse: impl Fn(&Request) -> Option<(u16, String)> + Send + Sync + 'static) -> Self {
        let closed = ClosedPort::new();
        let map = |name: &str, annotations: Value, data: Value| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "data": data,
                "metadata": {
                    "name": name, "namespace": "app", "uid": name, "resourceVersion": "1", "annotations": annotations,
                },
            })
        };
        let state = json!({
            "version": 1, "site": "golddr", "epoch": 0, "phase": "watching", "failures": 0, "first_failure": null,
            "last_failure": null, "last_good": null, "promotion": null, "audit": [], "last_alert": null,
        });
        let config = json!({"ttl": 30, "standby_cluster": {"host": "gold", "port": 36760}}).to_string();
        let member = json!({
            "conn_url": format!("postgres://{}/postgres", closed.address), "state": "running", "role": "standby_leader",
        });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "pg-0", "namespace": "app", "annotations": {"status": member.to_string()}},
        });
        let leader = json!({"leader": "pg-0", "renewTime": "2026-01-01T00:00:00Z"});
        let objects = Arc::new(Mutex::new(BTreeMap::from([
            (format!("{CORE}/configmaps/demo-dr"), map("demo-dr", json!({}), json!({"state.json": state.to_string()}))),
            (
                format!("{CORE}/configmaps/demo-config"),
                map("demo-config", json!({"config": config, "initialize": "7000000000000000001"}), json!({})),
            ),
            (format!("{CORE}/configmaps/demo-leader"), map("demo-leader", leader, json!({}))),
            (format!("{CORE}/pods/pg-0"), pod),
        ])));
        let known = Arc::clone(&objects);
        let api = Api::start(move |request| {
            if let Some(answer) = refuse(request) {
                return Some(answer);
            }
            let mut objects = known.lock().unwrap();
            let path = request.path.split('?').next().unwrap();
            let Some(found) = objects.get_mut(path) else { return Some(status(404)) };
            if request.method == "PATCH" {
                let sent = request.json();
                if sent["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"] {
                    return Some(status(409));
                }
                for (key, value) in sent["data"].as_object().into_iter().flatten() {
                    found["data"][key] = value.clone();
                }
                for (key, value) in sent["metadata"]["annotations"].as_object().into_iter().flatten() {
                    found["metadata"]["annotations"][key] = value.clone();
                }
                raise_version(found);
            }
            Some((200, found.to_string()))
        });
        Self { api, objects, _closed: closed }
    }

    /// Somebody else writes the record just before our first patch.
    fn written_by_another() -> Self {
        let objects = Arc::<Mutex<Option<Objects>>>::default();
        let known = Arc::clone(&objects);
        let site = Self::start(move |request| {
            if request.path.contains("/selfsubjectreviews") {
                return Some((201, json!({"metadata": {}, "status": {"userInfo": {"username": "ann"}}}).to_string()));
            }
            let objects = (request.method == "PATCH").then(|| known.lock().unwrap().take()).flatten()?;
            raise_version(objects.lock().unwrap().get_mut(&format!("{CORE}/configmaps/demo-dr")).unwrap());
            Some(status(409))
        });
        *objects.lock().unwrap() = Some(Arc::clone(&site.objects));
        site
    }

    fn promote(&self, dir: &Path) -> Ended {
        Ended::of(self.api.command(&["promote", "--scope=demo", "--site=golddr", "--dir"]).arg(dir))
    }

    fn record(&self) -> Value {
        let objects = self.objects.lock().unwrap();
        let map = &objects[&format!("{CORE}/configmaps/demo-dr")];
        serde_json::from_str(map["data"]["state.json"].as_str().unwrap()).unwrap()
    }
}

fn version_of(write: &Request) -> Value {
    write.json()["metadata"]["resourceVersion"].clone()
}

fn raise_version(object: &mut Value) {
    let version: u64 = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    object["metadata"]["resourceVersion"] = (version + 1).to_string().into();
}

/// Facts of a probe that found nobody.
fn unreachable_peer() -> Probe {
    let (probe, closed) = (Probe::new(), ClosedPort::new());
    let port = format!("--port={}", closed.address.port());
    assert_eq!(probe.verdict(&mut probe.command(&["--host=127.0.0.1", &port]))["verdict"], "unreachable");
    probe
}

#[test]
fn promote_where_an_object_cannot_be_read_names_it_and_writes_nothing() {
    type Answer = fn() -> (u16, String);
    let answers: [Answer; 4] =
        [|| status(403), || status(404), || status(500), || (200, "{\"kind\": \"Conf".to_owned())];
    let probe = unreachable_peer();
    for object in ["demo-dr", "demo-config", "demo-leader"] {
        for (number, answer) in answers.into_iter().enumerate() {
            // A site without a record yet begins one.
            if object == "demo-dr" && number == 1 {
                continue;
            }
            let site = Site::start(move |request| request.path.ends_with(object).then(answer));
            let ended = site.promote(probe.dir.path());
            assert_failed_naming(&ended, &format!("ConfigMap {object}"));
            assert!(site.api.writes().is_empty(), "{object} {number}: {:?}", site.api.writes());
        }
    }
}

#[test]
fn api_server_that_never_answers_ends_each_command_by_its_time_limit() {
    let (api, probe, dir) = (Api::start(|_| None), unreachable_peer(), tempfile::tempdir().unwrap());
    let (discover, promote) = thread::scope(|scope| {
        let promote = || Ended::of(api.command(&["promote", "--scope=demo", "--dir"]).arg(probe.dir.path()));
        let promote = scope.spawn(promote);
        (discover(&api, dir.path()), promote.join().unwrap())
    });
    assert_failed_naming(&discover, "Service pg-primary-gold");
    assert_failed_naming(&promote, "ConfigMap demo-dr");
    for ended in [discover, promote] {
        assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    }
    assert!(files(dir.path()).is_empty());
    assert!(api.writes().is_empty());
}

#[test]
fn promote_whose_record_was_written_by_another_looks_again_and_writes_then() {
    let (probe, site) = (unreachable_peer(), Site::written_by_another());
    let ended = site.promote(probe.dir.path());
    let outcome = ended.assert_code(0).outcome();
    assert_eq!((&outcome["outcome"], &outcome["failures"]), (&"nothing-to-do".into(), &1.into()), "{outcome}");
    let writes = site.api.writes();
    let versions: Vec<Value> = writes.iter().map(version_of).collect();
    assert_eq!(versions, ["1", "2"], "two patches of the record, each compared with what was read: {writes:?}");
    assert!(writes.iter().all(|write| write.path.contains("/configmaps/demo-dr")));
    assert_eq!((&site.record()["phase"], &site.record()["failures"]), (&"suspect".into(), &1.into()));
}

#[test]
fn word_of_an_operator_is_said_again_where_another_wrote_the_record() {
    let site = Site::written_by_another();
    let words = ["hold", "--scope=demo", "--reason=storage work"];
    assert_eq!(Ended::of(&mut site.api.command(&words)).assert_code(0).outcome()["outcome"], "done");
    let is_patch = |write: &&Request| write.method == "PATCH";
    let versions: Vec<Value> = site.api.writes().iter().filter(is_patch).map(version_of).collect();
    assert_eq!(versions, ["1", "2"], "each compared with what was read");
    assert!(site.record()["audit"][0]["event"].as_str().unwrap().contains("storage work"), "{}", site.record());
}

/// As a chain of containers does: what stands behind a step that failed waits for the next round.
#[test]
fn monitor_whose_step_fails_begins_anew_in_the_next_round_and_outlives_its_api_server() {
    let site = Site::start(|_| None);
    let dir = tempfile::tempdir().unwrap();
    let dir = format!("--dir={}", dir.path().display());
    let mut command = site.api.command(&["monitor", "--scope=demo", "--every=300ms", "--listen=127.0.0.1:0", "--"]);
    command.args(["port-discover", "--service=pg", &dir, "--then", "promote", "--scope=demo", "--site=golddr", &dir]);
    let mut running = Running::start(&mut command);
    let listen: SocketAddr = running.await_log("listening on").rsplit(' ').next().unwrap().parse().unwrap();
    let metric = |name: &str| -> Option<f64> {
        let (status, _, text) = request(listen, "GET", "/metrics", "");
        assert_eq!(status, 200, "{text}");
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let failed = "lifeboat_step_runs_total{step=\"port-discover\",outcome=\"failed\"}";
    let await_failures = |count: f64| {
        await_condition("rounds fail", Duration::from_secs(20), || match metric(failed) {
            Some(found) if found >= count => Ok(()),
            found => Err(format!("{found:?}")),
        });
    };
    await_failures(3.0);
    assert_eq!(metric("lifeboat_epoch"), Some(0.0), "the site's record is shown all the while");
    assert!(site.api.asked_for("/services/pg") >= 3, "each round asks again");
    drop(site);
    await_failures(6.0);
    assert_eq!(request(listen, "GET", "/healthz", "").0, 200, "a restart would not bring the API server back");
    assert_eq!(request(listen, "GET", "/primary", "").0, 503);
    let text = request(listen, "GET", "/metrics", "").2;
    assert!(!text.contains("step=\"promote\""), "the step behind it ran: {text}");
    running.terminate();
}

#[test]
fn promote_whose_record_always_conflicts_gives_up_and_touches_nothing_else() {
    let probe = unreachable_peer();
    let site = Site::start(|request| (request.method == "PATCH").then(|| status(409)));
    let outcome = site.promote(probe.dir.path()).assert_code(1).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("kept changing"), "{outcome}");
    assert!(site.api.writes().iter().all(|write| write.path.contains("/configmaps/demo-dr")));
}

#[test]
fn promote_without_a_probe_refuses_and_patches_only_its_record() {
    let (site, dir) = (Site::start(|_| None), tempfile::tempdir().unwrap());
    let outcome = site.promote(dir.path()).assert_code(3).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("probe.json"), "{outcome}");
    assert!(site.api.writes().iter().all(|write| write.path.contains("/configmaps/demo-dr")));
}
