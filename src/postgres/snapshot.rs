//! What a server and its databases are, as a dump must know it: versions, names, and a snapshot that other sessions can use.

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::{Connected, Lsn, literal, simple_row};

/// A server's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerVersion {
    /// As the server says it.
    pub text: String,
    /// The major version, such as 17.
    pub major: u32,
}

/// What `CREATE DATABASE`, `ALTER DATABASE` and `GRANT … ON DATABASE` make: a plain dump of one database does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    /// Owner.
    pub owner: String,
    /// Encoding, such as UTF8.
    pub encoding: String,
    /// `c`, `i` or `b` (PostgreSQL: `pg_database.datlocprovider`); none before PostgreSQL 15.
    pub provider: Option<String>,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// Locale of the providers `i` and `b`.
    pub locale: Option<String>,
    /// ICU's own rules (PostgreSQL 16 and later).
    pub rules: Option<String>,
    /// Sessions at a time; -1 is no limit.
    pub connections: i64,
    /// Its comment.
    pub comment: Option<String>,
    /// Who may do what; none where nothing was granted or revoked.
    pub grants: Option<Vec<Grant>>,
    /// `ALTER DATABASE … SET`, and `ALTER ROLE … IN DATABASE … SET`.
    pub settings: Vec<Setting>,
    /// Where its files are.
    pub tablespace: String,
}

/// A privilege on a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// To whom; none is PUBLIC.
    pub role: Option<String>,
    /// Such as CONNECT.
    pub privilege: String,
    /// Whether it may be granted on.
    pub grantable: bool,
}

/// A setting of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// For this role alone; none is all.
    pub role: Option<String>,
    /// `name=value` (PostgreSQL: `pg_db_role_setting.setconfig`).
    pub setting: String,
}

/// A table whose data a dump must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Schema and name.
    pub name: (String, String),
    /// The same of the partitioned table that it is a part of, at the top: pg_dump may write its data as that one's.
    pub root: Option<(String, String)>,
}

/// A session that holds a snapshot of its database open.
#[derive(Debug)]
pub struct Snapshot {
    session: Connected,
    /// Its name, for `pg_dump --snapshot`.
    pub id: String,
    /// Position in the write-ahead log when it was taken: where a standby had come to.
    pub lsn: Option<Lsn>,
}

/// Which version the server has.
pub async fn server_version(client: &Client) -> anyhow::Result<ServerVersion> {
    let row =
        simple_row(client, "SELECT current_setting('server_version'), current_setting('server_version_num')").await?;
    let number: u32 = row.get(1).unwrap_or_default().parse().context("parse the server's version")?;
    Ok(ServerVersion { text: row.get(0).unwrap_or_default().to_owned(), major: number / 10_000 })
}

/// The databases that take connections, but for templates.
pub async fn databases(client: &Client) -> anyhow::Result<Vec<String>> {
    // Nor those that a restore is filling or has replaced.
    let sql = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate \
               AND datname !~ '[.](restoring|replaced)-[0-9a-f]{12}-[0-9]+$' ORDER BY datname";
    let rows = rows(client, sql).await.context("list the databases")?;
    Ok(rows.iter().filter_map(|row| row.get(0)).map(ToOwned::to_owned).collect())
}

impl Snapshot {
    /// Takes one, in a transaction that only reads; a standby can as well.
    pub async fn take(session: Connected) -> anyhow::Result<Self> {
        let take = async {
            // It lies idle until pg_dump has taken it over.
            session
                .client
                .batch_execute("SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
                .await?;
            session.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
            let sql = "SELECT pg_export_snapshot(), \
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";
            simple_row(&session.client, sql).await
        };
        let row = take.await.context("take a snapshot")?;
        let id = row.get(0).ok_or_else(|| anyhow!("the server exported no snapshot"))?.to_owned();
        let lsn = row.get(1).map(str::parse).transpose()?;
        Ok(Self { session, id, lsn })
    }

    /// What its database of this name is.
    pub async fn database(&self, name: &str, major: u32) -> anyhow::Result<DatabaseFacts> {
        database(&self.session.client, name, major).await?.with_context(|| format!("database {name} is gone"))
    }

    /// Every table whose data a dump must have: not those that an extension brings, and on a standby not those that are not logged.
    pub async fn tables(&self) -> anyhow::Result<Vec<Table>> {
        let sql = "SELECT n.nspname, c.relname, rn.nspname, r.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
            LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid) \
            LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace \
            WHERE c.relkind = 'r' AND c.relpersistence <> 't' \
              AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
              AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery()) \
              AND NOT EXISTS (SELECT FROM pg_depend d \
                              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
            ORDER BY 1, 2";
        let rows = rows(&self.session.client, sql).await.context("list the tables")?;
        let pair = |row: &SimpleQueryRow, at: usize| Some((row.get(at)?.to_owned(), row.get(at + 1)?.to_owned()));
        Ok(rows.iter().filter_map(|row| Some(Table { name: pair(row, 0)?, root: pair(row, 2) })).collect())
    }
}

/// What the database of this name is; none where there is none. A session on any database can tell: this one may take no connections.
pub async fn database(client: &Client, name: &str, major: u32) -> anyhow::Result<Option<DatabaseFacts>> {
    let provider = if major >= 15 { "d.datlocprovider" } else { "NULL" };
    let locale = match major {
        17.. => "d.datlocale",
        15 | 16 => "d.daticulocale",
        _ => "NULL",
    };
    let rules = if major >= 16 { "d.daticurules" } else { "NULL" };
    let sql = format!(
        "SELECT pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), {provider}, d.datcollate, d.datctype, {locale}, {rules}, \
            d.datconnlimit, shobj_description(d.oid, 'pg_database'), \
            CASE WHEN d.datacl IS NOT NULL THEN (SELECT coalesce(json_agg(json_build_object( \
                'role', CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END, \
                'privilege', a.privilege_type, 'grantable', a.is_grantable)), '[]') FROM aclexplode(d.datacl) a) END, \
            (SELECT json_agg(json_build_object('role', CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END, 'setting', c)) \
             FROM pg_db_role_setting s, unnest(s.setconfig) c WHERE s.setdatabase = d.oid), t.spcname \
         FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = {}",
        literal(name)
    );
    let found = rows(client, &sql).await.context("read what the database is")?;
    let Some(row) = found.first() else { return Ok(None) };
    let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
    let optional = |at: usize| row.get(at).map(ToOwned::to_owned);
    let settings: Option<Vec<Setting>> =
        row.get(10).map(serde_json::from_str).transpose().context("read its settings")?;
    Ok(Some(DatabaseFacts {
        owner: text(0),
        encoding: text(1),
        provider: optional(2),
        collate: text(3),
        ctype: text(4),
        locale: optional(5),
        rules: optional(6),
        connections: text(7).parse().context("read its limit of connections")?,
        comment: optional(8),
        grants: row.get(9).map(serde_json::from_str).transpose().context("read its privileges")?,
        settings: settings.unwrap_or_default(),
        tablespace: text(11),
    }))
}

/// All rows of a statement, by the simple protocol.
pub async fn rows(client: &Client, sql: &str) -> anyhow::Result<Vec<SimpleQueryRow>> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
        .collect())
}
