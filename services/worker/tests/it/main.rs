//! The worker's transactions against real servers.

#![expect(clippy::expect_used, reason = "the lints spare test functions, not their helpers")]

mod apply;
mod blame;
mod dead_letters;
mod flood;
mod poison;
mod replay;
mod settings;
mod suspects;
mod users;
mod waves;

mod support;
