//! Who a server is and how far it has come: system identifier, timeline, LSN.

use std::{fmt, str::FromStr};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use crate::probe::PeerFacts;

/// The database system identifier: a 64-bit number made by `initdb` (PostgreSQL: `pg_control_system()`). Written as a string in
/// JSON, since it exceeds 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemId(pub u64);

/// A timeline: it grows by one with each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

/// A position in the write-ahead log, written `0/3000060` (PostgreSQL: type `pg_lsn`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to here; 0 if `earlier` is ahead.
    #[must_use]
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let parse = |part: &str| u32::from_str_radix(part, 16).ok();
        let (high, low) = text.split_once('/').with_context(|| format!("{text:?} is no LSN"))?;
        let (high, low) = parse(high).zip(parse(low)).ok_or_else(|| anyhow!("{text:?} is no LSN"))?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        text.parse().map(Self).map_err(|_| anyhow!("{text:?} is no system identifier"))
    }
}

impl Serialize for SystemId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// One row: system identifier, in recovery, timeline, LSN. Any login role may run it. On a primary the timeline is that of the
/// WAL being written, since the control file shows a promotion only after the next checkpoint. A standby tells the newest that
/// it knows of: what it receives (needs `pg_read_all_stats`), its last restart point, its minimum recovery point. Without a
/// receiver the latter two may be behind what it replays.
pub const IDENTITY_QUERY: &str = "SELECT \
    (SELECT system_identifier FROM pg_control_system()), \
    pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() \
         THEN greatest((SELECT received_tli FROM pg_stat_wal_receiver), (SELECT timeline_id FROM pg_control_checkpoint()), \
                       (SELECT min_recovery_end_timeline FROM pg_control_recovery())) \
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END, \
    CASE WHEN pg_is_in_recovery() \
         THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
         ELSE pg_current_wal_lsn() END";

/// Asks a server who it is.
pub async fn identity(client: &Client) -> anyhow::Result<PeerFacts> {
    let row = simple_row(client, IDENTITY_QUERY).await.context("ask the server for its identity")?;
    Ok(PeerFacts {
        system_id: row.get(0).map(str::parse).transpose()?,
        in_recovery: row.get(1).map(|word| word == "t"),
        timeline: row.get(2).map(str::parse).transpose().context("parse the timeline")?.map(Timeline),
        lsn: row.get(3).map(str::parse).transpose()?,
    })
}

/// Runs a statement by the simple protocol (one round trip, no prepared statement to leave behind) and returns its one row.
pub async fn simple_row(client: &Client, sql: &str) -> anyhow::Result<SimpleQueryRow> {
    let messages = client.simple_query(sql).await?;
    messages
        .into_iter()
        .find_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
        .ok_or_else(|| anyhow!("the server returned no row"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lsn_malformed_is_refused() {
        for bad in ["", "0", "/", "0/", "g/0", "100000000/0", "0/0/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn lsn_shown_and_read_is_the_same(value: u64) {
            prop_assert_eq!(Lsn(value).to_string().parse::<Lsn>().unwrap(), Lsn(value));
        }
    }
}
