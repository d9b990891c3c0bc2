//! Speaking with PostgreSQL: connections, what a server is, what went wrong.

mod classify;
mod connect;
mod control_file;
mod history;
mod identity;
mod options;
pub mod pgpass;
mod quote;
mod snapshot;
mod tls;
mod tools;

pub use classify::{Failed, attempt};
pub use connect::{Connected, Credentials, Server};
pub use control_file::ControlFile;
pub use history::{History, Switch};
pub use identity::{IDENTITY_QUERY, Lsn, SystemId, Timeline, identity, simple_row};
pub use options::{CONNECT, ServerOptions, open};
pub use quote::{identifier, literal};
pub use snapshot::{
    DatabaseFacts, Grant, ServerVersion, Setting, Snapshot, Table, database, databases, rows, server_version,
};
pub use tls::{SslMode, TlsOptions, unverified_client};
pub use tools::Tool;
