//! The common crate against real servers.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "the lints spare test functions, not their helpers, and the tasks of a test end with it"
)]

// The contract.
mod budget;
mod command;
mod event;
mod ids;
mod reply;
mod text;

// What a process stands on.
mod config;
mod health;
mod shutdown;

// PostgreSQL.
mod connector;
mod database_url;
mod deployment;
mod migrations;
mod monitor;
mod pool;

// RabbitMQ.
mod link;
mod publisher;
mod rights;
mod topology;

// Connections to other machines.
mod transport;

mod support;
#[expect(dead_code, reason = "the tests of the executable use it, too")]
mod tls;
