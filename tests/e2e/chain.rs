//! The monitor's chain run by hand on GoldDR's node: the binary with the kill points, the clusters' own network and records.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, cluster_ip, kubeconfig_path},
    system::{Cut, LIFEBOAT, await_condition, cluster_script, json, processes_named, signal},
};

/// The second path: Gold's own API server.
pub const SECOND_PATH: [&str; 4] = ["--peer-context", "gold", "--peer-namespace", NAMESPACE];

/// How a step ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none when it was killed.
    pub code: Option<i32>,
    /// The outcome; null when it was killed.
    pub outcome: Value,
    /// The log.
    pub log: String,
}

impl Ended {
    pub fn reason(&self) -> &str {
        self.outcome["reason"].as_str().unwrap_or_default()
    }

    /// The guards that said no.
    pub fn stopped_by(&self) -> Vec<&str> {
        let evidence = self.outcome["evidence"].as_array().map(Vec::as_slice).unwrap_or_default();
        evidence.iter().filter(|e| e["passed"] == false).filter_map(|e| e["guard"].as_str()).collect()
    }

    /// What a guard saw.
    pub fn found(&self, guard: &str) -> &str {
        let evidence = self.outcome["evidence"].as_array().map(Vec::as_slice).unwrap_or_default();
        evidence.iter().find(|e| e["guard"] == guard).and_then(|e| e["found"].as_str()).unwrap_or_default()
    }

    /// The kinds of what people were told.
    pub fn alerts(&self) -> Vec<&str> {
        let alerts = self.outcome["alerts"].as_array().map(Vec::as_slice).unwrap_or_default();
        alerts.iter().filter_map(|alert| alert["kind"].as_str()).collect()
    }

    pub fn assert_refused_by(&self, guard: &str) {
        assert_eq!(self.code, Some(3), "{self:#?}");
        assert!(self.stopped_by().contains(&guard), "not stopped by {guard}: {self:#?}");
        assert!(GOLDDR.is_standby(), "standby_cluster is gone");
    }

    /// Every other guard passed.
    pub fn assert_refused_by_nothing_but(&self, guard: &str) {
        self.assert_refused_by(guard);
        assert_eq!(self.stopped_by(), [guard], "{self:#?}");
    }
}

/// A chain with a folder of its own. Short times, so that two runs are enough failures over enough time.
pub struct Chain {
    third_party: Vec<String>,
    dir: TempDir,
    peer: (String, u16),
    password: String,
}

impl Chain {
    /// Of whatever GoldDR is, and with this word for whom to ask besides the two sites.
    pub fn of_site(third_party: &[&str]) -> Self {
        Self {
            third_party: third_party.iter().map(ToString::to_string).collect(),
            dir: tempfile::tempdir().unwrap(),
            peer: cluster_ip(GOLDDR, "lifeboat-primary-gold"),
            password: GOLDDR.password("replication"),
        }
    }

    /// A chain whose first run saw a healthy peer, so that the record knows a last good probe and no failures.
    pub fn calm(pair: &Pair) -> Self {
        Self::calm_asking(&["--witness", &pair.witness.url])
    }

    /// The same, with others to ask than the usual witness.
    pub fn calm_asking(third_party: &[&str]) -> Self {
        let chain = Self::of_site(third_party);
        let probe = chain.probe(&[]);
        assert_eq!(probe.outcome["verdict"], "healthy", "{probe:#?}");
        let promote = chain.promote(&[]);
        assert_eq!(promote.code, Some(0), "{promote:#?}");
        let record = GOLDDR.record();
        assert_eq!((&record["phase"], &record["failures"]), (&"watching".into(), &0.into()), "{record:#}");
        assert!(record["last_good"]["local_lsn"].is_string(), "{record:#}");
        chain
    }

    /// A kubeconfig by which GoldDR's API server is not found.
    pub fn without_api_server(&self) -> PathBuf {
        let file = self.dir().join("kubeconfig");
        let text = std::fs::read_to_string(kubeconfig_path()).unwrap();
        std::fs::write(&file, text.replace(&format!("{}:6443", GOLDDR.host()), &format!("{}:6444", GOLDDR.host())))
            .unwrap();
        file
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A step on GoldDR's node.
    pub fn command(&self, words: &[&str]) -> Command {
        self.complete(self.environment(), words)
    }

    fn environment(&self) -> Command {
        let mut command = cluster_script("enter");
        command.args(["golddr", LIFEBOAT]);
        self.with_environment(command)
    }

    /// A step's process that is known as a pod of this name.
    pub fn command_as(&self, pod: &str, words: &[&str]) -> Command {
        let mut command = self.environment();
        command.args(words).env("POD_NAME", pod);
        command
    }

    fn complete(&self, command: Command, words: &[&str]) -> Command {
        let mut command = self.with_environment(command);
        command.args(self.words(words, &[]));
        command
    }

    fn with_environment(&self, mut command: Command) -> Command {
        command.env("KUBECONFIG", kubeconfig_path()).env("PGUSER", "replicator").env("PGPASSWORD", &self.password);
        command
    }

    pub fn probe(&self, more: &[&str]) -> Ended {
        finish(self.environment().args(self.probe_words(more)))
    }

    /// The probe's command line.
    pub fn probe_words(&self, more: &[&str]) -> Vec<String> {
        let (host, port) = (&self.peer.0, self.peer.1.to_string());
        let usual = ["pg-probe", "--host", host, "--port", &port, "--interval", "200ms", "--timeout", "1s"];
        self.words(&usual, more)
    }

    pub fn promote_command(&self, more: &[&str]) -> Command {
        let mut command = self.environment();
        command.args(self.promote_words(&[&["--failures", "4", "--for", "100ms"], more].concat()));
        command
    }

    /// Not on GoldDR's node but on this machine, from where both API servers can be reached though the sites' link is cut.
    pub fn promote_by_another_way(&self, more: &[&str]) -> Ended {
        let mut command = self.with_environment(Command::new(LIFEBOAT));
        finish(command.args(self.promote_words(&[&["--failures", "4", "--for", "100ms"], more].concat())))
    }

    /// Promote's command line.
    pub fn promote_words(&self, more: &[&str]) -> Vec<String> {
        let mut usual = vec!["promote", "--context", "golddr", "--namespace", NAMESPACE, "--scope", SCOPE];
        usual.extend(["--site", "golddr", "--mode", "auto", "--period", "30s"]);
        usual.extend(self.third_party.iter().map(String::as_str));
        self.words(&usual, more)
    }

    fn words(&self, usual: &[&str], more: &[&str]) -> Vec<String> {
        let dir = ["--dir", self.dir.path().to_str().unwrap()];
        [usual, &dir, more].concat().into_iter().map(ToOwned::to_owned).collect()
    }

    pub fn promote(&self, more: &[&str]) -> Ended {
        finish(&mut self.promote_command(more))
    }

    /// Probe and promote, as one run of the CronJob.
    pub fn run(&self, more: &[&str]) -> Ended {
        self.probe(&[]);
        self.promote(more)
    }

    /// Gold can be reached by nobody, and a first run has seen that.
    pub fn isolate_gold(&self) -> [Cut; 2] {
        let cuts = [Cut::new(&["cut", "gold", "golddr"]), Cut::new(&["cut", "gold", "third"])];
        end_wal_receiver();
        let first = self.run(&[]);
        assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
        cuts
    }

    /// One failing run, which must wait, then a second one, which decides.
    pub fn run_twice(&self, more: &[&str]) -> Ended {
        let first = self.run(more);
        assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
        self.run(more)
    }
}

/// Behind a cut link the WAL receiver is silent until `wal_receiver_timeout` has passed, and does not come back.
pub fn end_wal_receiver() {
    let leader = GOLDDR.leader().unwrap();
    let session = GOLDDR.session();
    signal("-TERM", &processes_named("walreceiver", &leader, NAMESPACE));
    await_condition("the WAL receiver ends", Duration::from_secs(20), || {
        let rows = session.query("SELECT pid, status, last_msg_receipt_time FROM pg_stat_wal_receiver");
        if rows.is_empty() { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}

pub fn finish(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let outcome = if stdout.trim().is_empty() { Value::Null } else { json(stdout.trim()) };
    Ended { code: output.status.code(), outcome, log: String::from_utf8_lossy(&output.stderr).into_owned() }
}
