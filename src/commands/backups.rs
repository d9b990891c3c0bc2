//! `backups`: every set of a target, what is the matter with it, and which one `LATEST` is; `backups prune` keeps so many of each tier.

use std::{collections::BTreeSet, fmt::Write, path::PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    backup::{Condition, Folder, Found, Keep, Subject, locked, tidy},
    cli::{Session, misconfigured},
    flags::{human, human_bytes},
    outcome::Report,
};

/// Show the sets of a target, or prune them
#[derive(Debug, clap::Args)]
pub struct Backups {
    /// Folder of the sets
    #[arg(long, env = "LIFEBOAT_TARGET", value_name = "DIR", global = true, default_value = "/backup")]
    target: PathBuf,

    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Put sets into the tiers that they belong to, and remove what is no longer kept
    Prune {
        /// How many sets of each tier stay, as in hourly=24,daily=7,weekly=4,monthly=12; a tier that is not named is left alone
        #[arg(long, env = "LIFEBOAT_KEEP", value_name = "TIER=N,…")]
        keep: Keep,
    },
}

/// A set as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    set: String,
    folder: String,
    subject: Subject,
    taken: Timestamp,
    age_s: i64,
    bytes: u64,
    condition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    verified: bool,
    latest: bool,
    rows: Option<u64>,
}

impl Backups {
    /// Lists or prunes.
    pub fn run(self, session: &Session) -> anyhow::Result<Report> {
        let folder = misconfigured(Folder::open(&self.target))?;
        match self.action {
            None => list(&folder),
            Some(Action::Prune { keep }) => prune(&folder, &keep, session.dry_run),
        }
    }
}

fn list(folder: &Folder) -> anyhow::Result<Report> {
    let found = folder.find()?;
    let shown = shown(&found, Timestamp::now());
    let bad = found.iter().filter(|set| matches!(set.condition, Condition::Incomplete | Condition::Damaged(_))).count();
    let subjects: BTreeSet<&Subject> = found.iter().map(|set| &set.name.subject).collect();
    let mut sentence = format!("{} sets of {} subjects", found.len(), subjects.len());
    if bad > 0 {
        let _ = write!(sentence, ", {bad} of them cut off or damaged");
    }
    let table = table(&shown);
    let mut report = Report::done(sentence).with("sets", shown);
    report.table = Some(table);
    Ok(report)
}

fn prune(folder: &Folder, keep: &Keep, dry_run: bool) -> anyhow::Result<Report> {
    let lock = if dry_run {
        None
    } else {
        match folder.lock()? {
            Ok(lock) => Some(lock),
            Err(by) => return Ok(locked(folder, by)),
        }
    };
    let found = folder.find()?;
    let subjects: BTreeSet<&Subject> = found.iter().map(|set| &set.name.subject).collect();
    let tidied = tidy(folder, keep, &subjects, &BTreeSet::new(), lock.as_ref())?;
    let (linked, pruned) = (tidied.linked.len(), tidied.pruned.len());
    let report = match (dry_run, linked + pruned) {
        (_, 0) => Report::nothing_to_do("every tier has what it keeps"),
        (true, _) => Report::nothing_to_do(format!("would put {linked} sets into further tiers and remove {pruned}")),
        (false, _) => Report::done(format!("{linked} sets put into further tiers, {pruned} removed")),
    };
    Ok(report.with("linked", tidied.linked).with("pruned", tidied.pruned))
}

fn shown(found: &[Found], now: Timestamp) -> Vec<Shown> {
    let mut seen = BTreeSet::new();
    found
        .iter()
        .map(|set| {
            let complete = set.condition.manifest().is_some();
            Shown {
                set: set.name.to_string(),
                folder: set.folder.clone(),
                subject: set.name.subject.clone(),
                taken: set.name.taken,
                age_s: now.duration_since(set.name.taken).as_secs(),
                bytes: set.bytes,
                condition: set.condition.word(),
                why: why(set, now),
                verified: set.verified,
                // The newest complete one of its subject; they come newest first.
                latest: complete && !set.name.is_from_the_future(now) && seen.insert(&set.name.subject),
                rows: set.condition.manifest().map(crate::backup::Manifest::rows),
            }
        })
        .collect()
}

/// Why `LATEST` passes over it.
fn why(set: &Found, now: Timestamp) -> Option<String> {
    match &set.condition {
        Condition::Complete(_) if set.name.is_from_the_future(now) => {
            Some("it is from the future: a clock ran ahead. Rename or remove it".to_owned())
        }
        Condition::Complete(_) => None,
        Condition::Foreign => {
            Some("it has no manifest: another tool made it, and nothing tells whether it is whole".to_owned())
        }
        Condition::Incomplete => Some("its run was cut off before the manifest was written".to_owned()),
        Condition::Damaged(why) => Some(why.clone()),
    }
}

fn table(shown: &[Shown]) -> String {
    let mut text = String::new();
    for set in shown {
        let age = human(std::time::Duration::from_secs(u64::try_from(set.age_s).unwrap_or_default()));
        let marks = [(set.latest, "LATEST"), (set.verified, "verified")];
        let marks: Vec<&str> = marks.into_iter().filter_map(|(holds, mark)| holds.then_some(mark)).collect();
        let folder = if set.folder.is_empty() { "." } else { &set.folder };
        let _ = writeln!(
            text,
            "  {folder:8} {:60} {:>10}  {age:>16}  {:10} {}",
            set.set,
            human_bytes(set.bytes),
            set.condition,
            marks.join(", ")
        );
        if let Some(why) = &set.why {
            let _ = writeln!(text, "           {why}");
        }
    }
    text
}
