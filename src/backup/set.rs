//! The name of a backup set (contracts: `backup-<UTC>Z-<database|dumpall>.<sql|dir>[.gz|.zst][.age]`).

use std::{fmt, str::FromStr};

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// What a database's name keeps in a file's name; the rest is percent-encoded.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// What stands for the whole cluster, so that no database can be named like that.
const CLUSTER: &str = "dumpall";

/// Two machines' clocks may differ by so much.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// One database.
    Database(String),
    /// All databases and roles, as pg_dumpall writes them.
    Cluster,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("the whole cluster"),
            Self::Database(name) => write!(f, "database {name}"),
        }
    }
}

/// The name of a set: when it was taken, of what, and in which form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetName {
    /// When the dump began; whole seconds.
    pub taken: Timestamp,
    /// What is in it.
    pub subject: Subject,
    /// `sql`, with `.gz` or `.zst` where it is compressed.
    pub form: String,
}

impl SetName {
    /// What the files beside a set are named by: the manifest is `<name>.json`.
    #[must_use]
    pub fn manifest(&self) -> String {
        format!("{self}.json")
    }

    /// The digest, for `sha256sum -c`.
    #[must_use]
    pub fn digest(&self) -> String {
        format!("{self}.sha256")
    }

    /// The result of a verification.
    #[must_use]
    pub fn verification(&self) -> String {
        format!("{self}.verify.json")
    }

    /// Whether it was taken by a clock that runs ahead of ours, or ran ahead once.
    #[must_use]
    pub fn is_from_the_future(&self, now: Timestamp) -> bool {
        self.taken.duration_since(now) > CLOCK_TOLERANCE
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let taken = self.taken.strftime("%Y-%m-%dT%H:%M:%SZ");
        write!(f, "backup-{taken}-")?;
        match &self.subject {
            Subject::Cluster => f.write_str(CLUSTER)?,
            // Else it would be taken for the whole cluster.
            Subject::Database(name) if name == CLUSTER => f.write_str("%64umpall")?,
            Subject::Database(name) => write!(f, "{}", utf8_percent_encode(name, KEPT))?,
        }
        write!(f, ".{}", self.form)
    }
}

impl FromStr for SetName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let rest = text.strip_prefix("backup-").ok_or(())?;
        let (taken, rest) = rest.split_once("Z-").ok_or(())?;
        let taken: DateTime = taken.parse().map_err(|_| ())?;
        let (subject, form) = rest.split_once('.').ok_or(())?;
        if !["sql", "sql.gz", "sql.zst"].contains(&form) || subject.is_empty() {
            return Err(());
        }
        let subject = match subject {
            CLUSTER => Subject::Cluster,
            name => Subject::Database(percent_decode_str(name).decode_utf8().map_err(|_| ())?.into_owned()),
        };
        let taken = TimeZone::UTC.to_timestamp(taken).map_err(|_| ())?;
        let name = Self { taken, subject, form: form.to_owned() };
        // Another spelling of the same would name a file that is not there.
        if name.to_string() == text { Ok(name) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn name_is_that_of_the_contract() {
        let name: SetName = "backup-2022-11-28T08:51:08Z-dumpall.sql.gz".parse().unwrap();
        assert_eq!(name.subject, Subject::Cluster);
        assert_eq!(name.taken, "2022-11-28T08:51:08Z".parse().unwrap());
        assert_eq!(name.to_string(), "backup-2022-11-28T08:51:08Z-dumpall.sql.gz");
        let odd = SetName { subject: Subject::Database("we ird/ü".into()), ..name };
        assert_eq!(odd.to_string(), "backup-2022-11-28T08:51:08Z-we%20ird%2F%C3%BC.sql.gz");
    }

    #[test]
    fn other_names_are_no_sets() {
        for other in [
            "",
            "backup-2022-11-28T08:51:08Z-dumpall.sql.gz.json",
            "backup-2022-13-28T08:51:08Z-x.sql.gz",
            "backup-2022-11-28T08:51:08-x.sql.gz",
            "backup-2022-11-28T08:51:08Z-.sql.gz",
            "backup-2022-11-28T08:51:08Z-x.sql.bz2",
            "backup-2022-11-28 08:51:08Z-x.sql.gz",
            "backup-2022-11-28T08:51:08.5Z-x.sql.gz",
            "backup-2022-11-28T08:51:08Z-a b.sql.gz",
            "..",
        ] {
            assert!(other.parse::<SetName>().is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn name_of_any_database_is_read_back_and_stays_in_its_folder(database in "\\PC{1,40}") {
            let taken = "2026-01-31T23:59:59Z".parse().unwrap();
            let name = SetName { taken, subject: Subject::Database(database), form: "sql.zst".into() };
            let text = name.to_string();
            prop_assert!(!text.contains('/'));
            prop_assert_eq!(text.parse(), Ok(name));
        }
    }
}
