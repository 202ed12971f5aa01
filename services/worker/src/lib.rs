//! The worker: takes commands from the partition queues and applies them to PostgreSQL. In reading order:
//!
//! 1. [`settings`]: what it reads from the environment.
//! 2. [`process`]: how the parts are put together, and how they end.
//! 3. `partition`: the loop over one partition's queue: receive, apply, acknowledge, reply.
//! 4. `admission`: what no API publishes; [`incoming`]: messages and what is read in them; `lanes`: transactions over what waits
//!    in several partitions; [`apply`]: one transaction: deduplicate, waves, outcomes; [`commands`]: their rows; `days`: the tables of these; [`idempotency`]: what is a retry in it.
//! 5. [`users`]: what each command does to the users, as one set-based statement per kind.
//! 6. [`blame`]: who is at fault when a statement fails, and so what happens next.
//! 7. [`dead_letters`]: what could not be applied, and what waits behind it, until an operator decides.
//! 8. [`suspects`] and [`flood`]: commands that end the worker, and faults that are no command's.
//! 9. [`events`] and `relay`: what changed, for subscribers; [`contract`]: how that is described; `replies`: outcomes for clients that wait.
//! 10. `progress`: up to when every command is decided, so that the API can tell which were lost.
//! 11. `pruning`: what is no longer kept. `reach`: whether there is a way to the broker.

mod admission;
mod alone;
pub mod apply;
pub mod blame;
pub mod commands;
mod consumption;
pub mod contract;
mod days;
pub mod dead_letters;
mod delivery;
pub mod events;
pub mod flood;
pub mod idempotency;
pub mod incoming;
mod instruments;
mod lanes;
#[cfg(feature = "mutants")]
pub mod mutants;
mod partition;
pub mod process;
mod progress;
mod pruning;
mod reach;
mod relay;
mod replies;
pub mod settings;
pub mod suspects;
pub mod users;
pub mod waves;
