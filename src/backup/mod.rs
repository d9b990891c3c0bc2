//! Backup sets: their names, what lies beside them, how they are written, which of them stay.

mod choose;
mod compress;
mod expand;
mod folder;
mod manifest;
mod retention;
mod scan;
mod set;
mod tidy;

pub use choose::{Wanted, choose};
pub use compress::{Compression, Compressor, Digested, Digesting};
pub use expand::expand;
pub use folder::{Condition, Folder, Found, Lock, LockedBy, Unfinished, locked};
pub use manifest::{Manifest, ServerFacts};
pub use retention::{Keep, Tier, kept};
pub use scan::{End, Scan, TableRows};
pub use set::{SetName, Subject};
pub use tidy::{Tidied, tidy};

#[cfg(test)]
mod tests {
    use super::{Condition, Manifest};

    /// A set that is complete and empty.
    pub(super) fn complete(taken: &str) -> Condition {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "version": 1, "set": "", "subject": {"database": "shop"}, "compression": {"codec": "none"}, "lifeboat": "", "tool": "",
            "database": {"owner": "", "encoding": "", "provider": null, "collate": "", "ctype": "", "locale": null, "rules": null,
                         "connections": -1, "comment": null, "grants": null, "settings": [], "tablespace": "pg_default"},
            "server": {"version": "", "system_id": null, "timeline": null, "in_recovery": false, "lsn": null},
            "started": taken, "ended": taken, "bytes": 0, "uncompressed": 0, "sha256": "", "tables": []
        }))
        .unwrap();
        Condition::Complete(Box::new(manifest))
    }
}
