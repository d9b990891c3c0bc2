//! How a database came to its timeline: two branches may reach one number, and are told apart by where they branched off.

use std::{path::Path, process::Command, str::FromStr, time::Duration};

use anyhow::{Context, bail};

use super::{Lsn, Server, Timeline, tools::connected};

/// The end of a timeline: where the next one branched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// Where.
    pub at: Lsn,
}

/// Every switch before a timeline, oldest first (PostgreSQL: `timeline.c`, a timeline history file).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(pub Vec<Switch>);

impl History {
    /// What the data directory has of this timeline; none where it has no such file. Timeline 1 has none, and nothing before it.
    pub fn find(data_dir: &Path, timeline: Timeline) -> anyhow::Result<Option<Self>> {
        if timeline == Timeline(1) {
            return Ok(Some(Self::default()));
        }
        let path = data_dir.join(format!("pg_wal/{:08X}.history", timeline.0));
        match std::fs::read_to_string(&path) {
            Ok(text) => text.parse().map(Some).with_context(|| format!("read {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Asks a server for the history of its timeline. Only a replication connection tells, which our own client does not make: `psql`
    /// does it, which is where a data directory is.
    pub async fn ask(server: &Server, timeline: Timeline, limit: Duration) -> anyhow::Result<Self> {
        let mut command = psql(server, limit);
        command.args(["-c", &format!("TIMELINE_HISTORY {}", timeline.0)]);
        let asked = tokio::task::spawn_blocking(move || command.output());
        let output = tokio::time::timeout(limit, asked).await.context("psql does not end")??.context("start psql")?;
        let told = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        // The file's name, then its text.
        told.split_once('\t').context("psql told no history")?.1.parse()
    }

    /// Whether a server with this history may once have been what a server on `timeline` with the history `ours` is. Two branches that left at the
    /// very same position have equal histories: these are not told apart.
    #[must_use]
    pub fn descends_from(&self, timeline: Timeline, ours: &Self) -> bool {
        self.0.starts_with(&ours.0) && self.0.get(ours.0.len()).is_some_and(|switch| switch.timeline == timeline)
    }
}

impl FromStr for History {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let switches = lines.map(|line| {
            let mut words = line.split_whitespace();
            let (timeline, at) = words.next().zip(words.next()).with_context(|| format!("{line:?} is no switch"))?;
            Ok(Switch { timeline: Timeline(timeline.parse()?), at: at.parse()? })
        });
        switches.collect::<anyhow::Result<_>>().map(Self)
    }
}

/// A replication connection as our own client would make it.
fn psql(server: &Server, limit: Duration) -> Command {
    let mut command = connected("psql", server, limit);
    command
        .args(["--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--field-separator=\t"])
        .args(["--dbname", "replication=true"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(text: &str) -> History {
        text.parse().unwrap()
    }

    #[test]
    fn history_file_is_read_as_postgresql_writes_it() {
        let text = "1\t0/5000000\tno recovery target specified\n\n2\t1/A0000F8\tbefore 2026-01-01 00:00:00+00\n";
        let switch = |timeline, at: &str| Switch { timeline: Timeline(timeline), at: at.parse().unwrap() };
        assert_eq!(history(text).0, [switch(1, "0/5000000"), switch(2, "1/A0000F8")]);
        assert_eq!(history("").0, []);
        assert!("x".parse::<History>().is_err() && "1\t7".parse::<History>().is_err());
    }

    #[test]
    fn later_self_has_our_history_and_then_our_timeline() {
        let (first, ours) = (History::default(), history("1 0/5"));
        assert!(history("1 0/5").descends_from(Timeline(1), &first));
        assert!(history("1 0/5\n2 0/9").descends_from(Timeline(2), &ours));
        assert!(history("1 0/5\n2 0/9\n3 0/A").descends_from(Timeline(2), &ours));
        assert!(!history("1 0/6\n2 0/9").descends_from(Timeline(2), &ours), "another branch that reached the number");
        assert!(!history("1 0/5\n3 0/9").descends_from(Timeline(2), &ours), "it left before us");
        assert!(!ours.descends_from(Timeline(2), &ours), "it is what we are");
    }
}
