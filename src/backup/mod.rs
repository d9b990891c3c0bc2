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
