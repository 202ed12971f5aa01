//! Who is at fault when a statement fails, by SQLSTATE, and so what happens next.

use common::db::DbError;
use sqlx::error::DatabaseError;

/// What went wrong, named after who has to act.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The data of one command: it is tried alone, and parked when it fails again.
    #[error("a command cannot be applied (SQLSTATE {sqlstate})")]
    Command {
        /// The SQLSTATE.
        sqlstate: String,
        /// The constraint that it broke, if it was one.
        constraint: Option<String>,
        /// What the server said.
        source: sqlx::Error,
    },
    /// Another transaction was in the way: again, after a jittered pause.
    #[error("another transaction was in the way")]
    Contention(#[source] Option<sqlx::Error>),
    /// Another instance owns the partition by now: nothing was applied, and the channel must be closed.
    #[error("the partition belongs to another instance by now")]
    Fenced,
    /// Most of the recent commands would be dead letters: nothing was applied, and the worker pauses.
    #[error("{0} of the recent commands would be dead letters: paused until their common cause is mended")]
    Flood(usize),
    /// The schema, a privilege or this build: the worker pauses until somebody mends it; nothing is dead-lettered.
    #[error("the database is not as this build needs it")]
    Deployment(#[source] sqlx::Error),
    /// The database cannot be reached, or is not up to work: the worker pauses until it is.
    #[error("the database is away")]
    Outage(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The table whose partitions are the days.
const COMMANDS: &str = "commands";
/// Check violation; without the name of a constraint: no partition of the table takes the row.
const CHECK_VIOLATION: &str = "23514";

impl ApplyError {
    /// Whether a day's table of commands is missing.
    pub fn is_missing_day(&self) -> bool {
        matches!(self, Self::Deployment(error) if error.as_database_error().is_some_and(is_missing_day))
    }
}

fn is_missing_day(error: &dyn DatabaseError) -> bool {
    error.code().as_deref() == Some(CHECK_VIOLATION) && error.constraint().is_none() && error.table() == Some(COMMANDS)
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                // What came back does not fit the types of this build.
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::Decode(_)
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::TypeNotFound { .. } => Self::Deployment(error),
                _ => Self::Outage(error.into()),
            };
        };
        let sqlstate = database.code().unwrap_or_default().into_owned();
        let constraint = database.constraint().map(str::to_owned);
        let class = sqlstate.get(..2).unwrap_or_default();
        if is_missing_day(database) {
            return Self::Deployment(error);
        }
        match (class, sqlstate.as_str()) {
            // Serialization failure, deadlock, lock not available, statement cancelled.
            ("40", _) | (_, "55P03" | "57014") => Self::Contention(Some(error)),
            // Connection, insufficient resources, operator intervention, system error, read-only transaction, and sessions that the
            // server ended because a transaction was idle or took too long.
            ("08" | "53" | "57" | "58", _) | (_, "25006" | "25P03" | "25P04") => Self::Outage(error.into()),
            // Syntax or access rule, feature not supported, authorization, schema or database name.
            ("42" | "0A" | "28" | "3F" | "3D", _) => Self::Deployment(error),
            // Integrity (23), data (22), and what nobody foresaw: tried alone, so that neighbours go on.
            _ => Self::Command { sqlstate, constraint, source: error },
        }
    }
}

impl From<DbError> for ApplyError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Statement(error) => error.into(),
            DbError::Exhausted(_)
            | DbError::Connect { .. }
            | DbError::Deadline(_)
            | DbError::Pooler(_)
            | DbError::Standby(_) => Self::Outage(error.into()),
        }
    }
}
