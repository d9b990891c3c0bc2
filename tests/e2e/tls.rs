//! TLS of PostgreSQL, of replication and of Patroni's REST API, verified by name, and renewed without a restart. Both sites are installed
//! in a namespace of their own, each with an authority of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    sql::Session,
    system::{address, await_condition, cluster_script, json, run, try_run},
    versions::{Site, install, monitor, vacate},
};

const NAMESPACE: &str = "tls";
const GOLD: Site = Site { name: "gold", namespace: NAMESPACE, scope: "lifeboat", service: "lifeboat-primary-gold" };
const GOLDDR: Site =
    Site { name: "golddr", namespace: NAMESPACE, scope: "lifeboat", service: "lifeboat-primary-golddr" };
const VALUES: [&str; 2] = ["tests/e2e/versions/quick.yaml", "tests/e2e/tls/values.yaml"];

fn openssl(folder: &Path, words: &str) {
    run(Command::new("openssl").current_dir(folder).args(words.split_whitespace()));
}

/// The authorities of both sites, and what they signed.
struct Authorities(TempDir);

impl Authorities {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for site in [GOLD, GOLDDR] {
            let name = site.name;
            openssl(
                folder.path(),
                &format!(
                    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority-of-{name} \
                     -addext keyUsage=critical,keyCertSign -keyout {name}-ca.key -out {name}-ca.crt"
                ),
            );
        }
        Self(folder)
    }

    fn of(&self, site: Site) -> PathBuf {
        self.0.path().join(format!("{}-ca.crt", site.name))
    }

    /// A new certificate of a site's authority, with its key.
    fn certificate(&self, site: Site, names: &[&str]) -> (String, String) {
        let folder = self.0.path();
        let names: Vec<String> = names.iter().map(|name| format!("DNS:{name}")).collect();
        // Python from 3.13 on, and so Patroni, is strict: an authority tells its key's usage, and a certificate its authority's key.
        let extensions = format!("subjectAltName={}\nauthorityKeyIdentifier=keyid\n", names.join(","));
        fs::write(folder.join("names"), extensions).unwrap();
        openssl(
            folder,
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=lifeboat -keyout new.key -out new.csr",
        );
        let name = site.name;
        let sign = format!("x509 -req -CA {name}-ca.crt -CAkey {name}-ca.key -CAcreateserial -days 2 -extfile names");
        openssl(folder, &format!("{sign} -in new.csr -out new.crt"));
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        (read("new.crt"), read("new.key"))
    }

    /// The Secrets of a site's servers, each with a new certificate.
    fn give(&self, site: Site) {
        let members = format!("*.lifeboat-members.{NAMESPACE}.svc");
        let (certificate, key) = self.certificate(site, &["lifeboat-primary", site.service, &members]);
        secret(site, "server-certificate", json!({ "tls.crt": certificate, "tls.key": key }));
        let (certificate, key) = self.certificate(site, &[&members]);
        let authority = fs::read_to_string(self.of(site)).unwrap();
        secret(site, "rest-certificate", json!({ "tls.crt": certificate, "tls.key": key, "ca.crt": authority }));
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
fn secret(site: Site, name: &str, data: Value) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
    site.apply(&secret.to_string());
}

/// Both sites with TLS everywhere.
struct Trial {
    authorities: Authorities,
}

impl Trial {
    fn new() -> Self {
        run(cluster_script("link").arg("restore"));
        if GOLD.try_kubectl(&["get", "nodes"]).is_err() {
            run(cluster_script("up").arg("gold"));
        }
        let authorities = Authorities::new();
        let known = |sites: &[Site]| -> String {
            sites.iter().map(|site| fs::read_to_string(authorities.of(*site)).unwrap()).collect()
        };
        for site in [GOLD, GOLDDR] {
            vacate(site);
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
            site.apply(&namespace.to_string());
            authorities.give(site);
            secret(site, "authorities", json!({ "ca.crt": known(&[GOLD, GOLDDR]) }));
            secret(site, "golddr-alone", json!({ "ca.crt": known(&[GOLDDR]) }));
            secret(
                site,
                "lifeboat-auth",
                json!({"superuser-username": "postgres", "superuser-password": "s", "replication-username": "replicator",
                    "replication-password": "r", "app-username": "app", "app-password": "a", "app-database": "app"}),
            );
        }
        run(cluster_script("recycle-volumes").args(["gold", "golddr"]));
        // Both at once: with the credentials given, the standby only waits for the tunnel and the peer.
        thread::scope(|scope| {
            scope.spawn(|| install(GOLD, &[&["helm/lifeboat/values-gold.yaml"], &VALUES[..]].concat(), &[]));
            let one = ["--set", "patroni.replicas=1"];
            install(GOLDDR, &[&["helm/lifeboat/values-golddr.yaml"], &VALUES[..]].concat(), &one);
        });
        Self { authorities }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What failed can be looked at; the next run removes it.
        if !thread::panicking() {
            for site in [GOLD, GOLDDR] {
                let _ = site.try_kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
                let _ = site.try_kubectl(&["delete", "pods", "--all", "--force", "--grace-period=0"]);
            }
        }
    }
}

/// The superuser's answer, by the socket in a member's pod.
fn try_sql(site: Site, pod: &str, sql: &str) -> Result<String, String> {
    let psql = r#"PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD psql -XAtq -h /tmp -U postgres -c "$0""#;
    site.try_kubectl(&["exec", pod, "-c", "patroni", "--", "sh", "-c", psql, sql]).map(|text| text.trim().to_owned())
}

fn leader(site: Site) -> String {
    site.leader()["metadata"]["name"].as_str().unwrap().to_owned()
}

/// The other site's leader and the own replica, each by a verified connection.
fn await_verified_streaming() {
    await_condition("all replicas stream over TLS", Duration::from_secs(40), || {
        let leader = leader(GOLD);
        let streams = "SELECT string_agg(application_name || ' ' || ssl, ',' ORDER BY application_name) \
                       FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE state = 'streaming'";
        let streams = try_sql(GOLD, &leader, streams)?;
        let replica = if leader == "lifeboat-gold-0" { "lifeboat-gold-1" } else { "lifeboat-gold-0" };
        if streams != format!("{replica} true,{} true", self::leader(GOLDDR)) {
            return Err(streams);
        }
        for (site, pod, host) in [
            (GOLD, replica.to_owned(), format!("host={leader}.lifeboat-members.tls.svc")),
            (GOLDDR, self::leader(GOLDDR), "host=lifeboat-primary-gold".to_owned()),
        ] {
            let said = try_sql(site, &pod, "SELECT conninfo FROM pg_stat_wal_receiver")?;
            for word in [host.as_str(), "sslmode=verify-full", "sslrootcert=/etc/lifeboat-peer/ca.crt"] {
                if !said.contains(word) {
                    return Err(format!("{pod} lacks {word}: {said}"));
                }
            }
        }
        Ok(())
    });
}

fn members(site: Site) -> Vec<Value> {
    site.get(&["pods", "-l", "application=patroni"])["items"].as_array().unwrap().clone()
}

/// The serial number that a server of a pod shows.
fn served(site: Site, pod: &Value, port: u16, more: &[&str]) -> Result<String, String> {
    let place = format!("{}:{port}", pod["status"]["podIP"].as_str().unwrap());
    let shown =
        try_run(cluster_script("enter").args([site.name, "openssl", "s_client", "-connect", &place]).args(more))?;
    let mut child = Command::new("openssl")
        .args(["x509", "-noout", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), shown.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// What each member serves: PostgreSQL's and the REST API's certificate.
fn all_served(site: Site) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for pod in members(site) {
        all.push(served(site, &pod, 5432, &["-starttls", "postgres"])?);
        all.push(served(site, &pod, 8008, &[])?);
    }
    Ok(all)
}

/// What a restart of anything would change.
fn lives(site: Site) -> Vec<String> {
    let life = |pod: Value| {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        let started = try_sql(site, &name, "SELECT pg_postmaster_start_time()").unwrap();
        let containers = pod["status"]["containerStatuses"].as_array().unwrap().iter();
        let ids: Vec<_> = containers.map(|c| format!("{} {}", c["containerID"], c["restartCount"])).collect();
        format!("{name} {started} {}", ids.join(" "))
    };
    members(site).into_iter().map(life).collect()
}

/// Asks a member's REST API by its name; the status.
fn rest(trial: &Trial, site: Site, method: &str, path: &str) -> String {
    let pod = site.leader();
    let name = format!("{}.lifeboat-members.{NAMESPACE}.svc", pod["metadata"]["name"].as_str().unwrap());
    let resolve = format!("{name}:8008:{}", pod["status"]["podIP"].as_str().unwrap());
    let mut command = cluster_script("enter");
    command.args([site.name, "curl", "-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", "-X", method]);
    command.arg("--cacert").arg(trial.authorities.of(site)).args(["--resolve", &resolve]);
    run(command.arg(format!("https://{name}:8008{path}")))
}

/// One run of the monitor that knows another authority; what its steps said.
fn monitor_with(authorities: &str, name: &str) -> String {
    let from = ["create", "job", name, "--from=cronjob/lifeboat-monitor", "--dry-run=client", "-o", "json"];
    let mut job = json(&GOLDDR.kubectl(&from));
    job["metadata"].as_object_mut().unwrap().remove("ownerReferences");
    for volume in job["spec"]["template"]["spec"]["volumes"].as_array_mut().unwrap() {
        if volume["name"] == "peer-tls" {
            volume["secret"]["secretName"] = authorities.into();
        }
    }
    GOLDDR.apply(&job.to_string());
    await_condition("the run's end", Duration::from_secs(40), || {
        let job = GOLDDR.get(&["job", name]);
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ended = conditions.iter().any(|c| ["Complete", "Failed"].contains(&c["type"].as_str().unwrap_or_default()));
        if ended { Ok(()) } else { Err(job["status"].to_string()) }
    });
    GOLDDR.kubectl(&["logs", &format!("job/{name}"), "--all-containers"])
}

fn assert_calm(what: &str) {
    let record = GOLDDR.record();
    assert_eq!((&record["phase"], &record["failures"]), (&"watching".into(), &0.into()), "{what}: {record:#}");
    assert!(GOLDDR.config().get("standby_cluster").is_some(), "{what}: {}", GOLDDR.config());
}

#[test]
fn tls_is_verified_on_both_sides_and_renewed_without_a_restart() {
    let begun = Instant::now();
    let told = |what: &str| println!("tls: {what} after {:.1} s", begun.elapsed().as_secs_f32());
    let trial = Trial::new();
    told("both sites installed");

    await_verified_streaming();
    let plain = Session::open(&address("gold"), GOLD.node_port(), "postgres", &GOLD.password("superuser"), "postgres");
    let refused = plain.err().expect("a session without TLS");
    assert!(refused.contains("28000") && refused.contains("no encryption"), "{refused}");
    for site in [GOLD, GOLDDR] {
        assert_eq!(rest(&trial, site, "GET", "/patroni"), "200");
        assert_eq!(rest(&trial, site, "POST", "/reload"), "403", "a command without a certificate");
    }
    told("replication and REST are verified");

    // The members reach each other's REST API: the leader asks the candidate, patronictl asks the leader.
    let (old, new) = match leader(GOLD).as_str() {
        "lifeboat-gold-0" => ("lifeboat-gold-0", "lifeboat-gold-1"),
        _ => ("lifeboat-gold-1", "lifeboat-gold-0"),
    };
    let switch = ["patronictl", "-c", "/intercom/patroni.json", "switchover", "--force", "--candidate", new];
    let said = GOLD.kubectl(&[&["exec", old, "-c", "patroni", "--"], &switch[..]].concat());
    assert!(said.contains("Successfully switched over"), "{said}");
    await_condition("the candidate leads", Duration::from_secs(30), || match leader(GOLD) {
        now if now == new => Ok(()),
        now => Err(now),
    });
    await_verified_streaming();
    told("the leader switched");

    for site in [GOLD, GOLDDR] {
        let (before, shown) = (lives(site), all_served(site).unwrap());
        assert!(shown.iter().all(|serial| serial.starts_with("serial=")), "{shown:?}");
        trial.authorities.give(site);
        // The kubelet looks at a Secret when it looks at its pod: within about a minute, or when the pod changes.
        site.kubectl(&["annotate", "pods", "-l", "application=patroni", "--overwrite", "e2e/renewed=yes"]);
        await_condition("the new certificates are served", Duration::from_mins(2), || {
            let now = all_served(site)?;
            let renewed = now.iter().zip(&shown).all(|(now, before)| now.starts_with("serial=") && now != before);
            if renewed { Ok(()) } else { Err(format!("{now:?} of {shown:?}")) }
        });
        assert_eq!(lives(site), before, "something restarted on {}", site.name);
        told(&format!("{} is renewed", site.name));
    }
    let logs = GOLD.kubectl(&["logs", &leader(GOLD), "-c", "tls-reload"]);
    assert!(logs.contains("took the new certificate"), "{logs}");
    await_verified_streaming();
    told("all stream still");

    monitor(GOLDDR, "renewed");
    assert_calm("a probe that verifies a renewed certificate");
    let good = GOLDDR.record()["last_good"].clone();
    assert!(good["local_lsn"].is_string() && good["system_id"].is_string(), "{good:#}");
    let said = monitor_with("golddr-alone", "wrong");
    assert!(said.contains(r#""verdict":"misconfigured""#), "{said}");
    assert_calm("a probe with a wrong authority");
    told("a wrong authority is misconfigured");
}
