//! One pair of sites, installed by the chart on both clusters.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    chain::{Chain, Ended},
    sql::Session,
    system::{
        Background, LIFEBOAT, address, await_condition, cluster_script, forward, json, kubeconfig, own_clusters,
        pair_number, processes_named, processes_of, project, run, signal, tool, try_run,
    },
};

pub const NAMESPACE: &str = "e2e";
pub const SCOPE: &str = "lifeboat";

/// The usual witness' port. The chart's monitor asks it too.
const WITNESS_PORT: u16 = 18080;

/// One test at a time works on the clusters; a test that failed does not spoil the next one. Holds the runs of the monitor while
/// GoldDR was born, once both sites are installed.
static PAIR: Mutex<Option<Vec<Ended>>> = Mutex::new(None);

/// One site: a context and the namespace of the suite.
#[derive(Clone, Copy)]
pub struct Site {
    pub name: &'static str,
}

pub const GOLD: Site = Site { name: "gold" };
pub const GOLDDR: Site = Site { name: "golddr" };

impl Site {
    pub fn host(self) -> String {
        address(self.name)
    }

    pub fn kubectl(self, words: &[&str]) -> String {
        run(tool("kubectl").args(["--context", self.name, "-n", NAMESPACE, "--request-timeout=20s"]).args(words))
    }

    pub fn try_kubectl(self, words: &[&str]) -> Result<String, String> {
        try_run(tool("kubectl").args(["--context", self.name, "-n", NAMESPACE, "--request-timeout=5s"]).args(words))
    }

    pub fn get(self, what: &[&str]) -> Value {
        json(&self.kubectl(&[&["get", "-o", "json"], what].concat()))
    }

    pub fn helm(self, words: &[&str]) -> String {
        run(tool("helm").args(["--kube-context", self.name, "-n", NAMESPACE]).args(words))
    }

    /// Patroni's dynamic configuration, as its text.
    pub fn config_text(self) -> String {
        let Ok(map) = self.try_kubectl(&["get", "configmap", "lifeboat-config", "-o", "json"]) else {
            return String::new();
        };
        json(&map)["metadata"]["annotations"]["config"].as_str().unwrap_or_default().to_owned()
    }

    pub fn set_config(self, text: &str) {
        let patch = serde_json::json!({"metadata": {"annotations": {"config": text}}}).to_string();
        self.kubectl(&["patch", "configmap", "lifeboat-config", "--type=merge", "-p", &patch]);
    }

    pub fn is_standby(self) -> bool {
        self.config_text().contains("standby_cluster")
    }

    /// The site's state record.
    pub fn record(self) -> Value {
        self.try_record().unwrap_or_else(|why| panic!("{why}"))
    }

    pub fn try_record(self) -> Result<Value, String> {
        let map = json(&self.try_kubectl(&["get", "configmap", "lifeboat-dr", "-o", "json"])?);
        Ok(map["data"]["state.json"].as_str().map_or(Value::Null, json))
    }

    pub fn write_record(self, record: &Value) {
        let patch = serde_json::json!({ "data": { "state.json": record.to_string() } });
        self.kubectl(&["patch", "configmap", "lifeboat-dr", "--type=merge", "-p", &patch.to_string()]);
    }

    pub fn annotate_record(self, annotation: &str) {
        self.kubectl(&["annotate", "--overwrite", "configmap", "lifeboat-dr", annotation]);
    }

    /// An annotation of the state record.
    pub fn annotation(self, key: &str) -> Option<String> {
        let map = self.get(&["configmap", "lifeboat-dr"]);
        map["metadata"]["annotations"][key].as_str().map(ToOwned::to_owned)
    }

    pub fn leader(self) -> Option<String> {
        let map = self.get(&["configmap", "lifeboat-leader"]);
        map["metadata"]["annotations"]["leader"].as_str().map(ToOwned::to_owned)
    }

    fn secret(self, key: &str) -> String {
        let template = format!("{{{{index .data \"{key}\" | base64decode}}}}");
        self.kubectl(&["get", "secret", "lifeboat-auth", "-o", &format!("go-template={template}")])
    }

    pub fn password(self, role: &str) -> String {
        self.secret(&format!("{role}-password"))
    }

    /// The node port that the tunnel's stand-in opened to this site's primary.
    pub fn node_port(self) -> u16 {
        await_condition("the tunnel's entrance", Duration::from_secs(20), || {
            let name = format!("lifeboat-primary-{}", self.name);
            let service = json(&self.try_kubectl(&["get", "service", &name, "-o", "json"])?);
            let port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
            port.ok_or_else(|| "no node port".to_owned())
        })
    }

    pub fn try_session(self, user: &str, dbname: &str) -> Result<Session, String> {
        let role = if user == "postgres" { "superuser" } else { user };
        if own_clusters() {
            let (port, way) = forward(self.name, NAMESPACE, "lifeboat-primary", 5432)?;
            return Ok(Session::open("127.0.0.1", port, user, &self.password(role), dbname)?.through(way));
        }
        Session::open(&self.host(), self.node_port(), user, &self.password(role), dbname)
    }

    pub fn session(self) -> Session {
        await_condition("a session", Duration::from_secs(30), || self.try_session("postgres", "postgres"))
    }
}

/// Both sites, with a standby that streams.
pub struct Pair {
    installed: MutexGuard<'static, Option<Vec<Ended>>>,
    pub witness: Witness,
}

impl Pair {
    /// A pair whose standby streams and whose record is calm, whatever was before.
    pub fn ready() -> Self {
        let mut installed = PAIR.lock().unwrap_or_else(PoisonError::into_inner);
        if installed.is_none() {
            *installed = Some(install_both());
        }
        run(cluster_script("link").arg("restore"));
        // While GoldDR leads, Gold would not start: the promoted site goes first.
        let promoted = !GOLDDR.is_standby();
        if promoted {
            remove(GOLDDR);
        }
        if GOLD.try_kubectl(&["get", "namespace", NAMESPACE]).is_err() {
            run(cluster_script("up").arg("gold"));
        }
        await_condition("Gold accepts writes", Duration::from_mins(3), || {
            let written = GOLD.try_session("postgres", "postgres").and_then(|session| {
                session.try_query("SELECT pg_logical_emit_message(true, 'e2e', 'ready')").map(drop)
            });
            if written.is_err() && promoted && GOLD.try_record()?["phase"] == "held" {
                release_gold();
            }
            written
        });
        if promoted {
            reinstall_standby();
        }
        for annotation in ["lifeboat/hold-", "lifeboat/approve-", "lifeboat/maintenance-until-"] {
            GOLDDR.annotate_record(annotation);
        }
        hasten_streaming();
        let witness = if own_clusters() { Witness::nowhere() } else { Witness::start(WITNESS_PORT, GOLD.node_port()) };
        Self { installed, witness }
    }

    /// What the monitor said while GoldDR was installed for the first time.
    pub fn runs_at_birth(&self) -> &[Ended] {
        self.installed.as_deref().unwrap()
    }
}

/// At the third place, until dropped.
pub struct Witness {
    pub url: String,
    _process: Option<Background>,
}

impl Witness {
    /// Listens on a port, and looks at one of Gold's.
    pub fn start(listen: u16, peer: u16) -> Self {
        let place = format!("{}:{listen}", address("third"));
        let process = Background::start(
            cluster_script("enter")
                .args(["third", LIFEBOAT, "witness", "--listen", &place, "--timeout", "1s", "--interval", "100ms"])
                .args(["--peer", &format!("{}:{peer}", GOLD.host()), "--user", "replicator"])
                .env("PGPASSWORD", GOLD.password("replication"))
                .stderr(std::process::Stdio::null()),
        );
        await_condition("the witness", Duration::from_secs(10), || {
            std::net::TcpStream::connect(&place).map(drop).map_err(|error| error.to_string())
        });
        Self { url: format!("http://{place}"), _process: Some(process) }
    }

    /// Clusters of the user's own have no third place.
    fn nowhere() -> Self {
        Self { url: "http://witness.invalid".to_owned(), _process: None }
    }
}

/// A site without any member of its PostgreSQL until dropped; its API server lives.
pub struct Stopped(Site);

impl Stopped {
    pub fn new(site: Site) -> Self {
        let stopped = Self(site);
        stopped.scale("0").unwrap();
        await_condition("all members are gone", Duration::from_mins(1), || {
            match site.try_kubectl(&["get", "pods", "-l", "application=patroni", "-o", "name"])? {
                pods if pods.trim().is_empty() => Ok(()),
                pods => Err(pods),
            }
        });
        stopped
    }

    fn scale(&self, replicas: &str) -> Result<String, String> {
        self.0.try_kubectl(&["scale", "statefulset", &format!("lifeboat-{}", self.0.name), "--replicas", replicas])
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.scale("2");
    }
}

/// Streams, judged by the standby's own WAL receiver.
pub fn await_streaming() {
    await_condition("GoldDR streams", Duration::from_mins(2), || {
        let session = GOLDDR.try_session("postgres", "postgres")?;
        match session.try_query("SELECT status FROM pg_stat_wal_receiver")?.first().map(String::as_str) {
            Some("streaming") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// A WAL receiver that asked for a connection while the link was cut asks again only seconds after it is whole. Another one asks
/// at once.
pub fn hasten_streaming() {
    if !own_clusters()
        && let Some(leader) = GOLDDR.leader()
        && GOLDDR.session().query("SELECT FROM pg_stat_wal_receiver").is_empty()
    {
        signal("-TERM", &processes_named("walreceiver", &leader, NAMESPACE));
    }
    await_streaming();
}

fn install_both() -> Vec<Ended> {
    try_run(&mut cluster_script("status"))
        .unwrap_or_else(|text| panic!("the clusters are not up: run `make clusters`\n{text}"));
    let begun = Instant::now();
    if own_clusters() {
        run(cluster_script("claim").arg(NAMESPACE));
    }
    for site in [GOLD, GOLDDR] {
        remove(site);
        let manifest = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": {
            "pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}}});
        let _ = try_run(tool("kubectl").args(["--context", site.name, "create", "namespace", NAMESPACE]));
        site.kubectl(&["patch", "namespace", NAMESPACE, "--type=merge", "-p", &manifest.to_string()]);
    }
    run(cluster_script("recycle-volumes").args(["gold", "golddr"]));
    install(GOLD, &[]);
    let secret = GOLD.get(&["secret", "lifeboat-auth"]);
    let copy = serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lifeboat-auth"}, "data": secret["data"]});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), copy.to_string()).unwrap();
    GOLDDR.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    let runs = if own_clusters() {
        install_standby();
        Vec::new()
    } else {
        install_standby_watched()
    };
    println!("both sites installed in {:?}, {} runs of the monitor meanwhile", begun.elapsed(), runs.len());
    runs
}

/// A monitor that was not told to wait runs all the while, and nobody needs to be asked.
fn install_standby_watched() -> Vec<Ended> {
    thread::scope(|scope| {
        let installing = scope.spawn(install_standby);
        let chain = Chain::of_site(&["--accept-split-brain"]);
        let mut runs = Vec::new();
        while !installing.is_finished() {
            runs.push(chain.run(&[]));
        }
        installing.join().unwrap();
        runs
    })
}

pub fn install(site: Site, more: &[&str]) {
    let values = project(&format!("helm/lifeboat/values-{}.yaml", site.name));
    let chart = project("helm/lifeboat");
    let common = ["install", SCOPE, chart.to_str().unwrap(), "-f", values.to_str().unwrap(), "--wait", "--timeout=3m"];
    let own = std::env::var(format!("{}_VALUES", site.name.to_uppercase())).unwrap_or_default();
    let own = if own.is_empty() { Vec::new() } else { vec!["-f", &own] };
    site.helm(&[&common, &own[..], more].concat());
}

/// An upgrade with the values of before and these. It must restart nothing.
pub fn upgrade(site: Site, more: &[&str]) {
    let chart = project("helm/lifeboat");
    let members = || {
        let pods = site.get(&["pods", "-l", "application=patroni"]);
        let containers = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
        pods["items"].as_array().unwrap().iter().map(containers).collect::<Vec<_>>()
    };
    let before = members();
    let common = ["upgrade", SCOPE, chart.to_str().unwrap(), "--reuse-values", "--wait", "--timeout=3m"];
    site.helm(&[&common, more].concat());
    assert_eq!(members(), before, "the upgrade restarted a member");
}

/// The CronJob sleeps unless a test wakes it. Each run that is near a decision waits for a round of Patroni, so these are short.
pub fn install_standby() {
    install(
        GOLDDR,
        &[
            "--set",
            &format!(
                "monitor.witnesses={{http://{}:{WITNESS_PORT}}},monitor.mode=auto,monitor.suspend=true,patroni.loopWait=2",
                address("third")
            ),
        ],
    );
}

/// A promoted site can't be made a standby in place: it gets new volumes and a new record.
fn reinstall_standby() {
    let begun = Instant::now();
    end_dead_connections();
    run(cluster_script("recycle-volumes").arg("golddr"));
    install_standby();
    println!("GoldDR installed anew in {:?}", begun.elapsed());
}

/// Behind a cut link Gold's end of the old connection keeps the slot until `wal_sender_timeout`. It can't be ended by PostgreSQL: who
/// waits for room to send does not come to its end (a kernel without `INET_DIAG_DESTROY` leaves it to the timeout).
fn end_dead_connections() {
    if own_clusters() {
        return;
    }
    if let Some(leader) = GOLD.leader()
        && let Some(pid) = processes_of(&leader, NAMESPACE).first()
    {
        let gateway = format!("10.{}.1.1", 88 + pair_number());
        let words = ["-n", "ss", "--kill", "--tcp", "state", "established", "sport", "=", ":5432", "dst", &gateway];
        let _ = try_run(std::process::Command::new("nsenter").args(["--target", &pid.to_string()]).args(words));
    }
}

/// What an operator says once the other site is ended: Gold leads again. The kubelet alone would wait before it starts a member that was
/// held.
pub fn release_gold() {
    let words = ["release", "--context", "gold", "-n", NAMESPACE, "--scope", SCOPE, "--reason", "GoldDR is ended"];
    run(std::process::Command::new(LIFEBOAT).args(words).env("KUBECONFIG", kubeconfig_path()));
    delete_members(GOLD);
}

/// All members at once, as after a power loss.
pub fn delete_members(site: Site) {
    site.kubectl(&["delete", "pods", "-l", "application=patroni", "--force", "--grace-period=0"]);
}

fn remove(site: Site) {
    let _ = try_run(tool("helm").args([
        "--kube-context",
        site.name,
        "-n",
        NAMESPACE,
        "uninstall",
        SCOPE,
        "--wait",
        "--timeout=2m",
    ]));
    let _ = site.try_kubectl(&["delete", "jobs", "--all"]);
    let _ = site.try_kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
    let _ = site.try_kubectl(&["delete", "persistentvolumeclaims", "--all", "--wait=false"]);
    let _ = site.try_kubectl(&[
        "delete",
        "configmap",
        "lifeboat-dr",
        "lifeboat-failover",
        "lifeboat-sync",
        "--ignore-not-found",
    ]);
    if site.name == "gold" {
        let _ = site.try_kubectl(&["delete", "secret", "lifeboat-auth", "--ignore-not-found"]);
    }
    await_condition("the claims are gone", Duration::from_mins(1), || {
        match site.try_kubectl(&["get", "persistentvolumeclaims", "-o", "name"]) {
            Ok(claims) if !claims.trim().is_empty() => Err(claims),
            _ => Ok(()),
        }
    });
}

/// The address of a Service inside a site. The tunnel's is there a moment after its claim.
pub fn cluster_ip(site: Site, service: &str) -> (String, u16) {
    await_condition("the Service", Duration::from_mins(1), || {
        let service = json(&site.try_kubectl(&["get", "service", service, "-o", "json"])?);
        let port = service["spec"]["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let address = service["spec"]["clusterIP"].as_str().map(ToOwned::to_owned);
        address.zip(port).ok_or_else(|| "no address".to_owned())
    })
}

pub fn kubeconfig_path() -> String {
    kubeconfig().to_str().unwrap().to_owned()
}
