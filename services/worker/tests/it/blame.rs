//! Who is at fault, asked with errors of the real server.

use std::borrow::Cow;
use std::time::Duration;

use common::db::{DbError, Pool};
use rollcall_worker::blame::ApplyError;

use crate::support::Database;

#[derive(Debug, PartialEq)]
enum Fault {
    Command,
    Contention,
    Deployment,
    Outage,
}

fn kind(error: &ApplyError) -> Fault {
    match error {
        ApplyError::Command { .. } => Fault::Command,
        ApplyError::Contention(_) => Fault::Contention,
        ApplyError::Deployment(_) => Fault::Deployment,
        ApplyError::Outage(_) => Fault::Outage,
        ApplyError::Fenced | ApplyError::Flood(_) => panic!("no statement raises it"),
    }
}

const USER: &str = "INSERT INTO users (id, email, name) VALUES (gen_random_uuid(), 'a@example.org', 'A')";

#[tokio::test]
async fn every_sqlstate_has_somebody_to_blame() {
    let mut database = Database::create().await;
    database.execute(USER).await;
    // Raised by a statement where that is easy, else by the server on demand.
    let raise = |state: &str| format!("DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$");
    let table = [
        ("a unique constraint", USER.to_owned(), "23505", Fault::Command),
        ("a check constraint", "UPDATE users SET version = 0".to_owned(), "23514", Fault::Command),
        (
            "a missing day of commands",
            "INSERT INTO commands (id, type, principal, accepted_at) VALUES (gen_random_uuid(), '', '', now())"
                .to_owned(),
            "23514",
            Fault::Deployment,
        ),
        ("a trigger's check", raise("23514"), "23514", Fault::Command),
        ("a missing value", "UPDATE users SET name = NULL".to_owned(), "23502", Fault::Command),
        ("division by zero", "SELECT 1 / 0".to_owned(), "22012", Fault::Command),
        ("text that is no date", "SELECT 'soon'::date".to_owned(), "22007", Fault::Command),
        ("a trigger's own word", raise("P0001"), "P0001", Fault::Command),
        ("a state that nobody foresaw", raise("XX000"), "XX000", Fault::Command),
        ("a missing table", "SELECT id FROM nowhere".to_owned(), "42P01", Fault::Deployment),
        ("a missing column", "SELECT nothing FROM users".to_owned(), "42703", Fault::Deployment),
        ("a syntax error", "SELEC 1".to_owned(), "42601", Fault::Deployment),
        ("a missing function", "SELECT absent()".to_owned(), "42883", Fault::Deployment),
        ("a missing privilege", "SET ROLE pg_monitor; SELECT id FROM users".to_owned(), "42501", Fault::Deployment),
        ("a missing schema", "CREATE TABLE nowhere.t ()".to_owned(), "3F000", Fault::Deployment),
        ("a changed result of a prepared statement", raise("0A000"), "0A000", Fault::Deployment),
        ("a refused role", raise("28000"), "28000", Fault::Deployment),
        ("a missing database", raise("3D000"), "3D000", Fault::Deployment),
        ("a serialization failure", raise("40001"), "40001", Fault::Contention),
        ("a deadlock", raise("40P01"), "40P01", Fault::Contention),
        ("a lock that is not free", raise("55P03"), "55P03", Fault::Contention),
        (
            "a statement that took too long",
            "SET statement_timeout = 10; SELECT pg_sleep(10)".to_owned(),
            "57014",
            Fault::Contention,
        ),
        ("a read-only server", "SET TRANSACTION READ ONLY; DELETE FROM users".to_owned(), "25006", Fault::Outage),
        ("an idle transaction that the server ended", raise("25P03"), "25P03", Fault::Outage),
        ("a long transaction that the server ended", raise("25P04"), "25P04", Fault::Outage),
        ("too many connections", raise("53300"), "53300", Fault::Outage),
        ("a full disk", raise("53100"), "53100", Fault::Outage),
        ("an input/output error", raise("58030"), "58030", Fault::Outage),
        ("a broken connection", raise("08006"), "08006", Fault::Outage),
        ("a shutdown", raise("57P01"), "57P01", Fault::Outage),
        ("a server that starts", raise("57P03"), "57P03", Fault::Outage),
    ];
    for (reason, sql, sqlstate, fault) in table {
        let raised = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("BEGIN; {sql}"))).execute(&mut database.conn).await;
        let error = raised.expect_err(reason);
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(Cow::into_owned);
        assert_eq!(code.as_deref(), Some(sqlstate), "{reason}");
        let error = ApplyError::from(error);
        assert_eq!(kind(&error), fault, "{reason}");
        if let ApplyError::Command { sqlstate: stored, .. } = &error {
            assert_eq!(stored, sqlstate, "{reason}");
        }
        database.execute("ROLLBACK; RESET ROLE; RESET statement_timeout").await;
    }
}

#[tokio::test]
async fn a_broken_constraint_is_named() {
    let mut database = Database::create().await;
    database.execute(USER).await;
    let error = sqlx::query(USER).execute(&mut database.conn).await.expect_err("a conflict");
    let ApplyError::Command { constraint, .. } = ApplyError::from(error) else { panic!("somebody else's fault") };
    assert_eq!(constraint.as_deref(), Some("users_email_key"));
}

#[tokio::test]
async fn a_session_that_was_ended_is_an_outage() {
    let mut database = Database::create().await;
    let ended = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(&mut database.conn).await;
    assert_eq!(kind(&ended.expect_err("no session").into()), Fault::Outage);
    let closed = sqlx::query("SELECT 1").execute(&mut database.conn).await;
    assert_eq!(kind(&closed.expect_err("no connection").into()), Fault::Outage);
}

#[tokio::test]
async fn a_result_of_another_shape_is_the_deployments_fault() {
    let mut database = Database::create().await;
    let decoded = sqlx::query_scalar::<_, i64>("SELECT 'text'").fetch_one(&mut database.conn).await;
    assert_eq!(kind(&decoded.expect_err("no number").into()), Fault::Deployment);
}

#[tokio::test]
async fn a_pool_that_gives_nothing_is_an_outage() {
    let database = Database::create().await;
    let pool = Pool::new(&database.settings(1), "worker-under-test", &[]).expect("a pool");
    let lease = pool.acquire(Duration::from_secs(20)).await.expect("a connection");
    let exhausted = pool.acquire(Duration::ZERO).await.expect_err("no place");
    assert_eq!(kind(&exhausted.into()), Fault::Outage);
    assert_eq!(kind(&DbError::Deadline(Duration::ZERO).into()), Fault::Outage);
    drop(lease);
}
