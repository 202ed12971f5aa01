//! System tests: the real executables against real servers.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, shows logs when it does, and its tasks end with it"
)]

mod harness;
#[path = "../../src/torture/proxy.rs"]
#[expect(dead_code, reason = "only the torture needs all of it")]
mod proxy;
#[path = "../../../../shared/common/tests/it/tls.rs"]
#[expect(dead_code, clippy::expect_used, reason = "it belongs to the tests of the common crate, which need all of it")]
mod tls;

mod admission;
mod audit;
mod auth;
mod bench;
mod broker;
mod budget;
mod cli;
mod clock;
mod contract;
mod dead_letters;
mod deployment;
mod events;
mod faults;
mod frames;
mod idempotency;
mod import;
mod kills;
mod lifecycle;
mod limits;
mod listening;
mod lost;
mod membership;
mod messages;
mod outages;
mod output;
mod personal_data;
mod pooler;
mod problems;
mod replies;
mod roles;
mod rotation;
mod soak;
mod stalls;
mod standby;
mod stopping;
mod torture;
mod traces;
mod transport;
mod unroutable;
mod up;
