//! Versioned migrations: a release step of its own, never run by a service.
//!
//! # Why not the library's lock?
//! It waits inside `pg_advisory_lock`, and a waiting session holds a snapshot that `CREATE INDEX CONCURRENTLY` waits for:
//! the two deadlock. And any session of the database can hold an advisory lock, whatever its role. Here the session that
//! migrates is named in a row that only the schema's owner can write; it ends with the session. Another migrator looks
//! again and again.
//!
//! # Why a lock timeout?
//! Any role that may read a table can keep its schema from changing, by a transaction that stays open. A migration that
//! waited for that would make every later statement wait behind it. So it waits briefly, is undone, and is tried again; in the
//! end the error names the sessions in the way.
//!
//! # Why does a migrator grant?
//! A new table must not be one that the services may not read. Run as the migrator of a deployment with roles of its own, it
//! brings their privileges in line with the list in [`roles`]; run as anybody else it leaves them alone.
//!
//! # Why is a newer schema fine?
//! During a release the old services run on the new schema, and a rollback must be able to start on it.

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::migrate::{Migration, Migrator};
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use super::{lock_holders, roles};

const LOCK_POLL: Duration = Duration::from_millis(250);
/// How long a migration may keep others waiting behind it for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// Lock not available.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The session that migrates, by the pid of its backend and the start of that: a pid comes again.
const LOCK_TABLE: &str = "
    CREATE TABLE IF NOT EXISTS migration_lock (
        id boolean NOT NULL DEFAULT true,
        pid integer,
        backend_started_at timestamptz,
        CONSTRAINT migration_lock_pkey PRIMARY KEY (id),
        CONSTRAINT migration_lock_id_check CHECK (id)
    )
";

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
    #[error("another migration ({holder}) has been running for {waited:?}; wait for it, or end it, and run this again")]
    Busy {
        /// How long was waited.
        waited: Duration,
        /// Its session.
        holder: String,
    },
    /// Transactions of others kept a table from being changed.
    #[error(
        "the migration waited {waited:?} for locks that others hold ({holders}); end their transactions and run this again"
    )]
    Blocked {
        /// How long was waited.
        waited: Duration,
        /// Their sessions.
        holders: String,
    },
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
    let result = run(connection, patience).await;
    let unlock = sqlx::query("UPDATE migration_lock SET pid = NULL WHERE pid = pg_backend_pid()");
    let unlocked = unlock.execute(connection).await;
    // The run's own error comes first: one that ended the connection ended the unlocking, too.
    let migrated = result?;
    unlocked?;
    Ok(migrated)
}

async fn run(connection: &mut PgConnection, patience: Duration) -> Result<Migrated, MigrateError> {
    let give_up_at = Instant::now() + patience;
    let applied = migrations_pending(connection).await?;
    let done = applied_versions(connection).await?;
    for migration in EMBEDDED.iter().filter(|migration| !done.contains(&migration.version)) {
        while let Err(error) = run_to(connection, migration).await {
            // Without a transaction a part of it can have happened.
            if migration.no_tx || !is_locked(&error) {
                return Err(error);
            }
            if Instant::now() >= give_up_at {
                let holders = lock_holders(connection, LOCK_TIMEOUT).await?;
                return Err(MigrateError::Blocked { waited: patience, holders });
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }
    // Compares what ran before, too.
    migrator().run_direct(None, connection, false).await?;
    let version = applied_versions(connection).await?.into_iter().max().unwrap_or_default();
    let granted = roles::grant(connection).await?;
    Ok(Migrated { applied, version, granted })
}

fn migrator() -> Migrator {
    let mut migrator = Migrator { migrations: EMBEDDED.migrations.clone(), ..Migrator::DEFAULT };
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
}

/// Runs the migrations up to this one.
async fn run_to(connection: &mut PgConnection, migration: &Migration) -> Result<(), MigrateError> {
    // An index that is built concurrently waits for transactions that began before it, however long they take.
    let timeout = if migration.no_tx { Duration::ZERO } else { LOCK_TIMEOUT };
    set_lock_timeout(connection, timeout).await?;
    let result = migrator().run_direct(Some(migration.version), connection, false).await;
    let reset = set_lock_timeout(connection, Duration::ZERO).await;
    result?;
    Ok(reset?)
}

async fn set_lock_timeout(connection: &mut PgConnection, timeout: Duration) -> Result<(), sqlx::Error> {
    let set = sqlx::query("SELECT set_config('lock_timeout', $1, false)").bind(timeout.as_millis().to_string());
    set.execute(connection).await.map(drop)
}

fn is_locked(error: &MigrateError) -> bool {
    use sqlx::migrate::MigrateError as Library;
    let MigrateError::Migration(Library::ExecuteMigration(error, _) | Library::Execute(error)) = error else {
        return false;
    };
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(LOCK_NOT_AVAILABLE))
}

async fn lock(connection: &mut PgConnection, patience: Duration) -> Result<(), MigrateError> {
    let give_up_at = Instant::now() + patience;
    let mut known = lock_table_exists(connection).await?;
    loop {
        if !known {
            // Two that make it at the same moment can collide in the catalog, where `IF NOT EXISTS` does not help.
            let made = sqlx::query(LOCK_TABLE).execute(&mut *connection).await;
            known = lock_table_exists(connection).await?;
            if !known {
                made?;
            }
        }
        let Some(holder) = try_lock(connection).await? else { return Ok(()) };
        if Instant::now() >= give_up_at {
            return Err(MigrateError::Busy { waited: patience, holder });
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

async fn lock_table_exists(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT to_regclass('migration_lock') IS NOT NULL").fetch_one(connection).await
}

/// Names this session as the one that migrates, unless another one that lives is; gives that one.
async fn try_lock(connection: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    sqlx::query("INSERT INTO migration_lock DEFAULT VALUES ON CONFLICT DO NOTHING").execute(&mut *tx).await?;
    sqlx::query("SELECT FROM migration_lock FOR UPDATE").execute(&mut *tx).await?;
    // The server's list of sessions is read here for the first time in this transaction, and so after the row was locked. When a
    // session began is hidden from roles without rights on its own.
    let holder = sqlx::query_scalar(
        "
        SELECT format('process %s of the role %s, %s', holder.pid, usename, nullif(application_name, ''))
        FROM migration_lock
        JOIN pg_stat_activity AS holder USING (pid)
        WHERE (backend_start IS NULL OR backend_start = backend_started_at) AND holder.pid <> pg_backend_pid()
        ",
    )
    .fetch_optional(&mut *tx)
    .await?;
    if holder.is_none() {
        let take = "
            UPDATE migration_lock
            SET pid = pg_backend_pid(),
                backend_started_at = (SELECT backend_start FROM pg_stat_activity WHERE pg_stat_activity.pid = pg_backend_pid())
        ";
        sqlx::query(take).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(holder)
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
