//! The worker's transactions against real servers.

#![expect(clippy::expect_used, reason = "the lints spare test functions, not their helpers")]

mod apply;
mod blame;
mod idempotency;
mod poison;
mod settings;
mod users;
mod waves;

mod support;
