//! The HTTP service: reads from PostgreSQL, writes as commands to RabbitMQ. In reading order:
//!
//! 1. [`settings`]: what it reads from the environment.
//! 2. [`process`]: how the parts are put together, and how they end.
//! 3. [`app`]: all routes and middleware on one page.
//! 4. [`users`]: the operations on users, each with its SQL.
//! 5. [`commands`]: the status of a command; `accept`: how one is published and waited for.
//! 6. [`loader`]: point reads that arrive together become one query. `waiting`: requests that wait, and replies.
//!    `failed_reads`: what is told of reads that fail.
//! 7. [`auth`]: who is served; each operation names its scope.
//! 8. [`limits`]: what clients may ask for at once. [`rate`]: how many requests; `backlog`: how far behind the workers may be;
//!    [`cors`]: from which pages.
//! 9. [`problem`]: the closed list of problems, and `edge`, where every failure becomes one.
//! 10. `body`, `headers`, `query`, `cursor`: what comes in, checked before anything is published. `paging`: pages of lists.
//! 11. [`contract`]: the OpenAPI document; `fixed`: the pages; `json`: answers; `compression`.

mod accept;
pub mod app;
pub mod auth;
mod backlog;
mod body;
pub mod commands;
mod compression;
pub mod contract;
pub mod cors;
mod cursor;
mod edge;
mod failed_reads;
mod fixed;
mod headers;
mod json;
pub mod limits;
pub mod loader;
mod paging;
pub mod problem;
pub mod process;
mod query;
pub mod rate;
pub mod settings;
pub mod users;
mod waiting;
