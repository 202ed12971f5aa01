//! The API as its clients see it: routes driven in process, over sockets where single bytes matter. PostgreSQL is real;
//! the broker is away, so that a request that is valid ends with 503 and a 4xx proves a refusal before publishing.

#![expect(clippy::expect_used, reason = "the lints spare test functions, not their helpers")]

mod access;
mod auth;
mod bodies;
mod commands;
mod connections;
mod contract;
mod fuzz;
mod history;
mod instructions;
mod limits;
mod lists;
mod page;
mod parameters;
mod problems;
mod reads;
mod routing;
mod settings;
mod sockets;
mod stop;
mod support;
