//! Who a data directory belongs to, by its control file, without a running server.

use std::path::Path;

use anyhow::{Context, bail};

use super::{SystemId, Timeline};

/// Versions of the control file whose first fields are where they are read here: PostgreSQL 11 (1100) and later.
const OLDEST: u32 = 1100;

/// What the control file tells (PostgreSQL: `ControlFileData` in `catalog/pg_control.h`; in the machine's own byte order).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The system identifier.
    pub system_id: SystemId,
    /// The timeline of the last checkpoint: the server may be past it.
    pub timeline: Timeline,
}

impl ControlFile {
    /// Reads the control file of a data directory; none where there is none: no database, or an interrupted copy, as
    /// `pg_basebackup` writes it last.
    pub fn find(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join("global/pg_control");
        match std::fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).with_context(|| format!("read {}", path.display())).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        if bytes.is_empty() {
            bail!(
                "it is empty: the data directory is damaged, by a full disk or a volume that lost writes. Restore it, or delete it and copy the \
                 database anew"
            );
        }
        let field =
            |at: usize| bytes.get(at..at + 4).and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)));
        let system_id = bytes.get(..8).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
        let (Some(system_id), Some(version), Some(timeline)) = (system_id, field(8), field(48)) else {
            bail!("it has only {} bytes", bytes.len());
        };
        if !(OLDEST..10_000).contains(&version) || timeline == 0 {
            bail!("version {version} of the control file is not known here");
        }
        Ok(Self { system_id: SystemId(system_id), timeline: Timeline(timeline) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_file_is_read_and_nothing_else_is_taken_for_one() {
        let mut bytes = vec![0; 8192];
        bytes[..8].copy_from_slice(&7_000_000_000_000_000_001_u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&1700_u32.to_ne_bytes());
        bytes[48..52].copy_from_slice(&3_u32.to_ne_bytes());
        let read = ControlFile::parse(&bytes).unwrap();
        assert_eq!((read.system_id, read.timeline), (SystemId(7_000_000_000_000_000_001), Timeline(3)));
        bytes[8..12].copy_from_slice(&942_u32.to_ne_bytes());
        assert!(ControlFile::parse(&bytes).is_err(), "PostgreSQL 9.4");
        assert!(ControlFile::parse(&bytes[..40]).is_err());
        assert!(ControlFile::parse(&[0; 8192]).is_err());
        assert!(ControlFile::parse(&[]).unwrap_err().to_string().contains("is damaged"));
    }
}
