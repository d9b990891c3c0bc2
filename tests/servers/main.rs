//! The built binary against real servers on this machine: PostgreSQL, peers that misbehave, chats, an API server. No cluster.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod alerts;
mod certificates;
mod dump;
mod dump_faults;
mod fake_peers;
mod frame;
mod http;
mod kubernetes;
mod lifeboat;
mod peers;
mod post_bootstrap;
mod postgres;
mod real_peers;
mod tls;
mod tls_reload;
mod witness;
