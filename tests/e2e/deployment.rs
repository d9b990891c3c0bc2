//! What the chart makes with `monitor.kind: Deployment` and `site.role: witness`, in real pods.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    chain::Chain,
    pair::{GOLD, GOLDDR, Pair, SCOPE, cluster_ip, upgrade},
    promotion::{audit, cut_gold},
    system::{Cut, await_condition, cluster_script, json, project, run, tool, try_run},
};

/// A GET to a Service of GoldDR, from its node: the status and the body.
fn ask(address: &(String, u16), path: &str, header: &str) -> (u16, String) {
    let (host, port) = address;
    let url = format!("http://{host}:{port}{path}");
    let words = ["--silent", "--max-time", "15", "--noproxy", "*", "--write-out", "\n%{http_code}", "--header", header];
    let answer = try_run(cluster_script("enter").args(["golddr", "curl"]).args(words).arg(url)).unwrap_or_default();
    let (body, status) = answer.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or(0), body.to_owned())
}

/// GoldDR's monitor is a Deployment until dropped, unless the site was promoted: that one is installed anew.
struct Deployed;

impl Deployed {
    fn new(values: &str) -> Self {
        let deployed = Self;
        upgrade(GOLDDR, &["--set", &format!("monitor.kind=Deployment,monitor.suspend=false,{values}")]);
        deployed
    }
}

impl Drop for Deployed {
    fn drop(&mut self) {
        if GOLDDR.is_standby() {
            let before = "monitor.kind=CronJob,monitor.suspend=true,monitor.for=60s,monitor.every=5s";
            upgrade(GOLDDR, &["--set", before]);
        }
    }
}

/// The only pod of the monitor.
fn pod() -> Value {
    let pods =
        GOLDDR.get(&["pods", "-l", "app.kubernetes.io/component=monitor", "--field-selector=status.phase=Running"]);
    let pods = pods["items"].as_array().unwrap();
    assert_eq!(pods.len(), 1, "{pods:#?}");
    pods[0].clone()
}

fn holder() -> String {
    let lease = GOLDDR.get(&["lease", "lifeboat-monitor"]);
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

/// The pod asks the witness, is cut off from Gold with the rest of the world, and promotes; the Service tells it all the while.
#[test]
fn deployment_of_the_chart_promotes_and_tells_it_by_its_service() {
    let _pair = Pair::ready();
    let _deployed = Deployed::new("monitor.for=10s,monitor.every=1s");
    let service = cluster_ip(GOLDDR, "lifeboat-monitor");
    let metrics = |line: &str| {
        let (status, text) = ask(&service, "/metrics", "Accept: */*");
        if status == 200 && text.lines().any(|found| found == line) { Ok(()) } else { Err(format!("{status} {text}")) }
    };
    for line in ["lifeboat_monitor_leader 1.0", "lifeboat_phase{phase=\"watching\"} 1", "lifeboat_primary 0.0"] {
        await_condition(line, Duration::from_secs(30), || metrics(line));
    }
    assert_eq!(ask(&service, "/primary", "Accept: */*").0, 503, "a standby says that it leads");
    assert_eq!(ask(&service, "/healthz", "Accept: */*").0, 200);
    await_condition("the peer was seen, and the witness saw it", Duration::from_secs(30), || {
        let record = GOLDDR.record();
        let seen = record["last_good"]["local_lsn"].is_string()
            && record["witnesses"].as_object().is_some_and(|w| !w.is_empty());
        if seen && record["failures"] == 0 { Ok(()) } else { Err(format!("{record:#}")) }
    });
    let before = pod();
    let name = before["metadata"]["name"].as_str().unwrap();
    assert!(holder().starts_with(name), "the Lease is held by {}, not by {name}", holder());

    let cuts = cut_gold();
    let cut = Instant::now();
    await_condition("the pod promotes GoldDR", Duration::from_mins(2), || {
        let record = GOLDDR.record();
        if record["phase"] == "promoted" { Ok(()) } else { Err(format!("{record:#}")) }
    });
    println!("Gold cut: the chart's Deployment promoted GoldDR after {:?} with monitor.for=10s", cut.elapsed());
    assert_eq!(GOLDDR.session().one("SELECT pg_is_in_recovery()"), "f");
    for line in ["lifeboat_primary 1.0", "lifeboat_phase{phase=\"promoted\"} 1"] {
        await_condition(line, Duration::from_secs(30), || metrics(line));
    }
    let (status, body) = ask(&service, "/primary", "Accept: */*");
    assert_eq!(status, 200, "{body}");
    let record = GOLDDR.record();
    let promotion = (&record["epoch"], &record["promotion"]["by"], audit(&record, "decided"));
    assert_eq!(promotion, (&1.into(), &"auto".into(), 1), "{record:#}");
    let after = pod();
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"], "another pod has promoted");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0, "{after:#}");
    assert!(holder().starts_with(name), "the Lease is held by {}, not by {name}", holder());
    drop(cuts);
}

/// A release of its own, in another namespace of GoldDR's cluster: the test clusters are two. For a real one that place is of no use.
struct WitnessRelease {
    service: (String, u16),
}

const PLACE: &str = "e2e-witness";

impl WitnessRelease {
    fn install() -> Self {
        Self::remove();
        Self::cluster(&["create", "namespace", PLACE]);
        Self::cluster(&["label", "namespace", PLACE, "pod-security.kubernetes.io/enforce=restricted"]);
        Self::helm("install", "witness.timeout=1s");
        let service = json(&Self::cluster(&["-n", PLACE, "get", "service", "lifeboat-witness", "-o", "json"]));
        Self { service: (service["spec"]["clusterIP"].as_str().unwrap().to_owned(), 8080) }
    }

    fn helm(verb: &str, values: &str) -> String {
        let (chart, file) = (project("helm/lifeboat"), project("helm/lifeboat/values-witness.yaml"));
        let peer = format!("peer.host={},peer.port={}", GOLD.host(), GOLD.node_port());
        let mut command = tool("helm");
        command.args(["--kube-context", "golddr", "-n", PLACE, verb, SCOPE]);
        if verb != "test" {
            command.arg(chart).arg("-f").arg(file).args(["--set", &peer, "--set", values, "--wait"]);
        }
        run(command.arg("--timeout=3m"))
    }

    fn cluster(words: &[&str]) -> String {
        run(tool("kubectl").args(["--context", "golddr", "--request-timeout=60s"]).args(words))
    }

    fn remove() {
        let words = ["--context", "golddr", "delete", "namespace", PLACE, "--ignore-not-found", "--timeout=60s"];
        run(tool("kubectl").args(words));
    }

    fn verdict(&self, header: &str) -> (u16, Value) {
        let (status, body) = ask(&self.service, "/v1/peer", header);
        let answer = if status == 200 { json(&body)["verdict"].clone() } else { Value::Null };
        (status, answer)
    }

    /// Callers within a second get the same answer, so a change is not seen at once.
    fn await_verdict(&self, header: &str, wanted: &str) {
        await_condition(wanted, Duration::from_mins(1), || match self.verdict(header) {
            (200, verdict) if verdict == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

impl Drop for WitnessRelease {
    fn drop(&mut self) {
        let _ = try_run(tool("kubectl").args(["--context", "golddr", "delete", "namespace", PLACE, "--wait=false"]));
    }
}

#[test]
fn witness_of_the_chart_tells_what_it_sees_of_gold() {
    let _pair = Pair::ready();
    let release = WitnessRelease::install();
    let open = "Accept: */*";
    // Without a password a living server refuses. One answer alone may come too late on a busy machine.
    release.await_verdict(open, "rejected");
    assert!(WitnessRelease::helm("test", "").contains("Succeeded"));

    let manifest = run(tool("helm").args(["--kube-context", "golddr", "-n", PLACE, "get", "manifest", SCOPE]));
    let mut kinds: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("kind: ")).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["Deployment", "NetworkPolicy", "Service"], "a witness is alone");
    let pods = json(&WitnessRelease::cluster(&[
        "-n",
        PLACE,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/component=witness",
        "-o",
        "json",
    ]));
    assert!(pods["items"][0]["spec"]["volumes"].is_null(), "a token or another volume is in the pod: {pods:#}");

    // The monitor's own step asks it, and remembers that it saw Gold.
    let url = format!("http://{}:{}", release.service.0, release.service.1);
    let chain = Chain::calm_asking(&["--witness", &url]);
    await_condition("the step remembers what the witness saw", Duration::from_mins(1), || {
        let record = GOLDDR.record();
        if record["witnesses"].as_object().is_some_and(|seen| seen.contains_key(&url)) {
            return Ok(());
        }
        chain.run(&[]);
        Err(format!("{record:#}"))
    });

    {
        let _cut = Cut::new(&["cut", "gold", "golddr"]);
        release.await_verdict(open, "unreachable");
    }
    release.await_verdict(open, "rejected");

    WitnessRelease::cluster(&["-n", PLACE, "create", "secret", "generic", "witness", "--from-literal=token=e2e-token"]);
    let role = ["superuser-username", "superuser-password", "replication-username", "replication-password"];
    let secret = GOLD.get(&["secret", "lifeboat-auth"]);
    let data: serde_json::Map<String, Value> =
        role.iter().map(|key| ((*key).to_owned(), secret["data"][key].clone())).collect();
    let copy =
        serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lifeboat-auth"}, "data": data});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), copy.to_string()).unwrap();
    WitnessRelease::cluster(&["-n", PLACE, "apply", "-f", file.path().to_str().unwrap()]);
    WitnessRelease::helm("upgrade", "witness.token.existingSecret=witness,auth.existingSecret=lifeboat-auth");
    await_condition("the old pod is gone, the new one wants the token", Duration::from_secs(30), || {
        match release.verdict(open).0 {
            401 => Ok(()),
            other => Err(other.to_string()),
        }
    });
    release.await_verdict("Authorization: Bearer e2e-token", "healthy");
    assert!(WitnessRelease::helm("test", "").contains("Succeeded"), "the test opens no session");
}
