//! PostgreSQL: the pool, the migrations, and the monitor behind readiness.

mod clock;
mod connector;
mod locks;
mod migrations;
mod monitor;
mod pool;
mod relay;
pub mod roles;
mod session;

use std::time::Duration;

use sqlx::PgConnection;

pub use clock::{CLOCK_TOLERANCE, DatabaseClock};
pub use locks::lock_holders;
pub use migrations::{
    MigrateError, Migrated, MigrationStatus, migrate, migration_status, migrations_fingerprint, migrations_pending,
    required_version,
};
pub use monitor::{DatabaseState, Role, monitor};
pub(crate) use pool::{Heard, UNDER_WAY};
pub use pool::{Lease, Pool, PoolStatus, observe_pool};

use crate::config::DatabaseSettings;
use crate::health::CheckFailure;
use connector::Connector;
pub(crate) use session::Session;

/// How long one connect may take, TLS and authentication included.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Why a piece of work on the database gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// No connection came free in time.
    #[error("no connection came free within {0:?}")]
    Exhausted(Duration),
    /// The server could not be reached.
    #[error("the connection to the database at {address} failed")]
    Connect {
        /// Host and port.
        address: String,
        /// What the client library says.
        source: sqlx::Error,
    },
    /// A statement did not answer in time; its connection was closed.
    #[error("the database did not answer within {0:?}")]
    Deadline(Duration),
    /// A pooler is in front of the server, where a session of its own is needed.
    #[error(
        "a pooler in front of the database at {0} lends sessions by the transaction, and this needs one for itself; set \
         DATABASE_URL_DIRECT to the server"
    )]
    Pooler(String),
    /// The server replicates another one and takes no writes.
    #[error("the server at {0} is a read-only standby; the URL must lead to the primary")]
    Standby(String),
    /// A statement failed.
    #[error("a statement failed")]
    Statement(#[from] sqlx::Error),
}

impl DbError {
    /// Whether the server, the database or the role has no connection left (SQLSTATE 53300).
    pub(crate) fn refused_for_number(&self) -> bool {
        let Self::Connect { source, .. } = self else { return false };
        source.as_database_error().is_some_and(|error| error.code().as_deref() == Some("53300"))
    }

    /// What a caller of `/readyz` may know: no address, and nothing that the server or the client library says.
    pub(crate) fn check(&self) -> CheckFailure {
        let words = match self {
            Self::Connect { source, .. } if source.as_database_error().is_some() => {
                "the database refuses the connection".to_owned()
            }
            Self::Connect { .. } => "the database cannot be reached".to_owned(),
            Self::Pooler(_) => {
                "a pooler in front of the database lends sessions by the transaction, and this needs one for \
                 itself; set DATABASE_URL_DIRECT to the server"
                    .to_owned()
            }
            Self::Standby(_) => "the server is a read-only standby; the URL must lead to the primary".to_owned(),
            Self::Exhausted(_) | Self::Deadline(_) | Self::Statement(_) => self.to_string(),
        };
        CheckFailure::caused(words, self)
    }

    /// Whether the connection failed and not the statement: on another connection the same could succeed.
    pub fn lost_connection(&self) -> bool {
        match self {
            Self::Statement(sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => true,
            // Administrator or crash shutdown, connection exceptions, and sessions that the server ends for their idle or too
            // long transaction.
            Self::Statement(error) => {
                error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|state| {
                    state.starts_with("57P") || state.starts_with("08") || state == "25P03" || state == "25P04"
                })
            }
            Self::Exhausted(_) | Self::Connect { .. } | Self::Deadline(_) | Self::Pooler(_) | Self::Standby(_) => false,
        }
    }
}

/// Puts a deadline on a statement. The caller must drop the [`Lease`] when it fails, which every early return does.
///
/// # Errors
/// [`DbError::Deadline`], or [`DbError::Statement`].
pub async fn within<T>(
    deadline: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, DbError> {
    match tokio::time::timeout(deadline, statement).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(DbError::Deadline(deadline)),
    }
}

/// How often a connection outside any pool is tried. A request cannot wait for a busy server; an operator's command can.
const CONNECT_TRIES: u32 = 5;

/// Opens one connection outside any pool, with a session for itself.
///
/// # Errors
/// [`DbError::Connect`], [`DbError::Deadline`] or [`DbError::Pooler`].
pub async fn connect(settings: &DatabaseSettings, application_name: &str) -> Result<PgConnection, DbError> {
    let connector = Connector::new(settings, application_name, &[])?;
    let mut tries = 1;
    let session = loop {
        match connector.connect().await {
            Err(DbError::Deadline(_)) if tries < CONNECT_TRIES => tries += 1,
            Err(DbError::Deadline(each)) => return Err(DbError::Deadline(each * tries)),
            end => break end?,
        }
    };
    session.into_connection().ok_or_else(|| DbError::Pooler(settings.url.address()))
}
