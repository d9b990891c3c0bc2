//! `dump`: databases into sets that are whole or not there (contracts: "Backup sets").
//!
//! pg_dump reads under a snapshot whose tables are known, its output is checked, compressed on all cores, digested and written in one pass.
//! A set counts when its manifest lies beside it, and older ones are pruned only after that.

mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow, bail, ensure};
use jiff::{Timestamp, Unit};
use tracing::info;

use crate::{
    backup::{
        Compression, Digested, Digesting, Folder, Keep, Lock, Manifest, ServerFacts, SetName, Subject, TableRows,
        Tidied, Tier, locked, tidy,
    },
    child::Running,
    cli::{Session, misconfigured},
    flags::human_bytes,
    kill_point::kill_point,
    outcome::{Conclusion, Report},
    postgres::{self, CONNECT, Server, ServerOptions, ServerVersion, Snapshot, Table, Tool, open},
    probe::PeerFacts,
};
use stream::{Progress, Streamed};

/// Between two lines of progress in the log.
const TELL: Duration = Duration::from_secs(30);

/// Dump databases into sets with a manifest, and keep so many of each tier
#[derive(Debug, clap::Args)]
pub struct Dump {
    /// Folder of the sets, on a mounted volume: it must exist
    #[arg(long, env = "LIFEBOAT_TARGET", value_name = "DIR")]
    target: PathBuf,

    #[command(flatten)]
    server: ServerOptions,

    /// Database to dump; may be given several times
    #[arg(
        long,
        env = "LIFEBOAT_DATABASE",
        value_name = "NAME",
        value_delimiter = ',',
        required_unless_present = "all_databases"
    )]
    database: Vec<String>,

    /// Every database that takes connections, but for templates
    #[arg(long, env = "LIFEBOAT_ALL_DATABASES", conflicts_with = "database")]
    all_databases: bool,

    /// Compression: none, gzip or zstd, with a level if wanted, as in zstd:1
    #[arg(long, env = "LIFEBOAT_COMPRESS", value_name = "CODEC[:LEVEL]", default_value = "gzip")]
    compress: Compression,

    /// Threads that compress; as many as the machine has cores unless said
    #[arg(long, env = "LIFEBOAT_JOBS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,

    /// Tier, and so the folder, into which the set is written
    #[arg(long, env = "LIFEBOAT_TIER", value_enum, default_value = "hourly")]
    tier: Tier,

    /// How many sets of each tier stay, as in hourly=24,daily=7,weekly=4,monthly=12; a tier that is not named is left alone
    #[arg(long, env = "LIFEBOAT_KEEP", value_name = "TIER=N,…")]
    keep: Option<Keep>,

    /// Read the set again after it was written, and compare its digest
    #[arg(long, env = "LIFEBOAT_READ_BACK")]
    read_back: bool,

    /// Folder with PostgreSQL's programs; without it they are looked for on PATH
    #[arg(long, env = "LIFEBOAT_PG_BINDIR", value_name = "DIR")]
    pg_bindir: Option<PathBuf>,
}

/// What was found before anything is written.
struct Observed {
    tool: Tool,
    version: ServerVersion,
    identity: PeerFacts,
    databases: Vec<String>,
}

impl Dump {
    /// Dumps each database; one that fails does not keep the others from being dumped.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let folder = misconfigured(Folder::open(&self.target))?;
        let observed = self.observe().await?;
        if session.dry_run {
            return Ok(Report::nothing_to_do(format!("would dump {}", observed.databases.join(", ")))
                .with("databases", &observed.databases));
        }
        let lock = match folder.lock()? {
            Ok(lock) => lock,
            Err(by) => return Ok(locked(&folder, by)),
        };
        let (mut made, mut failed) = (Vec::new(), Vec::new());
        for database in &observed.databases {
            match self.dump(database, &observed, &folder, &lock).await {
                Ok(manifest) => made.push(manifest),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!("database {database}: {error}");
                    failed.push((database.as_str(), error));
                }
            }
        }
        let subjects: BTreeSet<&Subject> = made.iter().map(|manifest| &manifest.subject).collect();
        let tidied = match &self.keep {
            Some(keep) if !made.is_empty() => {
                let made = made.iter().map(|manifest| manifest.set.clone()).collect();
                tidy(&folder, keep, &subjects, &made, Some(&lock))
            }
            _ => Ok(Tidied::default()),
        };
        Ok(report(&made, &failed, tidied))
    }

    async fn observe(&self) -> anyhow::Result<Observed> {
        let tool = misconfigured(Tool::find("pg_dump", self.pg_bindir.as_deref()))?;
        let session = open(&self.server.server(None)?).await?;
        let version = postgres::server_version(&session.client).await?;
        if tool.major < version.major {
            return misconfigured(Err(anyhow!(
                "the server is PostgreSQL {}, and {} cannot dump a newer one: use an image with PostgreSQL {}",
                version.text,
                tool.version,
                version.major
            )));
        }
        let identity = postgres::identity(&session.client).await?;
        let there = postgres::databases(&session.client).await?;
        let databases = if self.all_databases { there.clone() } else { self.database.clone() };
        if let Some(missing) = databases.iter().find(|database| !there.contains(database)) {
            return misconfigured(Err(anyhow!("there is no database {missing:?}; there are {}", there.join(", "))));
        }
        if databases.is_empty() {
            return misconfigured(Err(anyhow!(
                "this server has no database to dump: all are templates or take no connections"
            )));
        }
        Ok(Observed { tool, version, identity, databases })
    }

    /// One database into one set.
    async fn dump(
        &self,
        database: &str,
        observed: &Observed,
        folder: &Folder,
        lock: &Lock,
    ) -> anyhow::Result<Manifest> {
        let server = self.server.server(Some(database))?;
        let snapshot = Snapshot::take(open(&server).await?).await?;
        let (facts, wanted) = (snapshot.database(database, observed.version.major).await?, snapshot.tables().await?);
        let started = Timestamp::now();
        let name = SetName {
            taken: started.round(jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc))?,
            subject: Subject::Database(database.to_owned()),
            form: format!("sql{}", self.compress.suffix()),
        };
        let unfinished = folder.begin(self.tier, &name, lock)?;
        // After what killed runs left is gone: it may be what fills the volume.
        let free = folder.free()?;
        if let Some(last) = last_size(folder, &name.subject)?.filter(|&last| last > free) {
            bail!(
                "{} are free, and the last set of this database has {}: make room first",
                human_bytes(free),
                human_bytes(last)
            );
        }
        let streamed = self.stream(&server, &snapshot, &facts.encoding, observed, unfinished.create()?).await?;
        kill_point("dump-written");
        let tables = counted(&streamed.tables, &wanted)?;
        if self.read_back {
            read_back(unfinished.reopen()?, &streamed.digested).await?;
        }
        let manifest = Manifest {
            version: 1,
            set: name.to_string(),
            subject: name.subject.clone(),
            database: facts,
            compression: self.compress,
            lifeboat: env!("CARGO_PKG_VERSION").to_owned(),
            tool: observed.tool.version.clone(),
            server: ServerFacts {
                version: observed.version.text.clone(),
                system_id: observed.identity.system_id,
                timeline: observed.identity.timeline,
                in_recovery: observed.identity.in_recovery.unwrap_or_default(),
                lsn: snapshot.lsn,
            },
            started,
            ended: Timestamp::now(),
            bytes: streamed.digested.bytes,
            uncompressed: streamed.uncompressed,
            sha256: streamed.digested.sha256.clone(),
            tables,
        };
        folder.commit(self.tier, &name, &unfinished, &streamed.digested, &manifest, lock)?;
        // What is there now, not what we think that we wrote.
        let found = folder.find()?.into_iter().find(|found| found.name == name && found.is_in(self.tier));
        ensure!(
            found.is_some_and(|found| found.condition.manifest() == Some(&manifest)),
            "{name} is not as it was written"
        );
        info!("{name}: {} rows in {} tables, {}", manifest.rows(), manifest.tables.len(), human_bytes(manifest.bytes));
        Ok(manifest)
    }

    async fn stream(
        &self,
        server: &Server,
        snapshot: &Snapshot,
        encoding: &str,
        observed: &Observed,
        file: std::fs::File,
    ) -> anyhow::Result<Streamed> {
        let mut command = observed.tool.on(server, observed.version.major, CONNECT);
        command.args(["--no-password", "--format=plain", "--snapshot", &snapshot.id]);
        // Names are read here too. Where the server knows no encoding, bytes are what they are.
        if encoding != "SQL_ASCII" {
            command.arg("--encoding=UTF8");
        }
        let jobs = self.jobs.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
        let progress = Arc::new(Progress::default());
        let (_running, tool) = Running::start(command.stdout(Stdio::piped()))?;
        let (compression, shared) = (self.compress, Arc::clone(&progress));
        let mut streaming = tokio::task::spawn_blocking(move || stream::stream(tool, file, compression, jobs, &shared));
        let mut tell = tokio::time::interval_at(tokio::time::Instant::now() + TELL, TELL);
        loop {
            tokio::select! {
                streamed = &mut streaming => return streamed?,
                _ = tell.tick() => {
                    let (bytes, tables) = (progress.bytes.load(Ordering::Relaxed), progress.tables.load(Ordering::Relaxed));
                    info!("{}: {} MB so far, at table {tables}", server.credentials.dbname, bytes / 1_000_000);
                }
            }
        }
    }
}

/// The rows of the tables that the snapshot has, each of which must have its data in the dump. What an extension brings is not among them: its
/// tables are filled by `CREATE EXTENSION`, and a dump has only some of their rows.
fn counted(dumped: &[TableRows], wanted: &[Table]) -> anyhow::Result<Vec<TableRows>> {
    let mut rows: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for table in dumped {
        // The parts of a partitioned table may come one after the other under its name.
        *rows.entry((&table.schema, &table.table)).or_default() += table.rows;
    }
    let mut counted = BTreeMap::new();
    let mut missing = Vec::new();
    for table in wanted {
        let names = std::iter::once(&table.name).chain(&table.root);
        let found = names.into_iter().find_map(|(schema, name)| rows.get_key_value(&(schema.as_str(), name.as_str())));
        match found {
            Some((name, rows)) => {
                counted.insert(*name, *rows);
            }
            None => missing.push(format!("{}.{}", table.name.0, table.name.1)),
        }
    }
    ensure!(missing.is_empty(), "the dump has no data of {}", missing.join(", "));
    let table =
        |((schema, table), rows): ((&str, &str), u64)| TableRows { schema: schema.into(), table: table.into(), rows };
    Ok(counted.into_iter().map(table).collect())
}

async fn read_back(mut file: std::fs::File, written: &Digested) -> anyhow::Result<()> {
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<Digested> {
        let mut digesting = Digesting::new(std::io::sink());
        std::io::copy(&mut file.by_ref(), &mut digesting)?;
        Ok(digesting.finish().1)
    });
    let read = read.await?.context("read the set back")?;
    ensure!(read == *written, "what was read back is not what was written: {read:?} in place of {written:?}");
    Ok(())
}

/// The size of the newest good set of this subject.
fn last_size(folder: &Folder, subject: &Subject) -> anyhow::Result<Option<u64>> {
    let found = folder.find()?;
    Ok(found
        .iter()
        .find(|found| found.name.subject == *subject && found.condition.manifest().is_some())
        .map(|found| found.bytes))
}

fn report(made: &[Manifest], failed: &[(&str, String)], tidied: anyhow::Result<Tidied>) -> Report {
    let all = made.len() + failed.len();
    let (linked, pruned, trouble) = match tidied {
        Ok(tidied) => (tidied.linked, tidied.pruned, None),
        Err(error) => (Vec::new(), Vec::new(), Some(format!("{error:#}"))),
    };
    let report = if failed.is_empty() {
        let rows: u64 = made.iter().map(Manifest::rows).sum();
        let bytes: u64 = made.iter().map(|manifest| manifest.bytes).sum();
        let what = match made {
            [one] => one.subject.to_string(),
            _ => format!("{all} databases"),
        };
        let sentence = format!("{what} dumped: {rows} rows, {}", human_bytes(bytes));
        match trouble {
            // The dump is good; but a target that is never tidied is full one day.
            Some(trouble) => {
                Report::new(Conclusion::Failed, format!("{sentence}, but older sets were not tidied: {trouble}"))
            }
            None => Report::done(sentence),
        }
    } else {
        let each: Vec<String> = failed.iter().map(|(database, error)| format!("{database}: {error}")).collect();
        Report::new(Conclusion::Failed, format!("{} of {all} databases not dumped: {}", failed.len(), each.join("; ")))
    };
    let sets: Vec<_> = made
        .iter()
        .map(|manifest| {
            serde_json::json!({
                "set": manifest.set, "bytes": manifest.bytes, "rows": manifest.rows(), "tables": manifest.tables.len(),
                "took_ms": u64::try_from(manifest.ended.duration_since(manifest.started).as_millis()).unwrap_or(0),
            })
        })
        .collect();
    let mut report = report.with("sets", sets).with("linked", linked).with("pruned", pruned);
    if report.conclusion == Conclusion::Failed {
        tracing::error!("{}", report.reason);
        report.alerts.push(
            crate::alerts::Alert::warning("DumpFailed", report.reason.clone())
                .about(crate::kubernetes::EventTarget::own_pod()),
        );
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (String, String) {
        ("public".into(), name.into())
    }

    fn dumped(name: &str, rows: u64) -> TableRows {
        TableRows { schema: "public".into(), table: name.into(), rows }
    }

    #[test]
    fn rows_of_parts_under_their_roots_name_are_one_tables_and_an_extensions_are_nobodys() {
        let wanted = [
            Table { name: pair("part_1"), root: Some(pair("part")) },
            Table { name: pair("part_2"), root: Some(pair("part")) },
            Table { name: pair("plain"), root: None },
        ];
        let all = [dumped("part", 2), dumped("plain", 5), dumped("part", 3), dumped("spatial_ref_sys", 0)];
        assert_eq!(counted(&all, &wanted).unwrap(), [dumped("part", 5), dumped("plain", 5)]);
        let error = counted(&all[1..2], &wanted).unwrap_err().to_string();
        assert_eq!(error, "the dump has no data of public.part_1, public.part_2");
    }
}
