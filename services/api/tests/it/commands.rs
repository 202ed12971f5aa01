//! The status of commands: pending, decided, forgotten, made up.

use std::time::{Duration, Instant};

use common::command::{CommandId, Principal};
use common::shutdown::{Graces, Phase};
use poem::Body;
use rollcall_api::problem::ProblemKind::{CommandExpired, CommandNotFound};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::{App, Database, RETENTION, command_id_key, request};

/// Less than what the clients here are ready to wait, and far more than a busy machine takes.
const WAIT: Duration = Duration::from_secs(25);

/// An id as the API mints it for everybody.
fn minted() -> CommandId {
    minted_at(OffsetDateTime::now_utc())
}

fn minted_at(time: OffsetDateTime) -> CommandId {
    CommandId::mint_at(time).tagged(&command_id_key(), &Principal::anonymous())
}

struct Row<'a> {
    id: Uuid,
    user_id: Uuid,
    status: &'a str,
    reason: Option<&'a str>,
    version: Option<i64>,
}

async fn insert(conn: &mut PgConnection, row: Row<'_>) {
    sqlx::query("SELECT ensure_command_day((now() AT TIME ZONE 'UTC')::date)")
        .execute(&mut *conn)
        .await
        .expect("a table");
    let inserted = sqlx::query(
        "INSERT INTO commands (id, user_id, type, principal, accepted_at, status, reason, user_version)
         VALUES ($1, $2, 'users.update', 'anonymous', '2026-01-02T03:04:05Z', $3, $4, $5)",
    )
    .bind(row.id)
    .bind(row.user_id)
    .bind(row.status)
    .bind(row.reason)
    .bind(row.version)
    .execute(conn)
    .await;
    inserted.expect("a row");
}

#[tokio::test]
async fn an_id_that_nobody_minted_is_not_found() {
    let database = Database::create().await;
    let app = App::over(database.url());
    for (reason, id) in [
        ("version 5", Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"x")),
        ("version 4", "9c5b94b1-35ad-49bb-b118-8e8fc24abf80".parse().expect("a UUID")),
        ("nil", Uuid::nil()),
        ("version 7 without our tags", CommandId::mint().into()),
        ("of the far future", CommandId::mint_at(OffsetDateTime::now_utc() + time::Duration::days(9_000)).into()),
        ("of long ago", CommandId::mint_at(OffsetDateTime::UNIX_EPOCH).into()),
    ] {
        let started = Instant::now();
        let answer = app.get_with(&format!("/v1/commands/{id}"), &[("prefer", "wait=30")]).await;
        answer.assert_problem(CommandNotFound, &[], reason);
        assert!(started.elapsed() < WAIT, "{reason}: nobody waits for it");
    }
}

#[tokio::test]
async fn a_command_without_an_outcome_is_pending_while_it_could_have_one() {
    let database = Database::create().await;
    let app = App::over(database.url());
    let now = OffsetDateTime::now_utc();
    for id in [minted(), minted_at(now - RETENTION + Duration::from_mins(1))] {
        let answer = app.get(&format!("/v1/commands/{id}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (200, Some("1")), "{id}");
        let command = answer.json();
        assert_eq!(command["status"], "pending");
        assert_eq!(command["id"], id.to_string());
        assert_eq!(command["links"]["self"], format!("/v1/commands/{id}"));
    }
}

#[tokio::test]
async fn a_command_older_than_the_retention_is_gone() {
    let database = Database::create().await;
    let app = App::over(database.url());
    let id = minted_at(OffsetDateTime::now_utc() - RETENTION - Duration::from_mins(1));
    let started = Instant::now();
    let answer = app.get_with(&format!("/v1/commands/{id}"), &[("prefer", "wait=30")]).await;
    answer.assert_problem(CommandExpired, &[], "a minute too old");
    assert!(started.elapsed() < WAIT, "nobody waits for it");
}

#[tokio::test]
async fn a_decided_command_is_shown_with_its_outcome() {
    let mut database = Database::create().await;
    let app = App::over(database.url());
    let user_id = Uuid::now_v7();
    let rows = [
        ("succeeded", "succeeded", None, Some(4)),
        ("deleted, so no version is left", "succeeded", None, None),
        ("rejected", "rejected", Some("email-taken"), None),
        ("parked", "parked", Some("22P05"), None),
        ("rejected for a reason of a newer worker", "rejected", Some("from-the-future"), None),
    ];
    for (case, status, reason, version) in rows {
        let id = CommandId::mint();
        insert(&mut database.conn, Row { id: id.into(), user_id, status, reason, version }).await;
        let answer = app.get(&format!("/v1/commands/{id}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (200, None), "{case}");
        let command = answer.json();
        let shown = if case.contains("newer") { "parked" } else { status };
        assert_eq!(command["status"], shown, "{case}");
        assert_eq!(command["reason"].as_str(), reason, "{case}");
        assert_eq!(command["user_version"].as_i64(), version, "{case}");
        assert_eq!(command["type"], "users.update", "{case}");
        assert_eq!(command["accepted_at"], "2026-01-02T03:04:05Z", "{case}");
        assert_eq!(command["links"]["user"], format!("/v1/users/{user_id}"), "{case}");
        assert!(command["applied_at"].is_string(), "{case}");
    }
}

#[tokio::test]
async fn a_command_of_another_publisher_is_found_once_it_is_decided() {
    let mut database = Database::create().await;
    let id = CommandId::mint().into();
    insert(
        &mut database.conn,
        Row { id, user_id: Uuid::now_v7(), status: "succeeded", reason: None, version: Some(1) },
    )
    .await;
    assert_eq!(App::over(database.url()).get(&format!("/v1/commands/{id}")).await.json()["status"], "succeeded");
}

#[tokio::test]
async fn the_wait_that_a_client_prefers_is_read_as_rfc_7240_writes_it() {
    let mut database = Database::create().await;
    let app = App::over(database.url());
    let id = minted();
    let row = Row { id: id.into(), user_id: Uuid::now_v7(), status: "succeeded", reason: None, version: Some(1) };
    insert(&mut database.conn, row).await;
    let rows: &[(&str, &[&str], Option<&str>)] = &[
        ("none", &[], None),
        ("plain", &["wait=5"], Some("wait=5")),
        ("zero", &["wait=0"], Some("wait=0")),
        ("capped", &["wait=31"], Some("wait=30")),
        ("capped, however large", &["wait=99999999999999999999"], Some("wait=30")),
        ("names know no letter case", &["WAIT=5"], Some("wait=5")),
        ("blanks", &["  wait = 5 "], Some("wait=5")),
        ("quoted", &["wait=\"5\""], Some("wait=5")),
        ("behind another", &["respond-async, wait=5"], Some("wait=5")),
        ("in a second line", &["respond-async", "wait=5"], Some("wait=5")),
        ("the first counts", &["wait=5, wait=6"], Some("wait=5")),
        ("with a parameter", &["wait=5; x=\"y\""], Some("wait=5")),
        ("another's parameter", &["respond-async; wait=5"], None),
        ("inside a quoted text", &["x=\"a, wait=5\""], None),
        ("behind a quoted text with an escaped quote", &[r#"x="\", wait=6", wait=5"#], Some("wait=5")),
        ("others only", &["handling=lenient, return=minimal"], None),
    ];
    for (reason, lines, applied) in rows {
        let headers: Vec<_> = lines.iter().map(|line| ("prefer", *line)).collect();
        let answer = app.get_with(&format!("/v1/commands/{id}"), &headers).await;
        assert_eq!(answer.status, 200, "{reason}: {}", answer.text());
        assert_eq!(answer.header("preference-applied"), *applied, "{reason}");
    }
    let lines: [(&str, &[u8]); 1] = [("prefer", b"x=\"\xe9\", wait=5")];
    let answer = app.send(request("GET", &format!("/v1/commands/{id}"), &lines, Body::empty())).await;
    assert_eq!(answer.header("preference-applied"), Some("wait=5"), "bytes that are no text beside it");
}

#[tokio::test]
async fn whoever_waits_hears_of_the_outcome_without_a_hint() {
    let mut database = Database::create().await;
    let app = App::over(database.url());
    let id = minted();
    let row = Row { id: id.into(), user_id: Uuid::now_v7(), status: "succeeded", reason: None, version: Some(1) };
    let path = format!("/v1/commands/{id}");
    let asking = app.get_with(&path, &[("prefer", "wait=30")]);
    let started = Instant::now();
    let (answer, ()) = tokio::join!(asking, insert(&mut database.conn, row));
    assert_eq!(answer.json()["status"], "succeeded");
    assert!(started.elapsed() < WAIT);
}

#[tokio::test]
async fn whoever_waits_is_answered_when_the_instance_drains() {
    let database = Database::create().await;
    let app = App::over(database.url());
    let path = format!("/v1/commands/{}", minted());
    let started = Instant::now();
    let asking = app.get_with(&path, &[("prefer", "wait=30")]);
    let stopping = app.shutdown.stop(Graces { drain: Duration::from_secs(5), finish: Duration::from_secs(30) });
    let watching = async {
        let answer = asking.await;
        (answer, app.shutdown.phase())
    };
    let ((answer, phase), stopped) = tokio::join!(watching, stopping);
    assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (200, Some("pending")));
    assert_eq!(phase, Phase::Draining, "answered within the drain delay");
    assert!(started.elapsed() < WAIT);
    stopped.expect("a clean stop");
}
