//! The monitor's chain run by hand on GoldDR's node: the binary with the kill points, the clusters' own network and records.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    pair::{GOLDDR, NAMESPACE, Pair, SCOPE, cluster_ip, kubeconfig_path},
    system::{LIFEBOAT, cluster_script, json},
};

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

    pub fn assert_refused_by(&self, guard: &str) {
        assert_eq!(self.code, Some(3), "{self:#?}");
        assert!(self.stopped_by().contains(&guard), "not stopped by {guard}: {self:#?}");
        assert!(GOLDDR.is_standby(), "standby_cluster is gone");
    }
}

/// A chain with a folder of its own. Short times, so that two runs are enough failures over enough time.
pub struct Chain<'a> {
    pair: &'a Pair,
    dir: TempDir,
    peer: (String, u16),
    password: String,
}

impl<'a> Chain<'a> {
    /// A chain whose first run saw a healthy peer, so that the record knows a last good probe and no failures.
    pub fn calm(pair: &'a Pair) -> Self {
        let chain = Self {
            pair,
            dir: tempfile::tempdir().unwrap(),
            peer: cluster_ip(GOLDDR, "lifeboat-primary-gold"),
            password: GOLDDR.password("replication"),
        };
        let probe = chain.probe(&[]);
        assert_eq!(probe.outcome["verdict"], "healthy", "{probe:#?}");
        let promote = chain.promote(&[]);
        assert_eq!(promote.code, Some(0), "{promote:#?}");
        let record = GOLDDR.record();
        assert_eq!((&record["phase"], &record["failures"]), (&"watching".into(), &0.into()), "{record:#}");
        assert!(record["last_good"]["local_lsn"].is_string(), "{record:#}");
        chain
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A step on GoldDR's node.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.environment();
        command.args(self.words(words, &[]));
        command
    }

    fn environment(&self) -> Command {
        let mut command = cluster_script("enter");
        command.args(["golddr", LIFEBOAT]).env("KUBECONFIG", kubeconfig_path());
        command.env("PGUSER", "replicator").env("PGPASSWORD", &self.password);
        command
    }

    /// A step's process that is known as a pod of this name.
    pub fn command_as(&self, pod: &str, words: &[&str]) -> Command {
        let mut command = self.environment();
        command.args(words).env("POD_NAME", pod);
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
        command.args(self.promote_words(&[&["--failures", "4", "--for", "1s"], more].concat()));
        command
    }

    /// Promote's command line.
    pub fn promote_words(&self, more: &[&str]) -> Vec<String> {
        let usual = [
            "promote",
            "--context",
            "golddr",
            "--namespace",
            NAMESPACE,
            "--scope",
            SCOPE,
            "--site",
            "golddr",
            "--mode",
            "auto",
            "--witness",
            &self.pair.witness,
            "--period",
            "30s",
        ];
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

    /// One failing run, which must wait, then a second one, which decides.
    pub fn run_twice(&self, more: &[&str]) -> Ended {
        let first = self.run(more);
        assert_eq!((first.code, &first.outcome["phase"]), (Some(0), &"suspect".into()), "{first:#?}");
        self.run(more)
    }
}

pub fn finish(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let outcome = if stdout.trim().is_empty() { Value::Null } else { json(stdout.trim()) };
    Ended { code: output.status.code(), outcome, log: String::from_utf8_lossy(&output.stderr).into_owned() }
}
