//! Finds or starts a private PostgreSQL and RabbitMQ, for local use and for tests.
//!
//! Each server comes from the first of these that works: the URL that the caller gives; installed programs, run as a
//! private instance on free ports with all its data in one directory; the package manager, if the caller allows it; a
//! Docker engine. The machine's own servers and their data are never touched.
//!
//! A stack is exclusive ([`Stack::start`]: one owner, ends with it) or shared ([`Stack::start_shared`]: any number of
//! processes, ends some time after the last). In both cases a small detached process, the keeper, ends the servers
//! when nobody who used them is alive, so that even `kill -9` leaves nothing behind.
//!
//! All calls block; a caller on an async runtime uses `spawn_blocking`.
//!
//! ```no_run
//! use rollcall_local_stack::{Options, Stack, StopMode};
//!
//! # fn main() -> Result<(), rollcall_local_stack::Error> {
//! let stack = Stack::start(Options { install: true, ..Options::new(".rollcall") })?;
//! let (database, broker) = (stack.postgres.url(), stack.rabbitmq.url());
//! # let _ = (database, broker);
//! stack.postgres.stop(StopMode::Immediate)?;
//! stack.postgres.start()?;
//! stack.stop();
//! # Ok(())
//! # }
//! ```

// What a caller sees.
mod error;
mod options;
mod postgres;
mod rabbitmq;
mod stack;

// The directory: who is in it, what runs in it, how that ends.
mod ending;
mod home;
mod lock;
mod process;
mod servers;
mod state;

// Where the servers come from.
mod advice;
mod cluster;
mod container;
mod find;
mod install;
mod node;
mod provision;

// What they stand on.
mod account;
mod ports;
mod probe;

pub mod testing;

pub use account::{leave_root, stay_root, this_program};
pub use ending::erase;
pub use error::Error;
pub use options::{Options, POSTGRES_BIN, Progress, RABBITMQ_BIN};
pub use postgres::{Postgres, Standby, StopMode};
pub use rabbitmq::RabbitMq;
pub use stack::Stack;
