//! What a probe of the peer says: the verdict and the facts (contracts: `probe.json`).

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::{Lsn, SystemId, Timeline};

/// What was met at the peer's address. Only [`Verdict::Unreachable`] ever counts towards promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// A session was opened.
    Healthy,
    /// SQLSTATE 57P03: the server starts, stops or recovers.
    Starting,
    /// Refused, timed out, no route, reset, or silent before the first answer.
    Unreachable,
    /// A server answered and said no: authentication, too many connections, no such database. It is alive.
    Rejected,
    /// Our own configuration is wrong: no port, a name that doesn't exist, TLS that doesn't fit.
    Misconfigured,
    /// Anything else, such as a temporary DNS failure.
    Unknown,
}

impl Verdict {
    /// Whether a living server stands behind this verdict.
    #[must_use]
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Healthy | Self::Starting | Self::Rejected)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Starting => "starting",
            Self::Unreachable => "unreachable",
            Self::Rejected => "rejected",
            Self::Misconfigured => "misconfigured",
            Self::Unknown => "unknown",
        })
    }
}

/// Which way the peer was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// By the PostgreSQL protocol.
    #[default]
    Postgresql,
    /// Through the peer's own API server.
    Api,
}

impl Path {
    /// Whether it is the way that a record need not name.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        *self == Self::Postgresql
    }
}

/// One try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub at: Timestamp,
    /// What it met.
    pub verdict: Verdict,
    /// Why, unless healthy.
    pub error: Option<String>,
    /// Whether PostgreSQL's protocol brought a byte back: somebody lives there, whatever the verdict. Left out where it did not, and by older
    /// releases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
}

/// Who the peer is and how far it has come; each absent where the session could not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerFacts {
    /// The database system identifier that `initdb` made.
    pub system_id: Option<SystemId>,
    /// The timeline that it writes or replays.
    pub timeline: Option<Timeline>,
    /// Its write position, or in recovery the furthest position received or replayed.
    pub lsn: Option<Lsn>,
    /// Whether it is in recovery, as a standby.
    pub in_recovery: Option<bool>,
}

/// The whole of `probe.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFacts {
    /// The schema's version, 1.
    pub version: u8,
    /// When the last attempt ended.
    pub taken: Timestamp,
    /// Which way the peer was asked.
    pub path: Path,
    /// The host that was asked.
    pub host: String,
    /// The port that was asked; none if none was known.
    pub port: Option<u16>,
    /// The verdict of the whole run: see [`conclude`].
    pub verdict: Verdict,
    /// One sentence.
    pub reason: String,
    /// Every try, in order.
    pub attempts: Vec<Attempt>,
    /// What the last session told.
    #[serde(flatten)]
    pub peer: PeerFacts,
}

#[cfg(test)]
impl ProbeFacts {
    /// The same, where a byte came back.
    pub(crate) fn answered(mut self) -> Self {
        self.attempts.iter_mut().for_each(|attempt| attempt.answered = true);
        self
    }

    /// Facts of one attempt with this verdict, for tests.
    pub(crate) fn of_verdict(verdict: Verdict) -> Self {
        let at = Timestamp::UNIX_EPOCH;
        Self {
            version: 1,
            taken: at,
            path: Path::Postgresql,
            host: "peer".into(),
            port: Some(5432),
            verdict,
            reason: verdict.to_string(),
            attempts: vec![Attempt { at, verdict, error: None, answered: verdict.is_alive() }],
            peer: PeerFacts::default(),
        }
    }
}

impl ProbeFacts {
    /// Whether somebody lives at the peer's address, which the verdict may leave open: `misconfigured` and `unknown` have servers that
    /// answered, and others.
    #[must_use]
    pub fn was_answered(&self) -> bool {
        self.verdict.is_alive() || self.attempts.iter().any(|attempt| attempt.answered)
    }
}

/// The verdict of several attempts: a single answer of a living server outweighs every failure; the peer is unreachable only
/// if every attempt says so; mixtures with `misconfigured` or `unknown` say nothing certain.
#[must_use]
pub fn conclude(attempts: &[Attempt]) -> Verdict {
    let alive = attempts.iter().rev().map(|attempt| attempt.verdict).find(|verdict| verdict.is_alive());
    match (alive, attempts.split_first()) {
        (Some(verdict), _) => verdict,
        (None, Some((first, rest))) if rest.iter().all(|attempt| attempt.verdict == first.verdict) => first.verdict,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(verdicts: &[Verdict]) -> Verdict {
        let at = Timestamp::UNIX_EPOCH;
        let of_verdict = |&verdict| Attempt { at, verdict, error: None, answered: false };
        let attempts: Vec<Attempt> = verdicts.iter().map(of_verdict).collect();
        conclude(&attempts)
    }

    #[test]
    fn one_answer_of_a_living_server_outweighs_failures() {
        use Verdict::{Healthy, Misconfigured, Rejected, Starting, Unknown, Unreachable};
        assert_eq!(of(&[Unreachable, Unreachable, Unreachable]), Unreachable);
        assert_eq!(of(&[Unreachable, Healthy, Unreachable]), Healthy);
        assert_eq!(of(&[Unreachable, Starting]), Starting);
        assert_eq!(of(&[Rejected, Unreachable]), Rejected);
        assert_eq!(of(&[Unreachable, Unknown]), Unknown);
        assert_eq!(of(&[Misconfigured]), Misconfigured);
        assert_eq!(of(&[]), Unknown);
    }

    #[test]
    fn facts_are_written_as_in_the_contract() {
        let mut facts = ProbeFacts::of_verdict(Verdict::Healthy);
        facts.peer = PeerFacts {
            system_id: Some(SystemId(7_000_000_000_000_000_001)),
            timeline: Some(Timeline(3)),
            lsn: Some("0/3000060".parse().unwrap()),
            in_recovery: Some(false),
        };
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"taken":"1970-01-01T00:00:00Z","path":"postgresql","host":"peer","port":5432,"verdict":"healthy","reason":"healthy","attempts":[{"at":"1970-01-01T00:00:00Z","verdict":"healthy","error":null,"answered":true}],"system_id":"7000000000000000001","timeline":3,"lsn":"0/3000060","in_recovery":false}"#
        );
        assert_eq!(serde_json::from_str::<ProbeFacts>(&text).unwrap(), facts);
        let silent = serde_json::to_string(&ProbeFacts::of_verdict(Verdict::Unreachable)).unwrap();
        assert!(!silent.contains("answered"), "{silent}");
        // As an older release wrote it: a witness may be one.
        let old: ProbeFacts = serde_json::from_str(&text.replace(r#","answered":true"#, "")).unwrap();
        assert!(!old.attempts[0].answered && old.was_answered());
    }
}
