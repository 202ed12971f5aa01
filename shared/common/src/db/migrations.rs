//! Versioned migrations: a release step of its own, never run by a service.
//!
//! # Why not the library's lock?
//! It waits inside `pg_advisory_lock`, and a waiting session holds a snapshot that `CREATE INDEX CONCURRENTLY` waits for:
//! the two deadlock. Here a migrator asks with `pg_try_advisory_lock` and asks again.
//!
//! # Why does a migrator grant?
//! A new table must not be one that the services may not read. Run as the migrator of a deployment with roles of its own, it
//! brings their privileges in line with the list in [`roles`]; run as anybody else it leaves them alone.
//!
//! # Why is a newer schema fine?
//! During a release the old services run on the new schema, and a rollback must be able to start on it.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use sqlx::migrate::{Migration, Migrator};

use super::roles;

/// The lock that makes migrators take turns: "rollcall" in ASCII.
const LOCK: i64 = 0x726f_6c6c_6361_6c6c;
const LOCK_POLL: Duration = Duration::from_millis(250);

static EMBEDDED: Migrator = sqlx::migrate!("../../migrations");

/// Why a migration run stopped.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The database refused or could not be asked.
    #[error("failed to ask the database")]
    Database(#[from] sqlx::Error),
    /// A migration failed or was changed after it had run.
    #[error("failed to migrate")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The database cannot hold every name.
    #[error(
        "the database is encoded in {0}, which cannot hold every name; create it with ENCODING 'UTF8' TEMPLATE template0"
    )]
    Encoding(String),
    /// Another migrator kept the lock.
    #[error("another migration has been running for {0:?}; wait for it, or end it, and run this again")]
    Busy(Duration),
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The migrations that ran now, in order, as `version description`.
    pub applied: Vec<String>,
    /// The schema's version after it.
    pub version: i64,
    /// How many statements it took to bring the roles' privileges in line.
    pub granted: usize,
}

/// The newest migration that this build knows: what its services need at least.
pub fn required_version() -> i64 {
    EMBEDDED.iter().map(|m| m.version).max().unwrap_or_default()
}

/// Changes with every migration; names the template of test databases.
pub fn migrations_fingerprint() -> String {
    let mut hasher = Sha256::new();
    for migration in EMBEDDED.iter() {
        hasher.update(&migration.checksum);
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// How a schema stands to this build. A migration is written as `version description`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationStatus {
    /// Those that have not run, in order.
    pub pending: Vec<String>,
    /// Those that ran with another text than this build has.
    pub edited: Vec<String>,
    /// Those that began and did not end.
    pub unfinished: Vec<String>,
    /// The versions that ran and that this build does not know.
    pub newer: Vec<i64>,
}

/// Compares the migrations that have run with those of this build.
///
/// # Errors
/// [`MigrateError::Database`].
pub async fn migration_status(connection: &mut PgConnection) -> Result<MigrationStatus, MigrateError> {
    let mut status =
        MigrationStatus { pending: migrations_pending(&mut *connection).await?, ..MigrationStatus::default() };
    if !history_exists(&mut *connection).await? {
        return Ok(status);
    }
    let history = sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version");
    let history: Vec<(i64, Vec<u8>, bool)> = history.fetch_all(connection).await?;
    for (version, checksum, success) in history {
        let Some(known) = EMBEDDED.iter().find(|migration| migration.version == version) else {
            status.newer.push(version);
            continue;
        };
        if !success {
            status.unfinished.push(title(known));
        } else if known.checksum[..] != checksum[..] {
            status.edited.push(title(known));
        }
    }
    status.pending.retain(|pending| !status.unfinished.contains(pending));
    Ok(status)
}

fn title(migration: &Migration) -> String {
    format!("{:04} {}", migration.version, migration.description)
}

/// The migrations that have not run, in order, as `version description`.
///
/// # Errors
/// [`MigrateError::Database`].
pub async fn migrations_pending(connection: &mut PgConnection) -> Result<Vec<String>, MigrateError> {
    let done = applied_versions(connection).await?;
    Ok(EMBEDDED.iter().filter(|m| !done.contains(&m.version)).map(title).collect())
}

/// Runs every migration that has not run yet, after waiting up to `patience` for another migrator.
///
/// # Errors
/// See [`MigrateError`]; what ran before the failing migration stays.
pub async fn migrate(connection: &mut PgConnection, patience: Duration) -> Result<Migrated, MigrateError> {
    let encoding: String =
        sqlx::query_scalar("SELECT current_setting('server_encoding')").fetch_one(&mut *connection).await?;
    if encoding != "UTF8" {
        return Err(MigrateError::Encoding(encoding));
    }
    lock(connection, patience).await?;
    let result = run(connection).await;
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(connection).await?;
    result
}

async fn run(connection: &mut PgConnection) -> Result<Migrated, MigrateError> {
    let applied = migrations_pending(connection).await?;
    let mut migrator = Migrator { migrations: EMBEDDED.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true).set_locking(false);
    migrator.run_direct(None, connection, false).await?;
    let version = applied_versions(connection).await?.into_iter().max().unwrap_or_default();
    let granted = roles::grant(connection).await?;
    Ok(Migrated { applied, version, granted })
}

async fn lock(connection: &mut PgConnection, patience: Duration) -> Result<(), MigrateError> {
    let give_up_at = tokio::time::Instant::now() + patience;
    loop {
        let taken: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut *connection).await?;
        if taken {
            return Ok(());
        }
        if tokio::time::Instant::now() >= give_up_at {
            return Err(MigrateError::Busy(patience));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn applied_versions(connection: &mut PgConnection) -> Result<Vec<i64>, sqlx::Error> {
    if !history_exists(&mut *connection).await? {
        return Ok(Vec::new());
    }
    sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success").fetch_all(connection).await
}

/// Whether any migration has run. Not checked at compile time, like the rest of this file: the table does not exist before that.
async fn history_exists(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(connection).await
}

/// The schema's version; 0 when no migration has run.
///
/// # Errors
/// As sqlx gives them.
pub(super) async fn current_version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    Ok(applied_versions(connection).await?.into_iter().max().unwrap_or_default())
}
