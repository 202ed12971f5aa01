//! The roles of a deployment on the server: what each may do, how many connections it may hold, and what it takes to
//! make a server so.
//!
//! # Why may the API and the worker each hold the whole budget?
//! Shares move between them: at night nearly all of it may be the worker's. A limit below what may be granted would refuse
//! connections that were promised; this one stops a service that forgets its share before it harms other users of the server.
//!
//! # Why roles of their own for control connections, one for each service?
//! A heartbeat must go through when its service has every connection that it may have, and must not take one of them. And
//! what only the membership needs, neither service's other statements can do. The API's cannot join as a worker, and so
//! gets no partition: `migrations/0003`.
//!
//! # What do the roles protect?
//! Integrity: a service whose credentials leak reads, writes and changes no more than its list allows. They do not protect
//! availability. Settings of a role are defaults that its sessions override, every role may change its own password and end its
//! own sessions, and one that may lock a row or table can keep others waiting for it. What anybody may do unless it is
//! revoked, as making temporary tables and large objects, is revoked where the server allows it.
//!
//! # Why is the migrator a member of the services' roles?
//! What ends the sessions of an instance that is gone runs as the migrator. Being a member is the least that allows it:
//! `pg_signal_backend` would let it end everybody's.

mod grants;
mod plan;
mod privileges;
mod state;

use std::sync::Once;

use sqlx::PgConnection;
use tracing::info;

pub(super) use grants::grant;
pub use plan::{Plan, RolesError, Statement, Wanted, apply, plan};
pub use privileges::{FUNCTIONS, Grant, TABLES};

/// Where everything lies.
const SCHEMA: &str = "public";
/// Temporary objects come last, so that nobody can put one in front of a table.
const SEARCH_PATH: &str = "public, pg_temp";

/// What a role on the server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerRole {
    /// Owns the schema, and runs migrations and the operator's commands.
    Migrator,
    /// The API's pool.
    Api,
    /// The worker's pool.
    Worker,
    /// The API's control connections.
    ControlApi,
    /// The worker's control connections.
    ControlWorker,
    /// Reads everything, for dumps.
    Backup,
    /// Reads statistics and the membership, and no user's data.
    Monitor,
}

impl ServerRole {
    /// Every role, the owner first.
    pub const ALL: [Self; 7] =
        [Self::Migrator, Self::Api, Self::Worker, Self::ControlApi, Self::ControlWorker, Self::Backup, Self::Monitor];

    /// Its name in a deployment.
    pub fn name(self, prefix: &str) -> String {
        let suffix = match self {
            Self::Migrator => "migrator",
            Self::Api => "api",
            Self::Worker => "worker",
            Self::ControlApi => "control_api",
            Self::ControlWorker => "control_worker",
            Self::Backup => "backup",
            Self::Monitor => "monitor",
        };
        format!("{prefix}_{suffix}")
    }

    /// How many sessions it may have under a budget of pooled connections.
    pub fn connection_limit(self, budget: u32) -> u32 {
        match self {
            Self::Api | Self::Worker => budget,
            // One for each instance, of which the budget can feed as many as it has connections; and as many again for
            // those that wait for a share or have just lost their connection.
            Self::ControlApi | Self::ControlWorker => budget.saturating_mul(2),
            // A run, one that waits for it, and an operator at work; or a few collectors.
            Self::Migrator | Self::Monitor => 4,
            // A dump with several jobs.
            Self::Backup => 8,
        }
    }

    /// What every session of it begins with.
    pub fn settings(self) -> &'static [(&'static str, &'static str)] {
        // The services give up earlier by themselves; these are for a process that no longer can.
        match self {
            Self::Migrator => &[
                ("search_path", SEARCH_PATH),
                // A migration takes as long as it takes.
                ("statement_timeout", "0"),
                ("idle_in_transaction_session_timeout", "60s"),
            ],
            Self::Api | Self::Monitor => &[
                ("search_path", SEARCH_PATH),
                ("statement_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "10s"),
                ("default_transaction_read_only", "on"),
            ],
            Self::Worker => &[
                ("search_path", SEARCH_PATH),
                ("statement_timeout", "35s"),
                ("idle_in_transaction_session_timeout", "15s"),
            ],
            Self::ControlApi | Self::ControlWorker => &[
                ("search_path", SEARCH_PATH),
                ("statement_timeout", "5s"),
                ("idle_in_transaction_session_timeout", "5s"),
            ],
            Self::Backup => &[
                ("search_path", SEARCH_PATH),
                // A dump with several jobs keeps a transaction open and idle.
                ("statement_timeout", "0"),
                ("idle_in_transaction_session_timeout", "0"),
                ("default_transaction_read_only", "on"),
            ],
        }
    }
}

/// Says once, if it is so, that nothing but the deployment itself keeps the budget.
pub(super) async fn tell_wall(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    static SAID: Once = Once::new();
    if SAID.is_completed() {
        return Ok(());
    }
    // Superusers have no limit, whatever it says.
    let query = "SELECT rolsuper OR rolconnlimit < 0 FROM pg_roles WHERE rolname = session_user";
    let open: Option<bool> = sqlx::query_scalar(query).fetch_optional(connection).await?;
    SAID.call_once(|| {
        if open == Some(true) {
            info!(
                "the database's role has no connection limit, so only the deployment itself keeps its budget; `rollcall \
                 roles plan` shows how the server would"
            );
        }
    });
    Ok(())
}

/// A name in SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
