//! Attacks with the credentials of one role on what others do.

use common::db::roles::ServerRole;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{Deployment, rollcall, sqlstate};
use crate::harness::eventually;

const FORBIDDEN: Option<&str> = Some("42501");

async fn count(conn: &mut PgConnection, of: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {of}"))).fetch_one(conn).await.unwrap()
}

/// Before, `leave_membership(ID)` removed the worker, `join_membership(ID, …)` took over its row, and a few invented workers
/// owned most partitions.
#[tokio::test(flavor = "multi_thread")]
async fn the_apis_control_role_cannot_speak_for_a_worker() {
    let mut deployment = Deployment::new().await;
    let (_api, _worker) = (deployment.api().await, deployment.worker().await);
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let worker: Uuid = sqlx::query_scalar("SELECT instance FROM members WHERE service = 'worker'")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let owned = format!("partitions WHERE owner = '{worker}'");
    let before = count(&mut admin, &owned).await;
    let mut intruder = deployment.roles.connect(ServerRole::ControlApi).await;

    for forbidden in [
        "SELECT join_as_worker('', 'x', '{}', NULL, 20, 1, 20, NULL, false)",
        "SELECT join_membership('', 'worker', 'x', '{}', NULL, 20, 1, 20, NULL, false)",
        "SELECT release_partitions('', '{0}')",
        "SELECT set_consumes('', false)",
        "SELECT set_connection_budget(8)",
        "SELECT redistribute()",
        "DELETE FROM members",
    ] {
        assert_eq!(sqlstate(intruder.execute(forbidden).await).as_deref(), FORBIDDEN, "{forbidden}");
    }
    // Its id proves nothing.
    for harmless in [
        format!("SELECT leave_membership(uuid_send('{worker}'))"),
        format!("SELECT beat_membership(uuid_send('{worker}'), 1, 0, 0, 0, 0, 0, '0')"),
    ] {
        intruder.execute(AssertSqlSafe(harmless)).await.unwrap();
    }
    assert_eq!(count(&mut admin, &owned).await, before);
    assert_eq!(count(&mut admin, "members").await, 2);
}

/// Before, the instance's row was taken over with its id, and as soon as the intruder's session ended, the worker's sessions were
/// ended as those of an instance that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_invented_instance_takes_no_session_of_another_with_it() {
    let mut deployment = Deployment::new().await;
    let (_api, worker) = (deployment.api().await, deployment.worker().await);
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let (name, pid): (Uuid, i32) = sqlx::query_as("SELECT instance, control_pid FROM members WHERE service = 'worker'")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let shared: serde_json::Value = sqlx::query_scalar(
        "SELECT to_jsonb(deployment) - ARRAY['one', 'id', 'broker_mark', 'created_at', 'event_source'] FROM deployment",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    let mut intruder = deployment.roles.connect(ServerRole::ControlApi).await;
    let called = format!("SET application_name = 'rollcall-control/{name}'");
    intruder.execute(AssertSqlSafe(called)).await.unwrap();
    let join = "SELECT reason, joined FROM join_as_api(uuid_send($1), 'x', $2, NULL, 1, 1, 1, NULL, true)";
    let joined: (Option<String>, Option<i64>) =
        sqlx::query_as(join).bind(name).bind(shared).fetch_one(&mut intruder).await.unwrap();
    assert!(joined.1.is_some(), "{joined:?}");
    intruder.close().await.unwrap();
    eventually("the invented instance is gone", async || {
        (count(&mut admin, "members WHERE version = 'x'").await == 0).then_some(())
    })
    .await;
    let still: (Uuid, i32) = sqlx::query_as("SELECT instance, control_pid FROM members WHERE service = 'worker'")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    assert_eq!(still, (name, pid));
    assert!(!worker.output().contains("reaped"), "{}", worker.output());
}

/// Before, every heartbeat and join failed from then on: others' statements compute with the numbers of each member.
#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_of_one_member_make_no_statement_of_others_fail() {
    let mut deployment = Deployment::new().await;
    let (api, worker) = (deployment.api().await, deployment.worker().await);
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let shared: serde_json::Value = sqlx::query_scalar(
        "SELECT to_jsonb(deployment) - ARRAY['one', 'id', 'broker_mark', 'created_at', 'event_source'] FROM deployment",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    let mut intruder = deployment.roles.connect(ServerRole::ControlApi).await;
    let join = "SELECT joined FROM join_as_api('secret', repeat('x', 10000), $1, NULL, 2147483647, 2147483647, 2147483647, NULL, true)";
    let epoch: Option<i64> = sqlx::query_scalar(join).bind(shared).fetch_one(&mut intruder).await.unwrap();
    let most = "2147483647, 2147483647, 2147483647, 2147483647, 2147483647, interval '178000000 years'";
    let least = "-2147483648, -2147483648, -2147483648, -2147483648, -2147483648, interval '-178000000 years'";
    for numbers in [most, least, most] {
        let beat = format!("SELECT alive FROM beat_membership('secret', {}, {numbers})", epoch.unwrap());
        let alive: bool = sqlx::query_scalar(AssertSqlSafe(beat)).fetch_one(&mut intruder).await.unwrap();
        assert!(alive);
    }
    let beats = "SELECT count(*) FROM members WHERE version <> repeat('x', 100) AND beat_at > $1";
    let since: time::OffsetDateTime =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut admin).await.unwrap();
    eventually("the others beat on", async || {
        let count: i64 = sqlx::query_scalar(beats).bind(since).fetch_one(&mut admin).await.unwrap();
        (count == 2).then_some(())
    })
    .await;
    for process in [&api, &worker] {
        process.ready().await;
        assert!(!process.output().contains("reaped") && !process.output().contains("22008"), "{}", process.output());
    }
}

/// Before, a joiner that named the backup's role, which may hold few connections, made that the budget of all.
#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_does_not_choose_the_role_by_which_the_budget_is_computed() {
    let deployment = Deployment::new().await;
    let mut intruder = deployment.roles.connect(ServerRole::ControlApi).await;
    let shared = json!({
        "partitions": 16, "broker_prefix": "x.", "command_retention_days": 30, "idempotency_window_hours": 24,
        "database_connection_budget": null,
    });
    let join = "SELECT joined, reason FROM join_as_api('secret', 'x', $1, NULL, 1, 1, 50, $2, true)";
    let joining = sqlx::query_as(join).bind(shared).bind(ServerRole::Backup.name(&deployment.roles.prefix));
    let joined: (Option<i64>, Option<String>) = joining.fetch_one(&mut intruder).await.unwrap();
    assert!(joined.0.is_some(), "{joined:?}");
    let budget: i32 = sqlx::query_scalar("SELECT budget FROM membership").fetch_one(&mut intruder).await.unwrap();
    // The API's role may hold 20, the backup's 8.
    assert!(budget > 8, "{budget}");
}

/// Before, the worker waited for the advisory lock of `ensure_command_day`, and the migrator for its own.
#[tokio::test(flavor = "multi_thread")]
async fn an_advisory_lock_of_any_role_holds_up_neither_commands_nor_migrations() {
    let deployment = Deployment::new().await;
    let mut held = Vec::new();
    for role in ServerRole::ALL {
        let mut conn = deployment.roles.connect(role).await;
        let lock = "SELECT pg_advisory_lock_shared(hashtext('ensure_command_day')), pg_advisory_lock_shared($1)";
        sqlx::query(lock).bind(i64::from_be_bytes(*b"rollcall")).execute(&mut conn).await.unwrap();
        held.push(conn);
    }
    let mut worker = deployment.roles.connect(ServerRole::Worker).await;
    worker.execute("SET lock_timeout = '5s'").await.unwrap();
    let made = worker.execute("SELECT ensure_command_day((now() AT TIME ZONE 'UTC')::date)").await;
    assert_eq!(sqlstate(made), None);
    let migrated = rollcall(&deployment, &["migrate", "run", "--patience", "1"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
}

/// Before, `drop_command_days('9999-12-31')` dropped every table, today's included, and `ensure_command_day` made any.
#[tokio::test(flavor = "multi_thread")]
async fn the_workers_role_cannot_take_the_audit_trail_away() {
    let mut deployment = Deployment::new().await;
    let (api, _worker) = (deployment.api().await, deployment.worker().await);
    deployment.system.create(&api, "ada@example.org").await;
    // Only the deployment's retention keeps it.
    let mut migrator = deployment.roles.connect(ServerRole::Migrator).await;
    migrator.execute("SELECT make_command_day((now() AT TIME ZONE 'UTC')::date - 10)").await.unwrap();
    let mut admin = PgConnection::connect(&deployment.roles.admin).await.unwrap();
    let tables = "pg_inherits WHERE inhparent = 'commands'::regclass";
    let before = (count(&mut admin, "commands").await, count(&mut admin, tables).await);
    assert!(before.0 > 0);
    let mut intruder = deployment.roles.connect(ServerRole::Worker).await;
    intruder.execute("SET default_transaction_read_only = off").await.unwrap();
    for forbidden in [
        "UPDATE commands SET principal = 'key:bob'",
        "UPDATE commands SET accepted_at = now()",
        "DELETE FROM commands",
        "TRUNCATE commands",
        "SELECT make_command_day('9999-12-31')",
        "UPDATE command_days SET used_at = '-infinity'",
        "UPDATE deployment SET command_retention_days = 1",
    ] {
        assert_eq!(sqlstate(intruder.execute(forbidden).await).as_deref(), FORBIDDEN, "{forbidden}");
    }
    admin.execute("UPDATE command_days SET used_at = '-infinity'").await.unwrap();
    for days in [i32::MIN, -1, 0, 1] {
        let dropped: Result<i32, _> =
            sqlx::query_scalar("SELECT drop_command_days($1)").bind(days).fetch_one(&mut intruder).await;
        assert!(matches!(dropped, Ok(0)), "{days}: {dropped:?}");
    }
    for day in ["'0044-03-15 BC'", "'2000-01-01'", "'20000-01-01'", "'-infinity'", "'infinity'", "current_date + 3"] {
        let make = format!("SELECT ensure_command_day({day}) IS NULL");
        let refused: bool = sqlx::query_scalar(AssertSqlSafe(make)).fetch_one(&mut intruder).await.unwrap();
        assert!(refused, "{day}");
    }
    assert_eq!((count(&mut admin, "commands").await, count(&mut admin, tables).await), before);
    deployment.system.create(&api, "bob@example.org").await;
}
