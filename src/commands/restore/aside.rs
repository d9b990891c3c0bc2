//! The database that is filled before it gets its name.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use jiff::Timestamp;
use tokio_postgres::error::SqlState;

use crate::{
    backup::Digesting,
    outcome::Refused,
    postgres::{Connected, DatabaseFacts, identifier, literal, rows, simple_row},
};

/// A name is cut off after so many bytes (PostgreSQL documentation 4.1.1: `NAMEDATALEN`).
const NAME_LIMIT: usize = 63;

/// How long sessions that come again and again are ended.
const DISCONNECT: Duration = Duration::from_mins(1);

/// How long those on the database aside are, on which nobody has anything to look for.
const DISCONNECT_ASIDE: Duration = Duration::from_secs(15);

/// What the name of a database says that is being filled, and of one that was replaced.
const FILLED: &str = "restoring";
const REPLACED: &str = "replaced";

/// A database under a name of its own; what a killed run left of it is removed by the next one.
pub(super) struct Aside<'a> {
    maintenance: &'a Connected,
    name: String,
}

/// What the names of our databases for this one have in common: a digest of its name, since a long one is cut off.
fn tag(into: &str) -> String {
    let mut digesting = Digesting::new(std::io::sink());
    let _ = digesting.write_all(into.as_bytes());
    digesting.finish().1.sha256[..12].to_owned()
}

/// `shop.restoring-0a1b2c3d4e5f-1795285332`, `shop.replaced-…`.
fn name_of(into: &str, state: &str, at: i64) -> String {
    let suffix = format!(".{state}-{}-{at}", tag(into));
    let mut end = into.len().min(NAME_LIMIT - suffix.len());
    while !into.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &into[..end])
}

/// Who uses a database: clients, not the server's own workers, which give way.
pub(super) async fn sessions(maintenance: &Connected, database: &str) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "SELECT coalesce(usename, 'somebody') || coalesce(' (' || nullif(application_name, '') || ')', '') FROM pg_stat_activity \
         WHERE datname = {} AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')",
        literal(database)
    );
    let rows = rows(&maintenance.client, &sql).await.context("list the sessions")?;
    Ok(rows.iter().map(|row| row.get(0).unwrap_or("somebody").to_owned()).collect())
}

impl<'a> Aside<'a> {
    /// Creates it, empty, with encoding, locale and place of the database that is in the set. Nobody but us may connect to it. What it shall
    /// get at its end is rehearsed, so that nothing is filled for hours in vain.
    pub(super) async fn create(
        maintenance: &'a Connected,
        into: &str,
        major: u32,
        facts: Option<&DatabaseFacts>,
    ) -> anyhow::Result<Self> {
        remove_left(maintenance, into).await?;
        let aside = Self { maintenance, name: name_of(into, FILLED, Timestamp::now().as_second()) };
        let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", identifier(&aside.name));
        if let Some(facts) = facts {
            aside.ensure_there(facts).await?;
            sql.push_str(&options(facts, major));
        }
        aside.run(&sql).await.context("create a database to fill")?;
        if let Err(error) = aside.rehearse(facts).await {
            let _ = aside.run("ROLLBACK").await;
            let _ = aside.remove().await;
            return Err(error).context(Refused);
        }
        Ok(aside)
    }

    async fn rehearse(&self, facts: Option<&DatabaseFacts>) -> anyhow::Result<()> {
        self.run(&format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", identifier(&self.name))).await?;
        self.run("BEGIN").await?;
        self.finish(facts).await.context("this server can't make the database what it was")?;
        self.run("ROLLBACK").await
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its limit of sessions, comment, privileges and settings: last, since they may forbid what filling needs.
    pub(super) async fn finish(&self, facts: Option<&DatabaseFacts>) -> anyhow::Result<()> {
        for sql in properties(&self.name, facts) {
            self.run(&sql).await.with_context(|| format!("make the database what it was: {sql}"))?;
        }
        Ok(())
    }

    /// Gives it its name, and returns that of the one that had it. Both names change in one transaction, or none.
    pub(super) async fn publish(&self, into: &str, replaces: bool, disconnect: bool) -> anyhow::Result<Option<String>> {
        let old = name_of(into, REPLACED, Timestamp::now().as_second());
        let rename =
            |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {};", identifier(from), identifier(to));
        let first = if replaces { rename(into, &old) } else { String::new() };
        let sql = format!("BEGIN;{first}{}COMMIT;", rename(&self.name, into));
        let (begun, limit) = (Instant::now(), if disconnect { DISCONNECT } else { DISCONNECT_ASIDE });
        loop {
            self.end_sessions(&self.name).await?;
            if replaces && disconnect {
                self.end_sessions(into).await?;
            }
            let Err(error) = self.maintenance.client.batch_execute(&sql).await else { break };
            let used = error.code() == Some(&SqlState::OBJECT_IN_USE);
            let _ = self.run("ROLLBACK").await;
            // Who was sent away may be back before the name has changed.
            if !used || begun.elapsed() > limit {
                return Err(error).with_context(|| format!("give {} the name {into}", self.name));
            }
        }
        let sql =
            format!("SELECT datname FROM pg_database WHERE datname IN ({}, {})", literal(into), literal(&self.name));
        let there = rows(&self.maintenance.client, &sql).await?;
        ensure!(there.len() == 1 && there[0].get(0) == Some(into), "database {into} is not there under its name");
        Ok(replaces.then_some(old))
    }

    async fn end_sessions(&self, database: &str) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = {} AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')",
            literal(database)
        );
        self.run(&sql).await.context("end the sessions on the database")
    }

    /// Drops the database that was replaced.
    pub(super) async fn drop_old(&self, into: &str, old: &str) -> anyhow::Result<()> {
        self.run(&format!("DROP DATABASE {} WITH (FORCE)", identifier(old))).await.with_context(|| {
            format!("database {into} is restored, but the one that it replaced is still there as {old}: drop it")
        })
    }

    /// Removes it, if it did not get its name.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&self.name));
        self.run(&sql).await.with_context(|| format!("remove database {}, which is not whole", self.name))
    }

    async fn ensure_there(&self, facts: &DatabaseFacts) -> anyhow::Result<()> {
        let grantees = facts.grants.iter().flatten().filter_map(|grant| grant.role.as_deref());
        let set_for = facts.settings.iter().filter_map(|setting| setting.role.as_deref());
        for role in std::iter::once(facts.owner.as_str()).chain(grantees).chain(set_for) {
            if !self.has("pg_roles", "rolname", role).await? {
                let why =
                    anyhow!("role {role}, which owns or may use the database, does not exist here: create it first");
                return Err(why).context(Refused);
            }
        }
        if !self.has("pg_tablespace", "spcname", &facts.tablespace).await? {
            let why = anyhow!(
                "tablespace {}, in which the database was, does not exist here: create it first",
                facts.tablespace
            );
            return Err(why).context(Refused);
        }
        Ok(())
    }

    async fn has(&self, catalog: &str, column: &str, name: &str) -> anyhow::Result<bool> {
        let sql = format!("SELECT count(*) FROM {catalog} WHERE {column} = {}", literal(name));
        Ok(simple_row(&self.maintenance.client, &sql).await?.get(0) == Some("1"))
    }

    async fn run(&self, sql: &str) -> anyhow::Result<()> {
        Ok(self.maintenance.client.batch_execute(sql).await?)
    }
}

/// Removes what killed runs left: databases that were not yet whole, and one that was replaced already. One that is in use may be that of
/// another run, which came by another database and so does not see our lock.
async fn remove_left(maintenance: &Connected, into: &str) -> anyhow::Result<()> {
    let sql =
        format!("SELECT datname FROM pg_database WHERE datname ~ '[.]({FILLED}|{REPLACED})-{}-[0-9]+$'", tag(into));
    for row in rows(&maintenance.client, &sql).await? {
        let Some(name) = row.get(0) else { continue };
        tracing::warn!("removing database {name}, left by a run that was cut off");
        let sql = format!("DROP DATABASE {}", identifier(name));
        if let Err(error) = maintenance.client.batch_execute(&sql).await {
            tracing::warn!("database {name} stays: {error}");
        }
    }
    Ok(())
}

fn options(facts: &DatabaseFacts, major: u32) -> String {
    let database = format!(
        " OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        identifier(&facts.owner),
        literal(&facts.encoding),
        literal(&facts.collate),
        literal(&facts.ctype)
    );
    let locale = facts.locale.as_deref().map(literal).unwrap_or_default();
    let rules = facts.rules.as_deref().map(|rules| format!(" ICU_RULES {}", literal(rules))).unwrap_or_default();
    let provider = match facts.provider.as_deref() {
        Some("i") => format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}{rules}"),
        Some("b") => format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"),
        // The template's own may be another one. Before PostgreSQL 15 there was no other.
        _ if major >= 15 => " LOCALE_PROVIDER libc".to_owned(),
        _ => String::new(),
    };
    let place = match facts.tablespace.as_str() {
        "pg_default" => String::new(),
        tablespace => format!(" TABLESPACE {}", identifier(tablespace)),
    };
    database + &provider + &place
}

/// What makes an empty database what it was.
fn properties(name: &str, facts: Option<&DatabaseFacts>) -> Vec<String> {
    let name = identifier(name);
    let for_all = format!("GRANT CONNECT, TEMPORARY ON DATABASE {name} TO PUBLIC");
    let Some(facts) = facts else { return vec![for_all] };
    let mut sql = vec![format!("ALTER DATABASE {name} CONNECTION LIMIT {}", facts.connections)];
    sql.extend(facts.comment.as_deref().map(|comment| format!("COMMENT ON DATABASE {name} IS {}", literal(comment))));
    if let Some(grants) = &facts.grants {
        sql.push(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC, {}", identifier(&facts.owner)));
        sql.extend(grants.iter().map(|grant| {
            let role = grant.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
            let further = if grant.grantable { " WITH GRANT OPTION" } else { "" };
            format!("GRANT {} ON DATABASE {name} TO {role}{further}", grant.privilege)
        }));
    } else {
        sql.push(for_all);
    }
    sql.extend(facts.settings.iter().filter_map(|setting| {
        let (key, value) = setting.setting.split_once('=')?;
        let whose = setting
            .role
            .as_deref()
            .map_or_else(|| format!("DATABASE {name}"), |role| format!("ROLE {} IN DATABASE {name}", identifier(role)));
        // A parameter of an extension has a point in its name.
        let key = key.split('.').map(identifier).collect::<Vec<_>>().join(".");
        Some(format!("ALTER {whose} SET {key} TO {}", constant(&key.replace('"', ""), value)))
    }));
    sql
}

/// Parameters that hold a list of names are stored with quoted names, and want each as a constant of its own (PostgreSQL: `GUC_LIST_QUOTE`,
/// `variable_is_guc_list_quote`).
fn constant(name: &str, value: &str) -> String {
    let lists = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    if !lists.contains(&name) {
        return literal(value);
    }
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.next_if_eq(&'"').is_some() => name.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(literal(&std::mem::take(&mut name))),
            ' ' if !quoted => {}
            other => name.push(other),
        }
    }
    names.push(literal(&name));
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Grant, Setting};

    #[test]
    fn names_of_ours_fit_and_differ_by_the_whole_name() {
        let long = "ä".repeat(31);
        let names = [&long, &format!("{long}x")].map(|into| name_of(into, FILLED, 1_795_285_332));
        assert!(names.iter().all(|name| name.len() <= NAME_LIMIT), "{names:?}");
        assert_ne!(names[0], names[1]);
        assert!(name_of("shop", REPLACED, 7).starts_with("shop.replaced-"));
    }

    fn facts() -> DatabaseFacts {
        DatabaseFacts {
            owner: "o\"x".into(),
            encoding: "UTF8".into(),
            provider: Some("i".into()),
            collate: "C".into(),
            ctype: "C".into(),
            locale: Some("de-AT".into()),
            rules: None,
            tablespace: "pg_default".into(),
            connections: 7,
            comment: Some("it's".into()),
            grants: Some(vec![
                Grant { role: None, privilege: "TEMPORARY".into(), grantable: false },
                Grant { role: Some("app".into()), privilege: "CONNECT".into(), grantable: true },
            ]),
            settings: vec![
                Setting { role: None, setting: "search_path=\"\"".into() },
                Setting { role: Some("app".into()), setting: "plpgsql.extra_warnings=all".into() },
            ],
        }
    }

    #[test]
    fn database_is_made_as_it_was() {
        let mut facts = facts();
        let usual = " OWNER \"o\"\"x\" ENCODING E'UTF8' LC_COLLATE E'C' LC_CTYPE E'C'";
        assert_eq!(options(&facts, 17), format!("{usual} LOCALE_PROVIDER icu ICU_LOCALE E'de-AT'"));
        facts.provider = Some("c".into());
        assert_eq!(options(&facts, 17), format!("{usual} LOCALE_PROVIDER libc"));
        assert_eq!(options(&facts, 14), usual);
        (facts.provider, facts.tablespace) = (None, "bulk".into());
        assert_eq!(options(&facts, 15), format!("{usual} LOCALE_PROVIDER libc TABLESPACE \"bulk\""));
    }

    #[test]
    fn privileges_and_settings_are_given_again() {
        assert_eq!(properties("d", None), ["GRANT CONNECT, TEMPORARY ON DATABASE \"d\" TO PUBLIC"]);
        let sql = properties("d", Some(&facts()));
        assert_eq!(
            sql,
            [
                "ALTER DATABASE \"d\" CONNECTION LIMIT 7",
                "COMMENT ON DATABASE \"d\" IS E'it\\'s'",
                "REVOKE ALL ON DATABASE \"d\" FROM PUBLIC, \"o\"\"x\"",
                "GRANT TEMPORARY ON DATABASE \"d\" TO PUBLIC",
                "GRANT CONNECT ON DATABASE \"d\" TO \"app\" WITH GRANT OPTION",
                "ALTER DATABASE \"d\" SET \"search_path\" TO E''",
                "ALTER ROLE \"app\" IN DATABASE \"d\" SET \"plpgsql\".\"extra_warnings\" TO E'all'",
            ]
        );
    }

    #[test]
    fn list_of_names_is_given_as_constants() {
        assert_eq!(constant("search_path", "\"$user\", public"), "E'$user', E'public'");
        assert_eq!(constant("search_path", "\"a, \"\"b\", c"), "E'a, \"b', E'c'");
        assert_eq!(constant("work_mem", "64MB"), "E'64MB'");
    }
}
