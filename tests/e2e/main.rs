//! The suite on two real clusters (`tests/clusters/up`), with the images and the chart of this checkout.
//!
//! One pair of sites serves most tests: each asks for [`pair::Pair::ready`], which brings back a streaming standby whatever the
//! test before left behind. Run with `--test-threads=1`: the clusters, their link and Gold's power are shared.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod chain;
mod chart;
mod deployment;
mod follow;
mod monitor;
mod no_promotion;
mod operator;
mod pair;
mod port_discover;
mod promotion;
mod release;
mod soak;
mod sql;
mod system;
mod third_place;
mod tls;
mod versions;
