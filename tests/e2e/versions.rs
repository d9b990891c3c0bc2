//! Other versions of PostgreSQL and Patroni than the rest of the suite runs, and a Patroni that is not the chart's. Each test installs
//! both sites in a namespace of its own, with one member for each site, and ends with a promotion.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    chain::{Ended, finish},
    sql::Session,
    system::{
        Background, LIFEBOAT, address, await_condition, cluster_script, json, kubeconfig, project, run, tool, try_run,
    },
};

/// Where these tests' witness listens; the other tests' has port 18080.
const WITNESS_PORT: u16 = 18081;

/// A site: a context, a namespace, Patroni's scope, its `StatefulSet`, and the Service whose node port leads to the leader.
#[derive(Clone, Copy)]
pub struct Site {
    pub name: &'static str,
    pub namespace: &'static str,
    pub scope: &'static str,
    pub members: &'static str,
    pub service: &'static str,
}

impl Site {
    pub fn kubectl(self, words: &[&str]) -> String {
        self.try_kubectl(words).unwrap_or_else(|text| panic!("kubectl {words:?} on {}: {text}", self.name))
    }

    pub fn try_kubectl(self, words: &[&str]) -> Result<String, String> {
        let usual = ["--context", self.name, "-n", self.namespace, "--request-timeout=20s"];
        try_run(tool("kubectl").args(usual).args(words))
    }

    pub fn get(self, what: &[&str]) -> Value {
        json(&self.kubectl(&[&["get", "-o", "json"], what].concat()))
    }

    pub fn apply(self, manifest: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), manifest).unwrap();
        self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    /// One of Patroni's ConfigMaps.
    fn map(self, suffix: &str) -> Value {
        self.get(&["configmap", &format!("{}-{suffix}", self.scope)])
    }

    /// Patroni's dynamic configuration.
    pub fn config(self) -> Value {
        json(self.map("config")["metadata"]["annotations"]["config"].as_str().expect("the configuration"))
    }

    /// Changes Patroni's dynamic configuration, provided that it is still that of `map`; the ConfigMap as it is then.
    fn try_write_config(self, map: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, String> {
        let mut config = json(map["metadata"]["annotations"]["config"].as_str().expect("the configuration"));
        change(&mut config);
        let version = &map["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": {"config": config.to_string()}}})
            .to_string();
        let name = format!("{}-config", self.scope);
        self.try_kubectl(&["patch", "configmap", &name, "--type=merge", "-o", "json", "-p", &patch])
            .map(|text| json(&text))
    }

    fn change_config(self, change: impl Fn(&mut Value)) {
        await_condition("a change of the configuration", Duration::from_secs(20), || {
            self.try_write_config(&self.map("config"), &change).map(drop)
        });
    }

    /// The state record.
    pub fn record(self) -> Value {
        self.map("dr")["data"]["state.json"].as_str().map_or(Value::Null, json)
    }

    /// The leader's pod.
    pub fn leader(self) -> Value {
        let lease = self.map("leader");
        self.get(&["pod", lease["metadata"]["annotations"]["leader"].as_str().expect("a leader")])
    }

    /// What Patroni says of the leader.
    fn status(self) -> Value {
        json(self.leader()["metadata"]["annotations"]["status"].as_str().expect("a status"))
    }

    /// The pods behind a Service.
    fn behind(self, service: &str) -> Vec<String> {
        let endpoints = self.get(&["endpointslices", "-l", &format!("kubernetes.io/service-name={service}")]);
        let slices = endpoints["items"].as_array().unwrap().iter().filter_map(|slice| slice["endpoints"].as_array());
        slices.flatten().map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A password of the Secret that the chart made.
    pub fn password(self, role: &str) -> String {
        let template = format!("{{{{index .data \"{role}-password\" | base64decode}}}}");
        self.kubectl(&["get", "secret", "lifeboat-auth", "-o", &format!("go-template={template}")])
    }

    pub fn node_port(self) -> u16 {
        await_condition("a node port", Duration::from_secs(30), || {
            let service = json(&self.try_kubectl(&["get", "service", self.service, "-o", "json"])?);
            let port = service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
            port.ok_or_else(|| "none".to_owned())
        })
    }
}

/// Two sites and a witness, in a namespace of their own.
struct Trial {
    gold: Site,
    golddr: Site,
    /// The Secret that Gold's installation made.
    secret: Value,
    superuser: String,
    replication: Login,
    _witness: Background,
    witness: String,
}

/// A name and a password.
struct Login(String, String);

impl Trial {
    /// Gold is installed by the chart and accepts writes; there is a witness, and nothing else on GoldDR.
    fn with_gold(golddr: Site, values: &str) -> Self {
        let (scope, members) = ("lifeboat", "lifeboat-gold");
        let gold = Site { name: "gold", scope, members, service: "lifeboat-primary-gold", ..golddr };
        let names = ["superuser-password", "replication-username", "replication-password"];
        Self::between(gold, golddr, ("lifeboat-auth", names), || {
            install(gold, &["helm/lifeboat/values-gold.yaml", "tests/e2e/versions/quick.yaml", values], &[]);
        })
    }

    /// Two sites, of which the first was just made; the names of its Secret, and of the superuser's password and the replication
    /// role's name and password in it.
    fn between(gold: Site, golddr: Site, (secret, names): (&str, [&str; 3]), make_gold: impl FnOnce()) -> Self {
        run(cluster_script("link").arg("restore"));
        // A power loss may have been the last thing of the test before.
        if gold.try_kubectl(&["get", "nodes"]).is_err() {
            run(cluster_script("up").arg("gold"));
        }
        for site in [gold, golddr] {
            vacate(site);
            site.apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
                .to_string(),
            );
        }
        run(cluster_script("recycle-volumes").args(["gold", "golddr"]));
        make_gold();
        let data = gold.get(&["secret", secret])["data"].clone();
        let [superuser, user, password] = names.map(|name| {
            let template = format!("go-template={{{{index .data \"{name}\" | base64decode}}}}");
            gold.kubectl(&["get", "secret", secret, "-o", &template])
        });
        let listen = format!("{}:{WITNESS_PORT}", address("third"));
        let peer = format!("{}:{}", address("gold"), gold.node_port());
        let mut command = cluster_script("enter");
        command
            .args(["third", LIFEBOAT, "witness", "--listen", &listen, "--timeout", "1s", "--interval", "100ms"])
            .args(["--peer", &peer, "--user", &user])
            .env("PGPASSWORD", &password)
            .stderr(Stdio::null());
        let (witness, running) = (format!("http://{listen}"), Background::start(&mut command));
        let replication = Login(user, password);
        let trial = Self { gold, golddr, secret: data, superuser, replication, witness, _witness: running };
        trial.session(gold).query("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
        trial
    }

    fn try_session(&self, site: Site) -> Result<Session, String> {
        Session::open(&address(site.name), site.node_port(), "postgres", &self.superuser, "postgres")
    }

    fn session(&self, site: Site) -> Session {
        await_condition("a session", Duration::from_mins(1), || self.try_session(site))
    }

    fn await_streaming(&self) {
        await_condition("GoldDR streams", Duration::from_mins(1), || {
            let session = self.try_session(self.golddr)?;
            let status = session.try_query("SELECT status FROM pg_stat_wal_receiver")?;
            if status == ["streaming"] { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }

    /// Gold's pods end, and do not come back.
    fn lose_gold(&self) {
        self.gold.kubectl(&["scale", "statefulset", self.gold.members, "--replicas=0"]);
        self.gold.kubectl(&["delete", "pods", "-l", "application=patroni", "--force", "--grace-period=0"]);
        await_condition("the WAL receiver and the way to Gold are gone", Duration::from_secs(40), || {
            let receivers = self.try_session(self.golddr)?.try_query("SELECT pid FROM pg_stat_wal_receiver")?;
            let slices = self.gold.behind(self.gold.service);
            if receivers.is_empty() && slices.is_empty() { Ok(()) } else { Err(format!("{receivers:?} {slices:?}")) }
        });
    }

    /// GoldDR leads on the next timeline, has all rows, and takes a new one.
    fn assert_promoted(&self, timeline_before: u32) {
        let record = self.golddr.record();
        assert_eq!((&record["phase"], &record["epoch"]), (&"promoted".into(), &1.into()), "{record:#}");
        assert!(self.golddr.config().get("standby_cluster").is_none(), "{}", self.golddr.config());
        let session = self.session(self.golddr);
        assert_eq!(session.one("SELECT pg_is_in_recovery()"), "f");
        assert_eq!(session.one("SELECT count(*) FROM kept"), "1000");
        session.query("INSERT INTO kept VALUES (0)");
        let timeline = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        assert_eq!(session.one(timeline), (timeline_before + 1).to_string());
    }

    /// The chart's CronJob counts, and promotes GoldDR in the second run after Gold's loss.
    fn promoted_by_the_monitor(&self) {
        let golddr = self.golddr;
        let calm = monitor(golddr, "calm");
        let record = golddr.record();
        assert!(record["phase"] == "watching" && record["last_good"]["local_lsn"].is_string(), "{record:#}");
        let timeline = self.timeline();
        self.lose_gold();
        let first = monitor(golddr, "first");
        let record = golddr.record();
        assert_eq!(record["phase"], "suspect", "{record:#}");
        let second = monitor(golddr, "second");
        assert!(second.contains("accepts writes"), "{second}");
        for said in [calm, first, second] {
            assert!(!said.contains(&self.replication.1), "the password is told: {said}");
        }
        self.assert_promoted(timeline);
    }

    fn timeline(&self) -> u32 {
        self.session(self.golddr).one("SELECT timeline_id FROM pg_control_checkpoint()").parse().unwrap()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What failed can be looked at; the next run removes it.
        if !thread::panicking() {
            for site in [self.gold, self.golddr] {
                let _ = site.try_kubectl(&["delete", "namespace", site.namespace, "--wait=false"]);
                let _ = site.try_kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
            }
        }
    }
}

/// What an earlier run left is gone.
pub fn vacate(site: Site) {
    if site.try_kubectl(&["get", "namespace", site.namespace]).is_err() {
        return;
    }
    let _ = site.try_kubectl(&["delete", "namespace", site.namespace, "--wait=false"]);
    await_condition("the namespace is gone", Duration::from_mins(1), || {
        let _ = site.try_kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
        match site.try_kubectl(&["get", "namespace", site.namespace, "--ignore-not-found", "-o", "name"]) {
            Ok(text) if text.trim().is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

pub fn install(site: Site, values: &[&str], more: &[&str]) {
    let files: Vec<PathBuf> = values.iter().map(|path| project(path)).collect();
    let mut command = tool("helm");
    command
        .args(["--kube-context", site.name, "-n", site.namespace, "install", "lifeboat"])
        .arg(project("helm/lifeboat"));
    for file in files {
        command.arg("-f").arg(file);
    }
    run(command.args(["--wait", "--timeout=2m"]).args(more));
}

/// The monitor's steps by hand on GoldDR's node.
struct Chain<'a> {
    trial: &'a Trial,
    dir: tempfile::TempDir,
    peer: (String, u16),
}

impl<'a> Chain<'a> {
    fn of(trial: &'a Trial) -> Self {
        let service = trial.golddr.get(&["service", "lifeboat-primary-gold"]);
        let port = service["spec"]["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap();
        let host = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        Self { trial, dir: tempfile::tempdir().unwrap(), peer: (host, port) }
    }

    fn step(&self, words: &[&str]) -> Command {
        let mut command = cluster_script("enter");
        command
            .args(["golddr", LIFEBOAT])
            .args(words)
            .args(["--context", "golddr", "-n", self.trial.golddr.namespace])
            .env("KUBECONFIG", kubeconfig())
            .env("PGUSER", &self.trial.replication.0)
            .env("PGPASSWORD", &self.trial.replication.1);
        command
    }

    /// `follow` towards the tunnel, as the hook of the chart runs it.
    fn follow(&self) -> Ended {
        let words = ["follow", "--scope", self.trial.golddr.scope, "--site", "golddr", "--role", "standby"];
        let peer =
            ["--host", "lifeboat-primary-gold", "--port", &self.peer.1.to_string(), "--slot", "golddr"].join("\n");
        finish(self.step(&words).args(peer.lines()).args(["--wait", "60s"]))
    }

    fn probe(&self) -> Ended {
        let port = self.peer.1.to_string();
        let words = ["pg-probe", "--host", &self.peer.0, "--port", &port, "--interval", "200ms", "--timeout", "1s"];
        finish(self.step(&words).arg("--dir").arg(self.dir.path()))
    }

    fn promote(&self) -> Command {
        let mut command =
            self.step(&["promote", "--scope", self.trial.golddr.scope, "--site", "golddr", "--mode", "auto"]);
        command.args(["--witness", &self.trial.witness, "--failures", "4", "--for", "200ms", "--period", "30s"]);
        command.arg("--dir").arg(self.dir.path());
        command
    }

    /// Somebody else changes Patroni's configuration between the last look and the patch: the run has to observe again.
    fn promote_disturbed(&self) -> Ended {
        let golddr = self.trial.golddr;
        let paused = self.dir.path().join("paused");
        let mut command = self.promote();
        command.env("LIFEBOAT_PAUSE_AT", "rechecked").env("LIFEBOAT_PAUSE_FILE", &paused);
        let ended = thread::scope(|scope| {
            let run = scope.spawn(|| finish(&mut command));
            await_condition("the run has looked for the last time", Duration::from_secs(30), || {
                if paused.exists() || run.is_finished() { Ok(()) } else { Err("not yet".to_owned()) }
            });
            golddr.change_config(|config| config["maximum_lag_on_failover"] = json!(1_048_577));
            let _ = std::fs::remove_file(&paused);
            run.join().unwrap()
        });
        let wanted = format!("ConfigMap {}-config changed since it was read; observing again", golddr.scope);
        assert!(ended.log.contains(&wanted), "the run never met the change: {ended:#?}");
        ended
    }
}

/// What differs between the versions.
struct Version {
    namespace: &'static str,
    values: &'static str,
    postgresql: &'static str,
    patroni: &'static str,
    leader_label: &'static str,
    /// Whether Patroni tells that a member streams.
    tells: bool,
}

impl Version {
    fn promotes(&self) {
        let begun = Instant::now();
        let told = |what: &str| println!("{}: {what} after {:.1} s", self.namespace, begun.elapsed().as_secs_f32());
        let golddr = Site {
            name: "golddr",
            namespace: self.namespace,
            scope: "lifeboat",
            members: "lifeboat-golddr",
            service: "lifeboat-primary-golddr",
        };
        let trial = Trial::with_gold(golddr, self.values);
        told("Gold installed");
        golddr.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lifeboat-auth"}, "data": trial.secret})
                .to_string(),
        );
        let values = ["helm/lifeboat/values-golddr.yaml", "tests/e2e/versions/quick.yaml", self.values];
        install(golddr, &values, &["--set", &format!("monitor.witnesses={{{}}}", trial.witness)]);
        trial.await_streaming();
        assert_eq!(trial.session(golddr).one("SELECT slot_name FROM pg_stat_wal_receiver"), "golddr");
        told("GoldDR streams");

        for site in [trial.gold, golddr] {
            let version = trial.session(site).one("SHOW server_version");
            assert!(version.starts_with(self.postgresql), "{}: PostgreSQL {version}", site.name);
            let status = site.status();
            let patroni = status["version"].as_str().unwrap_or_default();
            assert!(patroni.starts_with(self.patroni), "{}: Patroni {patroni}", site.name);
        }
        self.assert_leads(golddr);
        self.assert_leads(trial.gold);

        let chain = Chain::of(&trial);
        golddr.change_config(|config| {
            config["standby_cluster"]["port"] = json!(9);
            config["standby_cluster"]["primary_slot_name"] = json!("nobodys");
        });
        let ended = chain.follow();
        assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
        let standby = golddr.config()["standby_cluster"].clone();
        assert_eq!((&standby["port"], &standby["primary_slot_name"]), (&chain.peer.1.into(), &"golddr".into()));
        trial.await_streaming();
        let again = chain.follow();
        assert_eq!((again.code, &again.outcome["outcome"]), (Some(0), &"nothing-to-do".into()), "{again:#?}");
        let state = golddr.status()["replication_state"].clone();
        assert_eq!(state, if self.tells { json!("streaming") } else { Value::Null });
        told("follow corrected port and slot");

        let probe = chain.probe();
        assert_eq!(probe.outcome["verdict"], "healthy", "{probe:#?}");
        let calm = finish(&mut chain.promote());
        assert_eq!((calm.code, &golddr.record()["phase"]), (Some(0), &"watching".into()), "{calm:#?}");
        let timeline = trial.timeline();
        trial.lose_gold();
        told("Gold is lost");
        let probe = chain.probe();
        assert_eq!(probe.outcome["verdict"], "unreachable", "{probe:#?}");
        let first = finish(&mut chain.promote());
        assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
        chain.probe();
        let ended = chain.promote_disturbed();
        assert_eq!((ended.code, &ended.outcome["outcome"]), (Some(0), &"done".into()), "{ended:#?}");
        trial.assert_promoted(timeline);
        self.assert_leads(golddr);
        told("GoldDR promoted");
    }

    /// The leader has the label that the Service selects, and nobody else is behind it.
    fn assert_leads(&self, site: Site) {
        let leader = site.leader();
        let name = leader["metadata"]["name"].as_str().unwrap();
        assert_eq!(leader["metadata"]["labels"]["role"], self.leader_label, "{name}");
        assert_eq!(site.behind("lifeboat-primary"), [name]);
        assert_eq!(site.behind("lifeboat-replicas"), [""; 0]);
    }
}

#[test]
fn postgresql_15_with_patroni_3_0_2_follows_and_promotes() {
    let version = Version {
        namespace: "versions-15",
        values: "tests/e2e/versions/15.yaml",
        postgresql: "15.",
        patroni: "3.0.2",
        leader_label: "master",
        tells: false,
    };
    version.promotes();
}

#[test]
fn postgresql_18_with_patroni_4_1_follows_and_promotes() {
    let version = Version {
        namespace: "versions-18",
        values: "tests/e2e/versions/18.yaml",
        postgresql: "18.",
        patroni: "4.1.",
        leader_label: "primary",
        tells: true,
    };
    version.promotes();
}

/// The chart beside a Patroni with another scope, other labels, names and credentials: its hook corrects, its monitor promotes.
#[test]
fn patroni_that_is_not_the_charts_is_attached_corrected_and_promoted() {
    let begun = Instant::now();
    let told = |what: &str| println!("attached: {what} after {:.1} s", begun.elapsed().as_secs_f32());
    let golddr = Site {
        name: "golddr",
        namespace: "versions-attached",
        scope: "batman",
        members: "batman",
        service: "batman-rw",
    };
    let trial = Trial::with_gold(golddr, "tests/e2e/versions/15.yaml");
    told("Gold installed");
    let data = json!({"boss": trial.secret["superuser-password"], "robin": trial.secret["replication-password"],
        "robin-name": trial.secret["replication-username"]});
    golddr.apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "batman-credentials"}, "data": data})
            .to_string(),
    );
    let port = await_condition("the tunnel", Duration::from_secs(30), || {
        let service = json(&golddr.try_kubectl(&["get", "service", "lifeboat-primary-gold", "-o", "json"])?);
        Ok(service["spec"]["ports"][0]["port"].clone())
    });
    let manifest = std::fs::read_to_string(project("tests/e2e/versions/elsewhere.yaml")).unwrap();
    golddr.apply(&manifest.replace("@PORT@", &port.to_string()));
    trial.await_streaming();
    told("a Patroni of somebody else streams");

    golddr.change_config(|config| config["standby_cluster"]["port"] = json!(9));
    let values = ["tests/e2e/versions/quick.yaml", "tests/e2e/versions/attached.yaml"];
    install(golddr, &values, &["--set", &format!("monitor.witnesses={{{}}}", trial.witness)]);
    assert_eq!(golddr.config()["standby_cluster"]["port"], port, "the hook did not correct the port");
    trial.await_streaming();
    assert_eq!(golddr.get(&["statefulsets"])["items"].as_array().unwrap().len(), 1);
    told("attached and corrected");

    trial.promoted_by_the_monitor();
    assert_eq!(golddr.leader()["metadata"]["labels"]["position"], "master");
    told("the monitor promoted it");
}

/// What docs/moving-from-gold-golddr.md says, on the objects of the sample chart at both sites.
#[test]
fn objects_of_the_sample_chart_are_attached_and_promoted() {
    let begun = Instant::now();
    let told = |what: &str| println!("sample chart: {what} after {:.1} s", begun.elapsed().as_secs_f32());
    let objects = std::fs::read_to_string(project("tests/e2e/versions/sample-chart.yaml")).unwrap();
    let objects = |site: Site, dcs: &Value| site.apply(&objects.replace("@DCS@", &dcs.to_string()));
    let (namespace, scope, members) = ("moving-over", "patroni", "patroni");
    let gold = Site { name: "gold", namespace, scope, members, service: "patroni-master-gold" };
    let golddr = Site { name: "golddr", service: "patroni-master-golddr", ..gold };
    let mut dcs = json!({"ttl": 20, "loop_wait": 3, "retry_timeout": 5, "maximum_lag_on_failover": 33_554_432,
        "postgresql": {"use_pg_rewind": true, "parameters": {"wal_receiver_timeout": "10s"}}});
    let claim = json!({"apiVersion": "porter.devops.gov.bc.ca/v1alpha1", "kind": "TransportServerClaim",
        "metadata": {"name": "patroni-postgres-tsc"}, "spec": {"service": "patroni-master", "servicePort": 5432,
        "monitor": {"type": "tcp", "interval": 10, "timeout": 10}}});
    let names = ["superuserpwd", "replication-username", "replication-password"];
    let trial = Trial::between(gold, golddr, ("patroni-creds", names), || {
        objects(gold, &dcs);
        gold.apply(&claim.to_string());
    });
    let port = await_condition("the tunnel", Duration::from_secs(30), || {
        let service = json(&golddr.try_kubectl(&["get", "service", "patroni-master-gold", "-o", "json"])?);
        Ok(service["spec"]["ports"][0]["port"].clone())
    });
    // As its install Job writes it: Patroni ignores name and password there.
    let Login(user, password) = &trial.replication;
    dcs["standby_cluster"] =
        json!({"host": "patroni-master-gold", "port": port, "username": user, "password": password});
    objects(golddr, &dcs);
    trial.await_streaming();
    told("both sites stand");

    golddr.kubectl(&["delete", "cronjob", "patroni-probe"]);
    trial.session(gold).query(&format!("GRANT pg_monitor TO {user}"));
    let values = ["tests/e2e/versions/quick.yaml", "docs/examples/values-attach-sample.yaml"];
    install(golddr, &values, &["--set", &format!("monitor.witnesses={{{}}}", trial.witness)]);
    assert_eq!(golddr.config()["standby_cluster"], dcs["standby_cluster"], "nothing was to be corrected");
    told("attached");

    trial.promoted_by_the_monitor();
    let leader = golddr.leader();
    assert_eq!(leader["metadata"]["labels"]["role"], "master");
    assert_eq!(golddr.behind("patroni-master"), [leader["metadata"]["name"].as_str().unwrap()]);
    let failover = golddr.get(&["configmap", "patroni-failover"]);
    assert!(failover["data"]["failover.sh"].as_str().unwrap().contains("sed"), "{failover:#}");
    told("the monitor promoted it");
}

/// One run of the CronJob, with its own rights; what its last step said.
pub fn monitor(site: Site, name: &str) -> String {
    site.kubectl(&["create", "job", name, "--from=cronjob/lifeboat-monitor"]);
    let job = await_condition("a run of the monitor", Duration::from_mins(1), || {
        let job = site.get(&["job", name]);
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ended = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
        if ended("Complete") || ended("Failed") { Ok(job) } else { Err(job["status"].to_string()) }
    });
    let said = site.kubectl(&["logs", &format!("job/{name}"), "--all-containers"]);
    assert_eq!(job["status"]["succeeded"], 1, "{said}");
    said
}
