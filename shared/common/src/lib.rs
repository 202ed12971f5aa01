//! What both services share, in reading order:
//!
//! 1. [`command`]: the contract. What travels over the queue and what comes of it.
//!    [`event`]: what subscribers are told.
//!    [`access`]: scopes, clients and their keys.
//! 2. [`config`]: the only place where the environment is read.
//! 3. [`shutdown`]: the phases in which a process ends, and the tracker that every task belongs to.
//! 4. [`health`]: what is well and what is not, as `/readyz` tells it.
//! 5. [`http`]: the HTTP loop around a poem endpoint, and the probes.
//! 6. [`db`]: URL, pool, migrations, and the monitor behind readiness.
//! 7. [`membership`]: how many connections an instance may open and which partitions it owns, and for how long.
//! 8. [`broker`]: the supervised connection, the topology, the confirmed publisher. `net`: connecting to a name with several
//!    addresses, for the broker and the database.
//! 9. [`telemetry`]: logs, traces, metrics. [`redaction`]: error texts without the input that they quote.
//! 10. [`transport`]: the rule for connections to other machines.
//! 11. [`process`]: the order in which a service begins and ends. [`files`]: files that only their owner may read.
//!
//! It depends on neither service, and `command` imports none of the other modules.

pub mod access;
pub mod broker;
pub mod command;
pub mod config;
pub mod db;
pub mod event;
pub mod files;
pub mod health;
pub mod http;
pub mod membership;
mod net;
pub mod process;
pub mod redaction;
pub mod shutdown;
pub mod telemetry;
pub mod transport;
