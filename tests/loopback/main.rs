//! The built binary where things break between its steps: killed while it writes, streams and disks that are full, servers that
//! stop, throttle, lose an answer. The plain cases are in `tests/servers`, whose servers and peers serve here too.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

macro_rules! of_servers {
    ($($module:ident = $path:literal),*) => {
        $(#[path = $path]
        #[allow(dead_code, reason = "this suite needs a part of it")]
        mod $module;)*
    };
}

of_servers!(
    certificates = "../servers/certificates.rs",
    http = "../servers/http.rs",
    lifeboat = "../servers/lifeboat.rs",
    peers = "../servers/peers.rs",
    postgres = "../servers/postgres.rs"
);

mod api;
mod api_faults;
mod bootstrap;
mod fence;
mod intercom;
mod names;
mod peer_lease;
mod promotion;
mod protocol;
mod stale_leader;
mod stopping;
mod streams;
mod who_answers;
mod witness_callers;
mod witnesses;
