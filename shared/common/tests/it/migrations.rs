//! Migrations: again, side by side, and on a schema of a later release.

use std::time::Duration;

use rollcall_common::db::{
    MigrateError, MigrationStatus, migrate, migration_status, migrations_pending, required_version,
};
use sqlx::{Executor, PgConnection};

use crate::support::{PATIENCE, connect, database, empty_database};

const LATER: &str = "
    INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
    VALUES ($1, 'later', true, '', 0)
";

async fn history(connection: &mut PgConnection) -> Vec<i64> {
    let versions = sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version");
    versions.fetch_all(connection).await.expect("the history")
}

#[tokio::test]
async fn an_empty_database_is_brought_to_the_newest_version() {
    let database = empty_database().await;
    let mut connection = connect(database.url()).await;
    let pending = migrations_pending(&mut connection).await.expect("a list");
    assert!(pending[0].starts_with("0001 "), "{pending:?}");
    let migrated = migrate(&mut connection, PATIENCE).await.expect("a migration");
    assert_eq!(migrated.applied, pending);
    assert_eq!(migrated.version, required_version());
    assert_eq!(migrations_pending(&mut connection).await.expect("a list"), Vec::<String>::new());
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = database().await;
    let mut connection = connect(database.url()).await;
    let before = history(&mut connection).await;
    let migrated = migrate(&mut connection, PATIENCE).await.expect("a migration");
    assert_eq!(migrated.applied, Vec::<String>::new());
    assert_eq!(migrated.version, required_version());
    assert_eq!(history(&mut connection).await, before);
}

#[tokio::test]
async fn two_migrators_at_once_both_succeed_and_each_migration_runs_once() {
    let database = empty_database().await;
    let (mut one, mut two) = (connect(database.url()).await, connect(database.url()).await);
    let (first, second) = tokio::join!(migrate(&mut one, PATIENCE), migrate(&mut two, PATIENCE));
    let (first, second) = (first.expect("a migration"), second.expect("a migration"));
    assert_eq!((first.version, second.version), (required_version(), required_version()));
    let applied = first.applied.len() + second.applied.len();
    assert_eq!(applied, history(&mut one).await.len());
    assert!(first.applied.is_empty() || second.applied.is_empty(), "they took turns");
}

#[tokio::test]
async fn a_schema_of_a_later_release_is_left_alone() {
    let database = database().await;
    let mut connection = connect(database.url()).await;
    let later = required_version() + 1000;
    sqlx::query(LATER).bind(later).execute(&mut connection).await.expect("a row");
    let migrated = migrate(&mut connection, PATIENCE).await.expect("a migration");
    assert_eq!(migrated.applied, Vec::<String>::new());
    assert_eq!(migrated.version, later);
}

#[tokio::test]
async fn a_migration_that_was_changed_after_it_ran_is_refused_and_the_lock_is_free_again() {
    let database = database().await;
    let mut connection = connect(database.url()).await;
    let change = "UPDATE _sqlx_migrations SET checksum = 'changed' WHERE version = 1";
    sqlx::query(change).execute(&mut connection).await.expect("a change");
    let refused = migrate(&mut connection, PATIENCE).await.expect_err("a refusal");
    assert!(matches!(refused, MigrateError::Migration(_)), "{refused}");
    let mut other = connect(database.url()).await;
    let refused = migrate(&mut other, Duration::ZERO).await.expect_err("a refusal");
    assert!(matches!(refused, MigrateError::Migration(_)), "the lock was kept: {refused}");
}

#[tokio::test]
async fn a_migrator_that_waits_too_long_names_the_one_that_runs() {
    let database = database().await;
    let mut holder = connect(database.url()).await;
    let pid: i32 = sqlx::query_scalar(
        "UPDATE migration_lock
         SET pid = pg_backend_pid(),
             backend_started_at = (SELECT backend_start FROM pg_stat_activity WHERE pg_stat_activity.pid = pg_backend_pid())
         RETURNING pid",
    )
    .fetch_one(&mut holder)
    .await
    .expect("the lock");
    let mut waiter = connect(database.url()).await;
    let busy = migrate(&mut waiter, Duration::ZERO).await.expect_err("busy");
    assert!(busy.to_string().contains(&format!("process {pid} of the role rollcall")), "{busy}");
    drop(holder);
    let migrated = migrate(&mut waiter, PATIENCE).await.expect("the lock of a session that ended is free");
    assert_eq!(migrated.version, required_version());
}

#[tokio::test]
async fn an_advisory_lock_keeps_no_migrator_waiting() {
    let database = empty_database().await;
    let mut stranger = connect(database.url()).await;
    // That of an earlier build.
    let locking = sqlx::query("SELECT pg_advisory_lock($1)").bind(i64::from_be_bytes(*b"rollcall"));
    locking.execute(&mut stranger).await.expect("a lock");
    let mut migrator = connect(database.url()).await;
    let migrated = migrate(&mut migrator, Duration::ZERO).await.expect("a migration");
    assert_eq!(migrated.version, required_version());
}

#[tokio::test]
async fn a_migration_that_waits_for_a_readers_lock_names_the_reader() {
    let database = database().await;
    let (mut reader, mut migrator) = (connect(database.url()).await, connect(database.url()).await);
    // As if the last migration had not run: it changes a table that is being read.
    let undo = "ALTER TABLE partitions DROP COLUMN decided_through; DELETE FROM _sqlx_migrations WHERE version = 10";
    migrator.execute(undo).await.expect("undone");
    reader.execute("BEGIN; LOCK TABLE partitions IN ACCESS SHARE MODE").await.expect("a lock");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut reader).await.expect("a pid");
    let blocked = migrate(&mut migrator, Duration::ZERO).await.expect_err("blocked");
    let said = blocked.to_string();
    assert!(matches!(blocked, MigrateError::Blocked { .. }), "{said}");
    assert!(said.contains(&format!("process {pid}")) && said.contains("AccessShareLock on partitions"), "{said}");
    reader.execute("ROLLBACK").await.expect("no lock");
    let migrated = migrate(&mut migrator, PATIENCE).await.expect("a migration");
    assert_eq!(migrated.applied, ["0010 add partitions decided through"]);
}

#[tokio::test]
async fn the_status_names_what_was_edited_what_did_not_end_and_what_is_newer() {
    let database = database().await;
    let mut connection = connect(database.url()).await;
    assert_eq!(migration_status(&mut connection).await.expect("a status"), MigrationStatus::default());
    let later = required_version() + 1000;
    for statement in [
        "UPDATE _sqlx_migrations SET checksum = 'edited' WHERE version = 2",
        "UPDATE _sqlx_migrations SET success = false WHERE version = 3",
        "DELETE FROM _sqlx_migrations WHERE version = 4",
    ] {
        sqlx::query(statement).execute(&mut connection).await.expect("a change");
    }
    sqlx::query(LATER).bind(later).execute(&mut connection).await.expect("a row");
    let status = migration_status(&mut connection).await.expect("a status");
    assert!(status.edited.len() == 1 && status.edited[0].starts_with("0002 "), "{status:?}");
    assert!(status.unfinished.len() == 1 && status.unfinished[0].starts_with("0003 "), "{status:?}");
    assert!(status.pending.len() == 1 && status.pending[0].starts_with("0004 "), "{status:?}");
    assert_eq!(status.newer, [later]);
}
