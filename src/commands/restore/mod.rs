//! `restore`: a chosen set into a server, all of it or nothing.
//!
//! The set's digest is checked before the server is touched. psql fills a database aside and stops at the first error, the rows are counted
//! against the manifest, and only then it gets the wanted name, in one transaction with the one that it replaces.

mod aside;
mod feed;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use tokio_postgres::error::SqlState;
use tracing::info;

use crate::{
    backup::{Condition, Digesting, End, Folder, Found, Subject, TableRows, Wanted, choose},
    cli::{Session, misconfigured},
    flags::{self, human_bytes},
    kill_point::kill_point,
    outcome::{Conclusion, Evidence, Report, Unverified},
    postgres::{self, CONNECT, Connected, DatabaseFacts, ServerOptions, Tool, literal, open, rows, simple_row},
};
use aside::Aside;

/// Restore a set into a server: aside first, under its name only when it is whole
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Restore {
    /// Folder of the sets
    #[arg(long, env = "LIFEBOAT_TARGET", value_name = "DIR")]
    target: PathBuf,

    /// Which set: LATEST, a part of its time such as 2026-11-20T02, its name, or NONE to do nothing
    #[arg(long, env = "LIFEBOAT_SET", value_name = "SET", default_value = "LATEST")]
    set: Wanted,

    /// Refuse a set that is older, as in 25h
    #[arg(long, env = "LIFEBOAT_MAX_AGE", value_name = "DURATION", value_parser = flags::positive_duration)]
    max_age: Option<Duration>,

    /// The database whose set is restored
    #[arg(long, env = "LIFEBOAT_DATABASE", value_name = "NAME")]
    database: String,

    /// Name of the restored database (default: as it was)
    #[arg(long, env = "LIFEBOAT_INTO", value_name = "NAME")]
    into: Option<String>,

    /// Create the database if it does not exist
    #[arg(long, env = "LIFEBOAT_CREATE")]
    create: bool,

    /// Replace the database if it exists
    #[arg(long, env = "LIFEBOAT_CLEAN")]
    clean: bool,

    /// End the sessions of whoever uses the database that is replaced
    #[arg(long, env = "LIFEBOAT_DISCONNECT")]
    disconnect: bool,

    /// Take a set that has no manifest, which another tool made
    #[arg(long, env = "LIFEBOAT_ALLOW_FOREIGN")]
    allow_foreign: bool,

    #[command(flatten)]
    server: ServerOptions,

    /// Folder with PostgreSQL's programs; without it they are looked for on PATH
    #[arg(long, env = "LIFEBOAT_PG_BINDIR", value_name = "DIR")]
    pg_bindir: Option<PathBuf>,
}

/// Where to.
struct Place {
    psql: Tool,
    /// A session on another database than the one that is restored.
    maintenance: Connected,
    major: u32,
    into: String,
    there: Option<There>,
}

impl Place {
    /// One restore of a database at a time, until our session ends.
    async fn lock(&self) -> anyhow::Result<bool> {
        let into = literal(&self.into);
        let sql = format!("SELECT pg_try_advisory_lock(hashtext('lifeboat restore'), hashtext({into}))");
        Ok(simple_row(&self.maintenance.client, &sql).await?.get(0) == Some("t"))
    }
}

/// The database that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
struct There {
    sessions: Vec<String>,
    facts: DatabaseFacts,
}

impl Restore {
    /// Chooses, checks, restores aside, counts, and gives it its name.
    pub async fn run(self, session: &Session) -> anyhow::Result<Report> {
        let folder = misconfigured(Folder::open(&self.target))?;
        let found = folder.find()?;
        let subject = Subject::Database(self.database.clone());
        let set = match choose(&found, &self.set, &subject, self.max_age, Timestamp::now()) {
            Ok(Some(set)) => set,
            Ok(None) => return Ok(Report::nothing_to_do("no set is asked for")),
            Err(why) => return Ok(Report::new(Conclusion::Refused, why)),
        };
        let place = self.observe().await?;
        let evidence = self.decide(set, &place);
        if let Some(stop) = evidence.iter().find(|evidence| !evidence.passed) {
            let reason = format!("{} is not restored: {}; needs {}", set.name, stop.found, stop.required);
            return Ok(Report::new(Conclusion::Refused, reason).with_evidence(evidence));
        }
        let into = &place.into;
        if session.dry_run {
            return Ok(Report::nothing_to_do(format!("would restore {} into {into}", set.name)).with_evidence(evidence));
        }
        if let Some(refused) = check(&folder, set).await? {
            return Ok(refused);
        }
        if !place.lock().await? {
            return Ok(Report::new(Conclusion::Locked, format!("another run restores database {into}")));
        }
        let rows = self.restore(&folder, set, &place).await?;
        let report = Report::done(format!("{} restored into database {into}: {rows} rows", set.name));
        Ok(report.with_evidence(evidence).with("set", set.name.to_string()).with("database", into).with("rows", rows))
    }

    async fn observe(&self) -> anyhow::Result<Place> {
        let psql = misconfigured(Tool::find("psql", self.pg_bindir.as_deref()))?;
        let into = self.into.clone().unwrap_or_else(|| self.database.clone());
        let server = self.server.server(None)?;
        if server.credentials.dbname == into {
            return misconfigured(Err(anyhow!(
                "a session on database {into} would keep it from being replaced: name another one with --dbname"
            )));
        }
        let maintenance = open(&server).await?;
        let major = postgres::server_version(&maintenance.client).await?.major;
        let there = match postgres::database(&maintenance.client, &into, major).await? {
            Some(facts) => Some(There { sessions: aside::sessions(&maintenance, &into).await?, facts }),
            None => None,
        };
        Ok(Place { psql, maintenance, major, into, there })
    }

    /// What must hold before anything is touched.
    fn decide(&self, set: &Found, Place { into, there, .. }: &Place) -> Vec<Evidence> {
        let usable = match &set.condition {
            Condition::Complete(_) => true,
            Condition::Foreign => self.allow_foreign,
            Condition::Incomplete | Condition::Damaged(_) => false,
        };
        let what = match &set.condition {
            Condition::Damaged(why) => format!("the set is damaged: {why}"),
            condition => format!("the set is {}", condition.word()),
        };
        let target = match there {
            None => (self.create, format!("database {into} does not exist"), "--create"),
            Some(_) => (self.clean, format!("database {into} is there"), "--clean, to replace it"),
        };
        let sessions = there.as_ref().map(|there| there.sessions.as_slice()).unwrap_or_default();
        let users = match sessions {
            [] => "nobody uses it".to_owned(),
            sessions => format!("database {into} is used by {}", sessions.join(", ")),
        };
        vec![
            Evidence::new("set", usable, what, "a complete set, or --allow-foreign for one of another tool"),
            Evidence::new("database", target.0, target.1, target.2),
            Evidence::new(
                "sessions",
                sessions.is_empty() || self.disconnect,
                users,
                "nobody on it, or --disconnect to end their sessions",
            ),
        ]
    }

    async fn restore(&self, folder: &Folder, set: &Found, place: &Place) -> anyhow::Result<u64> {
        // What nobody wrote down of another tool's set is as it is with the database that it replaces.
        let known = set.condition.manifest().map(|manifest| &manifest.database);
        let facts = known.or(place.there.as_ref().map(|there| &there.facts));
        let aside = Aside::create(&place.maintenance, &place.into, place.major, facts).await?;
        let named = async {
            let rows = self.fill(folder, set, place, &aside).await?;
            aside.finish(facts).await?;
            kill_point("restore-filled");
            anyhow::Ok((rows, aside.publish(&place.into, place.there.is_some(), self.disconnect).await?))
        };
        match named.await {
            Ok((rows, old)) => {
                if let Some(old) = old {
                    aside.drop_old(&place.into, &old).await?;
                }
                Ok(rows)
            }
            Err(error) => {
                if let Err(left) = aside.remove().await {
                    tracing::warn!("{left:#}");
                }
                Err(error)
            }
        }
    }

    /// Fills the database aside, and compares what is in it with the manifest.
    async fn fill(&self, folder: &Folder, set: &Found, place: &Place, aside: &Aside<'_>) -> anyhow::Result<u64> {
        let server = self.server.server(Some(aside.name()))?;
        let path = folder.path(&set.folder, &set.name.to_string());
        info!("restoring {} of {} into {}", set.name, human_bytes(set.bytes), aside.name());
        let fed = feed::feed(place.psql.on(&server, place.major, CONNECT), path, &set.name.form).await?;
        if fed.end != Some(End::Database) {
            return Err(anyhow!("{} does not end as a dump does: it was cut off", set.name)).context(Unverified);
        }
        let session = open(&server).await?;
        let tables = match set.condition.manifest() {
            Some(manifest) => manifest.tables.clone(),
            None => {
                given(&fed.tables, &rows(&session.client, OF_EXTENSIONS).await.context("list the extensions' tables")?)
            }
        };
        let partitioned = rows(&session.client, PARTITIONED).await.context("list the partitioned tables")?;
        let mut wrong = Vec::new();
        let mut all = 0;
        for table in &tables {
            let name = format!("{}.{}", postgres::identifier(&table.schema), postgres::identifier(&table.table));
            // The rows of a partitioned table are its parts'; those of children are not their parents'.
            let whole =
                partitioned.iter().any(|row| row.get(0) == Some(&table.schema) && row.get(1) == Some(&table.table));
            let only = if whole { "" } else { "ONLY " };
            let row = match simple_row(&session.client, &format!("SELECT count(*) FROM {only}{name}")).await {
                Ok(row) => row,
                Err(error) if is_missing(&error) => {
                    wrong.push(format!("{name} is not there"));
                    continue;
                }
                Err(error) => return Err(error).with_context(|| format!("count the rows of {name}")),
            };
            let rows: u64 = row.get(0).unwrap_or_default().parse()?;
            all += rows;
            if rows != table.rows {
                wrong.push(format!("{name} has {rows} rows, the set {}", table.rows));
            }
        }
        if !wrong.is_empty() {
            return Err(anyhow!("not as in the set: {}", wrong.join("; "))).context(Unverified);
        }
        session.client.batch_execute("ANALYZE").await.context("gather statistics of the restored database")?;
        Ok(all)
    }
}

/// Tables that extensions bring: `CREATE EXTENSION` fills them, and a dump has only some of their rows.
const OF_EXTENSIONS: &str = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e' WHERE c.relkind IN ('r', 'p')";

/// What a foreign set holds nobody wrote down: it is what psql was given, each table once, without those of extensions.
fn given(fed: &[TableRows], of_extensions: &[tokio_postgres::SimpleQueryRow]) -> Vec<TableRows> {
    let mut tables: Vec<TableRows> = Vec::new();
    for part in fed {
        let (schema, table) = (part.schema.as_str(), part.table.as_str());
        if of_extensions.iter().any(|row| row.get(0) == Some(schema) && row.get(1) == Some(table)) {
            continue;
        }
        match tables.iter_mut().find(|known| known.schema == schema && known.table == table) {
            Some(known) => known.rows += part.rows,
            None => tables.push(part.clone()),
        }
    }
    tables
}

/// Partitioned tables.
const PARTITIONED: &str =
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'p'";

/// Whether the server says that there is no such table: it, and not the way to it, is what is wrong.
fn is_missing(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::INVALID_SCHEMA_NAME)].contains(&code)
}

/// Reads the whole set before the server is touched: ours against its digest, another tool's for its end and for what reaches beyond the
/// database that it is restored into.
async fn check(folder: &Folder, set: &Found) -> anyhow::Result<Option<Report>> {
    let path = folder.path(&set.folder, &set.name.to_string());
    let Some(manifest) = set.condition.manifest() else {
        let form = set.name.form.clone();
        let scan = tokio::task::spawn_blocking(move || feed::read(&path, &form)).await??;
        if scan.end() != Some(End::Database) {
            return Err(anyhow!(
                "{} does not end as a dump of one database does: it was cut off, or is something else",
                set.name
            ))
            .context(Unverified);
        }
        return Ok(scan.strange().map(|strange| {
            let why = format!(
                "{} reaches beyond one database ({strange:?}): restore it by psql, into a server of its own",
                set.name
            );
            Report::new(Conclusion::Refused, why)
        }));
    };
    let shown = path.display().to_string();
    let read = tokio::task::spawn_blocking(move || {
        let mut digesting = Digesting::new(std::io::sink());
        std::io::copy(&mut std::fs::File::open(path)?, &mut digesting)?;
        std::io::Result::Ok(digesting.finish().1)
    });
    let read = read.await?.with_context(|| format!("read {shown}"))?;
    if read.sha256 != manifest.sha256 {
        let why = anyhow!(
            "{shown} has the SHA-256 {}, its manifest says {}: restore another set",
            read.sha256,
            manifest.sha256
        );
        return Err(why).context(Unverified);
    }
    Ok(None)
}
