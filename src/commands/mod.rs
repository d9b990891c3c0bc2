//! One file per command: its flags, then observe, decide, act, verify.

pub mod backups;
pub mod dump;
pub mod follow;
pub mod monitor;
pub mod operator;
pub mod pg_probe;
pub mod port_discover;
pub mod post_bootstrap;
pub mod promote;
pub mod restore;
pub mod status;
pub mod tls_reload;
pub mod witness;
