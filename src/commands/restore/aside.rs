//! The database that is filled before it gets its name.

use std::io::Write;

use anyhow::{Context, anyhow};
use jiff::Timestamp;

use crate::{
    backup::Digesting,
    outcome::Refused,
    postgres::{Connected, DatabaseFacts, identifier, literal, rows, simple_row},
};

/// A name is cut off after so many bytes (PostgreSQL documentation 4.1.1: `NAMEDATALEN`).
const NAME_LIMIT: usize = 63;

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

/// Who uses a database.
pub(super) async fn sessions(maintenance: &Connected, database: &str) -> anyhow::Result<Vec<String>> {
    let sql = format!(
        "SELECT usename || coalesce(' (' || nullif(application_name, '') || ')', '') FROM pg_stat_activity \
         WHERE datname = {} AND pid <> pg_backend_pid()",
        literal(database)
    );
    let rows = rows(&maintenance.client, &sql).await.context("list the sessions")?;
    Ok(rows.iter().map(|row| row.get(0).unwrap_or("somebody").to_owned()).collect())
}

impl<'a> Aside<'a> {
    /// Creates it as the database was that is in the set.
    pub(super) async fn create(
        maintenance: &'a Connected,
        into: &str,
        facts: Option<&DatabaseFacts>,
    ) -> anyhow::Result<Self> {
        remove_left(maintenance, into).await?;
        let aside = Self { maintenance, name: name_of(into, FILLED, Timestamp::now().as_second()) };
        let mut sql = format!("CREATE DATABASE {} TEMPLATE template0", identifier(&aside.name));
        if let Some(facts) = facts {
            aside.ensure_role(&facts.owner).await?;
            sql.push_str(&options(facts));
        }
        aside.run(&sql).await.context("create a database to fill")?;
        for setting in facts.map(|facts| facts.settings.as_slice()).unwrap_or_default() {
            let (name, value) = setting.split_once('=').with_context(|| format!("setting {setting:?}"))?;
            let sql = format!(
                "ALTER DATABASE {} SET {} TO {}",
                identifier(&aside.name),
                identifier(name),
                constant(name, value)
            );
            aside.run(&sql).await.with_context(|| format!("set {name} of the database"))?;
        }
        Ok(aside)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Gives it its name, and removes the one that had it. Both names change in one transaction, or none.
    pub(super) async fn publish(self, into: &str, replaces: bool, disconnect: bool) -> anyhow::Result<()> {
        let old = &name_of(into, REPLACED, Timestamp::now().as_second());
        if replaces && disconnect {
            let sql = format!(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()",
                literal(into)
            );
            self.run(&sql).await.context("end the sessions on the database")?;
        }
        let names = |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {};", identifier(from), identifier(to));
        let mut sql = "BEGIN;".to_owned();
        if replaces {
            sql.push_str(&names(into, old));
        }
        sql.push_str(&names(&self.name, into));
        sql.push_str("COMMIT;");
        if let Err(error) = self.run(&sql).await {
            let _ = self.run("ROLLBACK").await;
            let error = error.context(format!("give {} the name {into}", self.name));
            self.remove().await?;
            return Err(error);
        }
        if replaces {
            self.run(&format!("DROP DATABASE {}", identifier(old))).await.with_context(|| {
                format!("database {into} is restored, but the one that it replaces is still there as {old}: drop it")
            })?;
        }
        let there =
            format!("SELECT count(*) FROM pg_database WHERE datname IN ({}, {})", literal(into), literal(&self.name));
        match simple_row(&self.maintenance.client, &there).await?.get(0) {
            Some("1") => Ok(()),
            _ => Err(anyhow!("database {into} is not there under its name")),
        }
    }

    /// Removes it.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", identifier(&self.name));
        self.run(&sql).await.with_context(|| format!("remove database {}, which is not whole", self.name))
    }

    async fn ensure_role(&self, role: &str) -> anyhow::Result<()> {
        let sql = format!("SELECT count(*) FROM pg_roles WHERE rolname = {}", literal(role));
        if simple_row(&self.maintenance.client, &sql).await?.get(0) != Some("1") {
            return Err(anyhow!("role {role}, which owned the database, does not exist here: create it first"))
                .context(Refused);
        }
        Ok(())
    }

    async fn run(&self, sql: &str) -> anyhow::Result<()> {
        Ok(self.maintenance.client.batch_execute(sql).await?)
    }
}

/// Removes what killed runs left: databases that were not yet whole, and one that was replaced already. Nobody else works with these names, since
/// we hold the lock.
async fn remove_left(maintenance: &Connected, into: &str) -> anyhow::Result<()> {
    let sql =
        format!("SELECT datname FROM pg_database WHERE datname ~ '[.]({FILLED}|{REPLACED})-{}-[0-9]+$'", tag(into));
    for row in rows(&maintenance.client, &sql).await? {
        let Some(name) = row.get(0) else { continue };
        tracing::warn!("removing database {name}, left by a run that was cut off");
        let sql = format!("DROP DATABASE {} WITH (FORCE)", identifier(name));
        maintenance.client.batch_execute(&sql).await.with_context(|| format!("remove database {name}"))?;
    }
    Ok(())
}

fn options(facts: &DatabaseFacts) -> String {
    let sql = format!(
        " OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        identifier(&facts.owner),
        literal(&facts.encoding),
        literal(&facts.collate),
        literal(&facts.ctype)
    );
    let locale = facts.locale.as_deref().map(literal).unwrap_or_default();
    sql + &match facts.provider.as_deref() {
        Some("i") => format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}"),
        Some("b") => format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"),
        _ => String::new(),
    }
}

/// A list of names is stored quoted already (PostgreSQL: `GUC_LIST_QUOTE`).
fn constant(name: &str, value: &str) -> String {
    let lists = ["local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"];
    if lists.contains(&name) && !value.is_empty() { value.to_owned() } else { literal(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ours_fit_and_differ_by_the_whole_name() {
        let long = "ä".repeat(31);
        let names = [&long, &format!("{long}x")].map(|into| name_of(into, FILLED, 1_795_285_332));
        assert!(names.iter().all(|name| name.len() <= NAME_LIMIT), "{names:?}");
        assert_ne!(names[0], names[1]);
        assert!(name_of("shop", REPLACED, 7).starts_with("shop.replaced-"));
    }

    #[test]
    fn database_is_made_as_it_was() {
        let mut facts = DatabaseFacts {
            owner: "o\"x".into(),
            encoding: "UTF8".into(),
            provider: Some("i".into()),
            collate: "C".into(),
            ctype: "C".into(),
            locale: Some("de-AT".into()),
            settings: Vec::new(),
        };
        let usual = " OWNER \"o\"\"x\" ENCODING E'UTF8' LC_COLLATE E'C' LC_CTYPE E'C'";
        assert_eq!(options(&facts), format!("{usual} LOCALE_PROVIDER icu ICU_LOCALE E'de-AT'"));
        facts.provider = Some("c".into());
        assert_eq!(options(&facts), usual);
    }

    #[test]
    fn list_of_names_is_not_quoted_again() {
        assert_eq!(constant("search_path", "\"$user\", public"), "\"$user\", public");
        assert_eq!(constant("work_mem", "64MB"), "E'64MB'");
    }
}
