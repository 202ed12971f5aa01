//! The worker's transactions against real servers.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "the lints spare test functions, not their helpers, and a test's tasks end with it"
)]

mod addresses;
mod apply;
mod blame;
mod costs;
mod dead_letters;
mod events;
mod flood;
mod idempotency;
mod instructions;
mod lanes;
mod poison;
mod replay;
mod settings;
mod suspects;
mod unread;
mod users;
mod waves;

mod support;
