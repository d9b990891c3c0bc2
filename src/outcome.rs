//! What a command says at its end: one JSON document, one exit code, the same in the termination log.

use std::{
    fmt,
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};
use tracing::warn;

use crate::alerts::Alert;

/// The kubelet keeps at most 4096 bytes of a termination message
/// (Kubernetes: "Determine the Reason for Pod Failure").
const TERMINATION_LOG_LIMIT: usize = 4096;

/// How a command ended. Each has one exit code, the same for all commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conclusion {
    /// Done, and checked.
    Done,
    /// Rightly nothing to do, or waiting as it should.
    NothingToDo,
    /// A guard said that it is unsafe.
    Refused,
    /// Failed; a retry may help.
    Failed,
    /// Usage or configuration: a retry doesn't help.
    Misconfigured,
    /// Done but not verified, or data found wrong.
    Unverified,
    /// Another run holds the lock.
    Locked,
}

impl Conclusion {
    /// The process exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::NothingToDo => 0,
            Self::Failed => 1,
            Self::Misconfigured => 2,
            Self::Refused => 3,
            Self::Unverified => 4,
            Self::Locked => 5,
        }
    }

    /// Whether the exit code is 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.exit_code() == 0
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::NothingToDo => "nothing to do",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Misconfigured => "misconfigured",
            Self::Unverified => "unverified",
            Self::Locked => "locked",
        })
    }
}

/// One guard and what it saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The guard's fixed name, such as `wal-receiver`.
    pub guard: &'static str,
    /// Whether it lets the action pass.
    pub passed: bool,
    /// What was observed.
    pub found: String,
    /// What it needs.
    pub required: String,
}

impl Evidence {
    /// A guard's verdict with what it saw and what it needs.
    pub fn new(guard: &'static str, passed: bool, found: impl Into<String>, required: impl Into<String>) -> Self {
        Self { guard, passed, found: found.into(), required: required.into() }
    }
}

/// What a command returns: its conclusion, one sentence, and what it saw.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub conclusion: Conclusion,
    /// One sentence for a person.
    pub reason: String,
    /// Every guard that was asked.
    pub evidence: Vec<Evidence>,
    /// Further fields of the outcome, by command.
    pub details: Map<String, Value>,
    /// What a person reads on a terminal in place of evidence and details.
    pub table: Option<String>,
    /// What a person must know of.
    pub alerts: Vec<Alert>,
}

impl Report {
    /// A report without evidence.
    pub fn new(conclusion: Conclusion, reason: impl Into<String>) -> Self {
        Self {
            conclusion,
            reason: reason.into(),
            evidence: Vec::new(),
            details: Map::new(),
            table: None,
            alerts: Vec::new(),
        }
    }

    /// Done, and checked.
    pub fn done(reason: impl Into<String>) -> Self {
        Self::new(Conclusion::Done, reason)
    }

    /// Rightly nothing to do.
    pub fn nothing_to_do(reason: impl Into<String>) -> Self {
        Self::new(Conclusion::NothingToDo, reason)
    }

    /// Adds a field to the outcome.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        self.details.insert(key.to_owned(), serde_json::to_value(value).unwrap_or(Value::Null));
        self
    }

    /// Adds the guards that were asked.
    #[must_use]
    pub fn with_evidence(mut self, evidence: Vec<Evidence>) -> Self {
        self.evidence = evidence;
        self
    }
}

/// Marks an error as one of usage or configuration (exit code 2): `.context(Misconfigured)`.
#[derive(Debug, thiserror::Error)]
#[error("configuration")]
pub struct Misconfigured;

/// Marks an error as a refusal (exit code 3).
#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub struct Refused;

/// Marks an error as "done but not verified, or data found wrong" (exit code 4).
#[derive(Debug, thiserror::Error)]
#[error("not verified")]
pub struct Unverified;

impl From<anyhow::Error> for Report {
    /// The one place where an error becomes a conclusion. The marks above choose it; without one a retry may help.
    fn from(error: anyhow::Error) -> Self {
        let conclusion = if error.downcast_ref::<Misconfigured>().is_some() {
            Conclusion::Misconfigured
        } else if error.downcast_ref::<Refused>().is_some() {
            Conclusion::Refused
        } else if error.downcast_ref::<Unverified>().is_some() {
            Conclusion::Unverified
        } else {
            Conclusion::Failed
        };
        let marks = [Misconfigured.to_string(), Refused.to_string(), Unverified.to_string()];
        let texts: Vec<String> = error.chain().map(ToString::to_string).filter(|text| !marks.contains(text)).collect();
        // A cause that its parent already quotes would only be said twice.
        let mut reason = String::new();
        for text in texts {
            if !reason.contains(&text) {
                reason = if reason.is_empty() { text } else { format!("{reason}: {text}") };
            }
        }
        Self::new(conclusion, reason)
    }
}

/// The whole outcome as it is printed (contracts: "Outcome").
#[derive(Debug, Serialize)]
pub struct Outcome {
    version: u8,
    command: String,
    #[serde(rename = "outcome")]
    conclusion: Conclusion,
    exit_code: u8,
    reason: String,
    started: Timestamp,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<Evidence>,
    #[serde(flatten)]
    details: Map<String, Value>,
    #[serde(skip)]
    table: Option<String>,
}

impl Outcome {
    /// Adds when and by which command to a report.
    #[must_use]
    pub fn new(command: &str, started: Timestamp, took: Duration, report: &Report) -> Self {
        Self {
            version: 1,
            command: command.to_owned(),
            conclusion: report.conclusion,
            exit_code: report.conclusion.exit_code(),
            reason: report.reason.clone(),
            started,
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            evidence: report.evidence.clone(),
            details: report.details.clone(),
            table: report.table.clone(),
        }
    }

    /// Prints to stdout: a table on a terminal, one line of JSON elsewhere. What was done stays done where nobody can read of it.
    pub fn print(&self) {
        let mut out = std::io::stdout().lock();
        let text = if out.is_terminal() { self.table() } else { format!("{}\n", self.json()) };
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            warn!("print the outcome: {error}");
        }
    }

    /// Writes what fits to the termination log, if the container has one. Never creates the file: outside a pod it is absent.
    pub fn write_termination_log(&self, path: &Path) {
        if !path.exists() {
            return;
        }
        if let Err(error) = std::fs::write(path, self.cut(TERMINATION_LOG_LIMIT)) {
            warn!("write termination log {}: {error}", path.display());
        }
    }

    /// The process exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_code)
    }

    fn json(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|error| format!("{{\"version\":1,\"outcome\":\"failed\",\"reason\":\"{error}\"}}"))
    }

    fn table(&self) -> String {
        let mut text = format!("{}: {}: {}\n", self.command, self.conclusion, self.reason);
        if let Some(table) = &self.table {
            text.push_str(table);
            return text;
        }
        let width = self.evidence.iter().map(|e| e.guard.len()).max().unwrap_or(0);
        let evidence = self.evidence.iter().map(|Evidence { guard, passed, found, required }| {
            let mark = if *passed { "ok  " } else { "STOP" };
            let needs = if *passed { String::new() } else { format!(" (needs: {required})") };
            format!("  {mark} {guard:width$}  {found}{needs}\n")
        });
        let details = self.details.iter().map(|(key, value)| match value {
            Value::String(plain) => format!("  {key}: {plain}\n"),
            other => format!("  {key}: {other}\n"),
        });
        text.extend(evidence.chain(details));
        text
    }

    /// Valid JSON of at most `limit` bytes: first the passed evidence goes, then the details, then all evidence, then the
    /// reason's end.
    fn cut(&self, limit: usize) -> String {
        let mut shorter = Self {
            reason: self.reason.clone(),
            command: self.command.clone(),
            evidence: self.evidence.clone(),
            details: self.details.clone(),
            table: None,
            ..*self
        };
        for step in 0.. {
            let text = shorter.json();
            if text.len() <= limit {
                return text;
            }
            match step {
                0 => shorter.evidence.retain(|e| !e.passed),
                1 => shorter.details.clear(),
                2 => shorter.evidence.clear(),
                _ => {
                    let keep = shorter.reason.len() / 2;
                    let keep = (0..=keep).rev().find(|&at| shorter.reason.is_char_boundary(at)).unwrap_or(0);
                    shorter.reason.truncate(keep);
                }
            }
        }
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    fn outcome(reason: &str, evidence: Vec<Evidence>) -> Outcome {
        let report = Report::new(Conclusion::Refused, reason).with_evidence(evidence).with("port", 36760);
        Outcome::new("promote", Timestamp::UNIX_EPOCH, Duration::from_millis(12), &report)
    }

    #[test]
    fn outcome_has_the_contracts_fields() {
        let text = outcome("why", vec![Evidence::new("lag", false, "32MiB", "at most 16MiB")]).json();
        assert_eq!(
            text,
            r#"{"version":1,"command":"promote","outcome":"refused","exit_code":3,"reason":"why","started":"1970-01-01T00:00:00Z","duration_ms":12,"evidence":[{"guard":"lag","passed":false,"found":"32MiB","required":"at most 16MiB"}],"port":36760}"#
        );
    }

    #[test]
    fn outcome_cut_stays_json_within_the_limit_and_keeps_what_stopped() {
        let mut evidence = vec![Evidence::new("lag", true, "x".repeat(5000), "")];
        evidence.push(Evidence::new("hold", false, "held", "no hold"));
        let text = outcome("why", evidence).cut(4096);
        assert!(text.len() <= 4096);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["evidence"][0]["guard"], "hold");
        let text = outcome(&"ä".repeat(9000), vec![]).cut(4096);
        assert!(text.len() <= 4096);
        assert!(serde_json::from_str::<Value>(&text).is_ok());
    }

    #[test]
    fn error_marks_choose_the_exit_code_and_stay_out_of_the_reason() {
        let cases = [
            (anyhow!("boom").context("get service x"), 1, "get service x: boom"),
            (anyhow!("boom").context(Misconfigured), 2, "boom"),
            (anyhow!("boom").context(Refused).context("outer"), 3, "outer: boom"),
            (Err::<(), _>(anyhow!("boom")).context(Unverified).unwrap_err(), 4, "boom"),
        ];
        for (error, code, reason) in cases {
            let report = Report::from(error);
            assert_eq!(report.conclusion.exit_code(), code);
            assert_eq!(report.reason, reason);
        }
    }
}
