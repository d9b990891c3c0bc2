//! An API server of the test's own: it knows a standby site, whose leader is a real PostgreSQL.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{
    http::{HttpServer, Request},
    lifeboat::lifeboat,
    postgres::{PASSWORD, Postgres},
};

const CORE: &str = "/api/v1/namespaces/app";

/// A part of the kubeconfig that only we and the API server may know.
pub const TOKEN: &str = "t0ken-of-the-kubeconfig";

/// A kubeconfig that leads to `server`.
pub fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
    kubeconfig_of(&[("test", server)])
}

/// One with several contexts, each with its server.
pub fn kubeconfig_of(contexts: &[(&str, &str)]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let each =
        |make: fn(&str, &str) -> Value| contexts.iter().map(|(name, server)| make(name, server)).collect::<Value>();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": contexts[0].0,
        "clusters": each(|name, server| json!({"name": name, "cluster": {"server": server}})),
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": each(|name, _| json!({"name": name, "context": {"cluster": name, "user": "test", "namespace": "app"}})),
    });
    fs::write(file.path(), config.to_string()).unwrap();
    file
}

/// What an API server says instead of an object.
pub fn status(code: u16) -> (u16, String) {
    let text = json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code,
        "message": format!("the test says {code}"),
    });
    (code, text.to_string())
}

/// What becomes of one patch of Patroni's configuration.
#[derive(Clone, Copy)]
pub enum Fault {
    /// It is refused with this status.
    Status(u16),
    /// Somebody else writes first.
    Conflict,
    /// It is applied, and its answer never comes.
    AnswerLost,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    faults: VecDeque<Fault>,
    /// Patches of Patroni's configuration that were applied.
    applied: usize,
    /// Whether Patroni does what its configuration says.
    patroni_works: bool,
}

/// A standby site whose peer is dead, with everything that a promotion needs.
pub struct Site {
    pub standby: Arc<Postgres>,
    state: Arc<Mutex<State>>,
    server: HttpServer,
    kubeconfig: tempfile::NamedTempFile,
}

impl Site {
    pub fn start() -> Self {
        let primary = Postgres::start(&[]);
        let standby = primary.standby(&[]).until_ready();
        drop(primary);
        Self::of(standby, 1)
    }

    /// The site of a standby whose last good probe saw the peer on this timeline.
    pub fn of(standby: Postgres, timeline: u32) -> Self {
        let standby = Arc::new(standby);
        let state = Arc::new(Mutex::new(State {
            objects: objects(&standby, timeline),
            patroni_works: true,
            ..State::default()
        }));
        let (known, patroni) = (Arc::clone(&state), Arc::clone(&standby));
        let server = HttpServer::start(move |request| Some(known.lock().unwrap().answer(request, &patroni)));
        let kubeconfig = kubeconfig(&server.url(""));
        Self { standby, state, server, kubeconfig }
    }

    /// The next patches of Patroni's configuration meet these faults.
    pub fn with_faults(self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.state.lock().unwrap().faults.extend(faults);
        self
    }

    /// Patroni hangs, or works again and then does what its configuration says.
    pub fn set_patroni(&self, works: bool) {
        let mut state = self.state.lock().unwrap();
        state.patroni_works = works;
        if works && state.applied > 0 {
            self.standby.sql("SELECT pg_promote()");
        }
    }

    /// A person's decision.
    pub fn promote(&self, more: &[&str]) -> Command {
        let mut command = lifeboat(&["promote", "--scope=demo", "--site=golddr", "--confirm", "--reason=drill"]);
        command.args(more).env("KUBECONFIG", self.kubeconfig.path()).env("PGPASSWORD", PASSWORD);
        command
    }

    /// The site's record.
    pub fn record(&self) -> Value {
        let state = self.state.lock().unwrap();
        let map = &state.objects[&path("configmaps/demo-dr")];
        serde_json::from_str(map["data"]["state.json"].as_str().unwrap()).unwrap()
    }

    /// These witnesses saw the peer alive a moment ago.
    pub fn seen_by(&self, witnesses: &[String]) {
        let now = jiff::Timestamp::now();
        self.edit_record(|record| {
            record["witnesses"] = witnesses.iter().map(|url| (url.trim_end_matches('/'), json!(now))).collect();
        });
    }

    /// A kubeconfig with a context more than that of the site, `test`.
    pub fn kubeconfig_with(&self, context: &str, server: &str) -> tempfile::NamedTempFile {
        kubeconfig_of(&[("test", &self.server.url("")), (context, server)])
    }

    /// Changes the record behind the site's back.
    pub fn edit_record(&self, edit: impl FnOnce(&mut Value)) {
        let mut record = self.record();
        edit(&mut record);
        let mut state = self.state.lock().unwrap();
        state.objects.get_mut(&path("configmaps/demo-dr")).unwrap()["data"]["state.json"] = record.to_string().into();
    }

    /// Patroni's configuration.
    pub fn config(&self) -> String {
        let state = self.state.lock().unwrap();
        let map = &state.objects[&path("configmaps/demo-config")];
        map["metadata"]["annotations"]["config"].as_str().unwrap().to_owned()
    }

    /// Patches of Patroni's configuration that were applied.
    pub fn applied(&self) -> usize {
        self.state.lock().unwrap().applied
    }

    /// Requests that write, without Events.
    pub fn writes(&self) -> usize {
        let is_write = |request: &&Request| request.method != "GET" && !request.path.contains("/events");
        self.server.asked().iter().filter(is_write).count()
    }
}

fn path(name: &str) -> String {
    Path::new(CORE).join(name).display().to_string()
}

fn objects(standby: &Postgres, timeline: u32) -> BTreeMap<String, Value> {
    let map = |name: &str, annotations: Value, data: Value| {
        let metadata = json!({
            "name": name, "namespace": "app", "uid": name, "resourceVersion": "1", "annotations": annotations,
        });
        (
            path(&format!("configmaps/{name}")),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}),
        )
    };
    let system_id = standby.sql("SELECT system_identifier FROM pg_control_system()");
    let lsn = standby.sql("SELECT pg_last_wal_replay_lsn()");
    let good = json!({
        "time": jiff::Timestamp::now(), "system_id": system_id, "timeline": timeline, "peer_lsn": lsn, "local_lsn": lsn,
    });
    let record = json!({
        "version": 1, "site": "golddr", "epoch": 0, "phase": "watching", "failures": 0, "first_failure": null,
        "last_failure": null, "last_good": good, "promotion": null, "audit": [], "last_alert": null,
    });
    let config = r#"{"ttl": 30,"standby_cluster": {"host": "gold", "port": 36760}, "loop_wait":1}"#;
    let member = json!({
        "conn_url": format!("postgres://127.0.0.1:{}/postgres", standby.port),
        "state": "running", "role": "standby_leader",
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "pg-0", "namespace": "app", "annotations": {"status": member.to_string()}},
    });
    BTreeMap::from([
        map("demo-dr", json!({}), json!({"state.json": record.to_string()})),
        map("demo-config", json!({"config": config, "initialize": system_id}), json!({})),
        map("demo-leader", json!({"leader": "pg-0", "renewTime": "0"}), json!({})),
        (path("pods/pg-0"), pod),
    ])
}

impl State {
    fn answer(&mut self, request: &Request, patroni: &Postgres) -> (u16, String) {
        let at = request.path.split('?').next().unwrap();
        if request.method == "POST" && at.ends_with("/events") {
            return (201, request.json().to_string());
        }
        if !self.objects.contains_key(at) {
            return status(404);
        }
        if at.ends_with("/demo-leader") {
            // The leader renews its lease all the time.
            self.raise(at, "renewTime");
        }
        if request.method == "PATCH" {
            let of_patroni = at.ends_with("/demo-config");
            let fault = if of_patroni { self.faults.pop_front() } else { None };
            match fault {
                Some(Fault::Status(code)) => return status(code),
                Some(Fault::Conflict) => {
                    let config = &mut self.objects.get_mut(at).unwrap()["metadata"]["annotations"]["config"];
                    *config = config.as_str().unwrap().replace("30", "31").into();
                    self.raise(at, "resourceVersion");
                }
                Some(Fault::AnswerLost) | None => {}
            }
            if !self.merge(at, &request.json()) {
                return status(409);
            }
            if of_patroni {
                self.applied += 1;
                if self.patroni_works {
                    patroni.sql("SELECT pg_promote()");
                }
            }
            if matches!(fault, Some(Fault::AnswerLost)) {
                // Half an answer, then the end of the stream.
                return (200, "{\"kind\": \"ConfigMap\", \"metada".to_owned());
            }
        }
        (200, self.objects[at].to_string())
    }

    /// A merge patch of the annotations and the data; false if it was made for another version.
    fn merge(&mut self, at: &str, patch: &Value) -> bool {
        let object = self.objects.get_mut(at).unwrap();
        if patch["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return false;
        }
        for (key, value) in patch["data"].as_object().into_iter().flatten() {
            object["data"][key] = value.clone();
        }
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            let annotations = object["metadata"]["annotations"].as_object_mut().unwrap();
            if value.is_null() {
                annotations.remove(key)
            } else {
                annotations.insert(key.clone(), value.clone())
            };
        }
        self.raise(at, "resourceVersion");
        true
    }

    fn raise(&mut self, at: &str, key: &str) {
        let metadata = &mut self.objects.get_mut(at).unwrap()["metadata"];
        let place = if key == "renewTime" { &mut metadata["annotations"][key] } else { &mut metadata[key] };
        let number: u64 = place.as_str().unwrap().parse().unwrap();
        *place = (number + 1).to_string().into();
    }
}
