//! The monitor behind readiness.

use rollcall_common::db::{DatabaseState, Role, migrate, monitor, required_version};
use rollcall_common::health::{Ability, Health, ReadyWhen};
use rollcall_common::shutdown::Shutdown;

use crate::support::{GRACES, PATIENCE, connect, empty_database, eventually, settings, soon};

#[tokio::test]
async fn an_empty_database_is_too_old_until_it_was_migrated() {
    let database = empty_database().await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut state = monitor(&shutdown, &health, Ability::Read, settings(database.url(), 1), Role::Watch);
    let old = DatabaseState::SchemaTooOld { found: 0, needed: required_version() };
    soon("a look", state.wait_for(|state| *state == old)).await.expect("a monitor");
    let report = health.report();
    assert!(!report.ready);
    assert_eq!(report.checks["database"], "ok: answers");
    assert!(report.checks["schema"].contains("rollcall migrate run"), "{report:?}");

    let mut connection = connect(database.url()).await;
    migrate(&mut connection, PATIENCE).await.expect("a migration");
    soon("up", state.wait_for(|state| *state == DatabaseState::Up)).await.expect("a monitor");
    eventually("ready", async || health.report().ready).await;
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_connection_that_was_ended_is_replaced() {
    let database = crate::support::database().await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut state = monitor(&shutdown, &health, Ability::Read, settings(database.url(), 1), Role::Watch);
    soon("up", state.wait_for(|state| *state == DatabaseState::Up)).await.expect("a monitor");
    let mut connection = connect(database.url()).await;
    let end = "
        SELECT pg_terminate_backend(pid)
        FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'rollcall-monitor'
    ";
    let ended: Vec<bool> = sqlx::query_scalar(end).fetch_all(&mut connection).await.expect("an end");
    assert_eq!(ended, [true]);
    let down = |state: &DatabaseState| matches!(state, DatabaseState::Down(_));
    soon("down", state.wait_for(down)).await.expect("a monitor");
    soon("up again", state.wait_for(|state| *state == DatabaseState::Up)).await.expect("a monitor");
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_down_with_its_reason() {
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let nowhere = settings("postgres://u:hunter2@127.0.0.1:1/d", 1);
    let mut state = monitor(&shutdown, &health, Ability::Read, nowhere, Role::Watch);
    let looked = |state: &DatabaseState| *state != DatabaseState::Down("not checked yet".to_owned());
    let now = soon("a look", state.wait_for(looked)).await.expect("a monitor").clone();
    let DatabaseState::Down(reason) = now else { panic!("{now:?}") };
    assert!(reason.starts_with("the connection to the database at 127.0.0.1:1 failed: "), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
    assert_eq!(health.report().checks["database"], "failed: the database cannot be reached");
    shutdown.stop(GRACES).await.expect("a good end");
}
