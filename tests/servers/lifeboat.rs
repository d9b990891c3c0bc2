//! The binary: how it is called, and what it left behind.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

pub const LIFEBOAT: &str = env!("CARGO_BIN_EXE_lifeboat");

/// The binary with an empty environment: nothing of this machine steers it.
pub fn lifeboat(arguments: &[&str]) -> Command {
    let mut command = Command::new(LIFEBOAT);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// What a run left behind.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    pub fn of(command: &mut Command) -> Self {
        let begun = Instant::now();
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self::of_output(&output, begun)
    }

    fn of_output(output: &Output, begun: Instant) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| panic!("ended by a signal: {:?}", output.status)),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
            took: begun.elapsed(),
        }
    }

    /// The outcome, which must be all that is on standard output.
    pub fn outcome(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "stdout is one line: {:?}\n{}", self.stdout, self.stderr);
        let outcome: Value = serde_json::from_str(&self.stdout).expect("stdout is JSON");
        assert_eq!(outcome["version"], 1);
        assert_eq!(outcome["exit_code"], self.code, "{outcome}");
        outcome
    }

    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    pub fn assert_hides(&self, secret: &str) {
        assert!(!self.stdout.contains(secret), "{secret} is on stdout: {}", self.stdout);
        assert!(!self.stderr.contains(secret), "{secret} is on stderr: {}", self.stderr);
    }
}

/// A run that goes on beside the test.
pub struct Running {
    child: Option<Child>,
    log: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start lifeboat");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, log) = mpsc::channel();
        thread::spawn(move || {
            use std::io::BufRead;
            for line in std::io::BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child: Some(child), log, seen: Vec::new() }
    }

    /// Waits for a line of the log that holds `text`.
    pub fn await_log(&mut self, text: &str) -> String {
        loop {
            match self.log.recv_timeout(Duration::from_secs(20)) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("{text:?} is not in the log ({error}): {:#?}", self.seen),
            }
            if let Some(line) = self.seen.last().filter(|line| line.contains(text)) {
                return line.clone();
            }
        }
    }

    /// Asks it to stop; how it ended.
    pub fn terminate(self) -> Ended {
        let child = self.child.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM)
            .expect("send SIGTERM");
        self.ended()
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let child = self.child.take().expect("it runs");
        let begun = Instant::now();
        let output = child.wait_with_output().expect("wait for lifeboat");
        let mut ended = Ended::of_output(&output, begun);
        self.seen.extend(self.log.iter());
        ended.stderr = self.seen.join("\n");
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Names of the files in a folder, sorted.
pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder that `pg-probe` writes to.
pub struct Probe {
    pub dir: tempfile::TempDir,
}

impl Probe {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// One attempt of at most five seconds, unless `more` says otherwise.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = lifeboat(&["pg-probe", "--attempts=1", "--interval=50ms", "--timeout=5s", "--dir"]);
        command.arg(self.dir.path()).args(more);
        command
    }

    /// Runs to a verdict, and checks what goes with it.
    pub fn verdict(&self, command: &mut Command) -> Value {
        let ended = Ended::of(command);
        ended.assert_code(0);
        let facts = self.facts();
        let outcome = ended.outcome();
        assert_eq!(outcome["outcome"], "done");
        assert_eq!(outcome["verdict"], facts["verdict"]);
        assert_eq!(outcome["reason"], facts["reason"]);
        let word = match facts["verdict"].as_str().unwrap() {
            "unreachable" => Some("unhealthy\n"),
            "healthy" | "starting" | "rejected" => Some("healthy\n"),
            _ => None,
        };
        assert_eq!(self.health().as_deref(), word, "{facts}");
        facts
    }

    /// `probe.json`, with the fields that it must have.
    pub fn facts(&self) -> Value {
        let text = fs::read_to_string(self.dir.path().join("probe.json")).expect("read probe.json");
        let facts: Value = serde_json::from_str(&text).expect("probe.json is JSON");
        let keys: Vec<&String> = facts.as_object().unwrap().keys().collect();
        let wanted = [
            "version",
            "taken",
            "path",
            "host",
            "port",
            "verdict",
            "reason",
            "attempts",
            "system_id",
            "timeline",
            "lsn",
            "in_recovery",
        ];
        assert_eq!(keys, wanted);
        assert_eq!((&facts["version"], facts["path"].as_str()), (&Value::from(1), Some("postgresql")));
        facts["taken"].as_str().unwrap().parse::<jiff::Timestamp>().expect("taken is a time");
        for attempt in facts["attempts"].as_array().unwrap() {
            attempt["at"].as_str().unwrap().parse::<jiff::Timestamp>().expect("at is a time");
        }
        facts
    }

    pub fn health(&self) -> Option<String> {
        fs::read_to_string(self.dir.path().join("health")).ok()
    }
}

/// The error of the last attempt.
pub fn last_error(facts: &Value) -> &str {
    facts["attempts"].as_array().unwrap().last().unwrap()["error"].as_str().unwrap_or_default()
}

/// Asks until there is an answer; fails the test after the limit, with the last reason why not.
pub fn await_condition<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(begun.elapsed() < limit, "{what}: not within {limit:?}: {why}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}
