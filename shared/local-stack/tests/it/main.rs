//! Real servers, started and hurt.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "the lints spare test functions, not their helpers")]

mod end;
mod owner;
mod standby;
mod start;
mod support;
