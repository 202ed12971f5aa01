//! The HTTP service: reads from PostgreSQL, writes as commands to RabbitMQ. In reading order:
//!
//! 1. [`settings`]: what it reads from the environment.
//! 2. [`process`]: how the parts are put together, and how they end.
//! 3. [`app`]: all routes and middleware on one page.
//! 4. [`users`]: the operations on users, each with its SQL.
//! 5. [`commands`]: the status of a command; `accept`: how one is published and waited for.
//! 6. [`loader`]: point reads that arrive together become one query. `waiting`: who waits for which outcome.
//! 7. [`auth`]: who is served; each operation names its scope.
//! 8. [`problem`]: the closed list of problems, and `edge`, where every failure becomes one.
//! 9. `body`, `headers`, `query`, `cursor`: what comes in, checked before anything is published. `paging`: pages of lists.
//! 10. [`contract`]: the OpenAPI document and its page.

mod accept;
pub mod app;
pub mod auth;
mod body;
pub mod commands;
pub mod contract;
mod cursor;
mod edge;
mod headers;
pub mod loader;
mod paging;
pub mod problem;
pub mod process;
mod query;
pub mod settings;
pub mod users;
mod waiting;
