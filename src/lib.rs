//! Lifeboat keeps a PostgreSQL application recoverable: in the next minute, and in the next cluster.
//!
//! One binary, many steps: each subcommand is a container of a Job, a CronJob or an init chain. A command is one file
//! below [`commands`]: it observes, decides by a pure function, acts, and verifies. The modules beside it know no command.

pub mod alerts;
pub mod backup;
pub mod certificate;
pub mod child;
pub mod cli;
pub mod commands;
pub mod flags;
pub mod http;
pub mod http_server;
pub mod intercom;
pub mod kill_point;
pub mod kubernetes;
pub mod outcome;
pub mod patroni;
pub mod postgres;
pub mod probe;
pub mod secret;
pub mod site;
