//! What lies beside a set and says what is in it (contracts: "Backup sets"). Written last: it is the commit mark.

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Compression, Subject, TableRows};
use crate::postgres::{DatabaseFacts, Lsn, SystemId, Timeline};

/// What is known of a set since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The schema's version, 1.
    pub version: u8,
    /// The set's name.
    pub set: String,
    /// What was dumped.
    pub subject: Subject,
    /// The database as it was, to make it anew.
    pub database: DatabaseFacts,
    /// Compression of the file.
    pub compression: Compression,
    /// Version of this program.
    pub lifeboat: String,
    /// Version of pg_dump.
    pub tool: String,
    /// The server.
    pub server: ServerFacts,
    /// When the dump began.
    pub started: Timestamp,
    /// When it was complete on the disk.
    pub ended: Timestamp,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes before they were compressed.
    pub uncompressed: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Rows of each table that has data in the dump.
    pub tables: Vec<TableRows>,
}

/// The server that was dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `server_version`.
    pub version: String,
    /// Database system identifier.
    pub system_id: Option<SystemId>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// Whether a standby was dumped.
    pub in_recovery: bool,
    /// Position in the write-ahead log when the snapshot was taken.
    pub lsn: Option<Lsn>,
}

impl Manifest {
    /// Reads a manifest; one of another version or another set is refused.
    pub fn read(text: &[u8], set: &str) -> anyhow::Result<Self> {
        let manifest: Self = serde_json::from_slice(text).context("the manifest is malformed")?;
        ensure!(manifest.version == 1, "the manifest has version {}, this binary reads version 1", manifest.version);
        ensure!(manifest.set == set, "the manifest is that of {}", manifest.set);
        Ok(manifest)
    }

    /// All rows.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}
