//! Commands of others: what a key learns of them by `GET /v1/commands/{command_id}`.

use std::time::{Duration, Instant};

use common::access::{ApiKey, Scope};
use common::command::{CommandId, IdOrigin, Principal};
use rollcall_api::auth::settings::AuthSettings;
use rollcall_api::problem::ProblemKind::{self, CommandExpired, CommandNotFound};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::support::{Answer, App, Database, RETENTION, command_id_key};

/// Less than what a client here is ready to wait, and far more than a busy machine takes.
const WAIT: Duration = Duration::from_secs(25);

struct Callers {
    /// Sends the commands, and may not read users.
    alice: String,
    /// May not read users, either.
    bob: String,
    /// May read users.
    carol: String,
}

async fn key(conn: &mut PgConnection, client: &str, scope: Scope) -> String {
    let key = ApiKey::mint();
    sqlx::query("INSERT INTO api_keys (id, client, hash, scopes) VALUES ($1, $2, $3, ARRAY[$4])")
        .bind(key.id())
        .bind(client)
        .bind(key.hash())
        .bind(scope.as_str())
        .execute(conn)
        .await
        .expect("a row");
    format!("Bearer {}", key.expose())
}

async fn system() -> (Database, App, Callers) {
    let mut database = Database::create().await;
    let callers = Callers {
        alice: key(&mut database.conn, "alice", Scope::UsersWrite).await,
        bob: key(&mut database.conn, "bob", Scope::UsersWrite).await,
        carol: key(&mut database.conn, "carol", Scope::UsersRead).await,
    };
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    (database, app, callers)
}

/// An id as the API mints it for alice; another one until bob's tag is not the same by chance.
fn of_alice(at: OffsetDateTime) -> CommandId {
    let [alice, bob] = ["key:alice", "key:bob"].map(|name| Principal::parse(name).expect("a principal"));
    let mut ids = std::iter::repeat_with(|| CommandId::mint_at(at).tagged(&command_id_key(), &alice));
    ids.find(|id| id.tagged(&command_id_key(), &bob) != *id).expect("most are")
}

/// An id that nobody minted; another one until it does not look like the deployment's by chance.
fn made_up(at: OffsetDateTime) -> CommandId {
    let mut ids = std::iter::repeat_with(|| CommandId::mint_at(at));
    ids.find(|id| id.origin(&command_id_key(), &Principal::anonymous()) == IdOrigin::Unknown).expect("most are")
}

async fn decide(conn: &mut PgConnection, id: CommandId) {
    sqlx::query("SELECT ensure_command_day((now() AT TIME ZONE 'UTC')::date)")
        .execute(&mut *conn)
        .await
        .expect("a table");
    sqlx::query(
        "INSERT INTO commands (id, user_id, type, principal, accepted_at, status, user_version)
         VALUES ($1, $2, 'users.suspend', 'key:alice', now(), 'succeeded', 2)",
    )
    .bind(Uuid::from(id))
    .bind(Uuid::now_v7())
    .execute(conn)
    .await
    .expect("a row");
}

async fn ask(app: &App, id: impl ToString, bearer: &str) -> Answer {
    let headers = [("authorization", bearer), ("prefer", "wait=0")];
    app.get_with(&format!("/v1/commands/{}", id.to_string()), &headers).await
}

/// The document without what differs from request to request.
fn document(answer: &Answer, kind: ProblemKind, reason: &str) -> Value {
    let mut problem = answer.assert_problem(kind, &[], reason);
    problem.as_object_mut().map(|members| members.remove("trace_id"));
    problem
}

#[tokio::test]
async fn a_command_is_shown_to_its_principal_and_to_readers_only() {
    let (mut database, app, callers) = system().await;
    let (decided, pending) = (of_alice(OffsetDateTime::now_utc()), of_alice(OffsetDateTime::now_utc()));
    decide(&mut database.conn, decided).await;
    let nothing =
        document(&ask(&app, made_up(OffsetDateTime::now_utc()), &callers.bob).await, CommandNotFound, "a made-up id");
    for (id, status) in [(decided, "succeeded"), (pending, "pending")] {
        for (caller, bearer) in [("its principal", &callers.alice), ("a reader", &callers.carol)] {
            let answer = ask(&app, id, bearer).await;
            assert_eq!(answer.json()["status"], status, "{caller}");
        }
        let answer = ask(&app, id, &callers.bob).await;
        assert_eq!(document(&answer, CommandNotFound, status), nothing, "as if there were none");
        assert!(!answer.text().contains(&id.to_string()), "{}", answer.text());
    }
    let to_reader = ask(&app, made_up(OffsetDateTime::now_utc()), &callers.carol).await;
    assert_eq!(document(&to_reader, CommandNotFound, "a made-up id"), nothing, "to a reader, too");
}

#[tokio::test]
async fn nobody_waits_for_a_command_of_another_principal() {
    let (_database, app, callers) = system().await;
    let path = format!("/v1/commands/{}", of_alice(OffsetDateTime::now_utc()));
    let started = Instant::now();
    let answer = app.get_with(&path, &[("authorization", &callers.bob), ("prefer", "wait=30")]).await;
    answer.assert_problem(CommandNotFound, &[], "of alice");
    assert!(started.elapsed() < WAIT);
}

#[tokio::test]
async fn a_lost_command_is_shown_to_its_principal_and_to_readers_only() {
    let (mut database, app, callers) = system().await;
    sqlx::query("INSERT INTO partitions (number, decided_through) VALUES (0, now() - interval '1 minute')")
        .execute(&mut database.conn)
        .await
        .expect("a partition");
    let lost = of_alice(OffsetDateTime::now_utc() - Duration::from_mins(2));
    let forgotten = of_alice(OffsetDateTime::now_utc() - RETENTION - Duration::from_mins(1));
    for bearer in [&callers.alice, &callers.carol] {
        assert_eq!(ask(&app, lost, bearer).await.json()["status"], "unknown");
        ask(&app, forgotten, bearer).await.assert_problem(CommandExpired, &[], "too old");
    }
    for id in [lost, forgotten] {
        ask(&app, id, &callers.bob).await.assert_problem(CommandNotFound, &[], "of alice");
    }
    let made_up = made_up(OffsetDateTime::now_utc() - Duration::from_mins(2));
    ask(&app, made_up, &callers.carol).await.assert_problem(CommandNotFound, &[], "never minted");
}
