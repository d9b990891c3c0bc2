//! Speaking with PostgreSQL: connections, what a server is, what went wrong.

mod classify;
mod connect;
mod control_file;
mod history;
mod identity;
pub mod pgpass;
mod tls;

pub use classify::{Failed, attempt};
pub use connect::{Connected, Credentials, Server};
pub use control_file::ControlFile;
pub use history::{History, Switch};
pub use identity::{IDENTITY_QUERY, Lsn, SystemId, Timeline, identity, simple_row};
pub use tls::{SslMode, TlsOptions, unverified_client};
