//! System tests: the real executables against real servers.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, shows logs when it does, and its tasks end with it"
)]

mod harness;

mod auth;
mod budget;
mod cli;
mod contract;
mod dead_letters;
mod events;
mod faults;
mod idempotency;
mod kills;
mod lifecycle;
mod membership;
mod outages;
mod pooler;
mod roles;
mod stalls;
mod stopping;
mod torture;
mod traces;
mod unroutable;
mod up;
