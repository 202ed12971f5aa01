//! The outbox: events that are in the table and not in the memory of the worker that has to publish them, and marks.

use std::process::Command;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::Subscriber;
use crate::harness::{Process, System, eventually, with_content};
use crate::proxy::Proxy;

const UNPUBLISHED: &str = "SELECT count(*) FROM events WHERE published_at IS NULL";

/// Raises for one name, like a constraint that nobody thought of.
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'no user of this name' USING ERRCODE = '22023';
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users
        FOR EACH ROW WHEN (NEW.name = 'Poison') EXECUTE FUNCTION refuse();
";

/// Lets a commit wait as long as this lock is held.
const GATE: &str = "
    CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(7);
        RETURN NULL;
    END
    $$;
    CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate();
";
const AT_THE_GATE: &str = "
    SELECT count(*)
    FROM pg_locks
    WHERE locktype = 'advisory' AND objid = 7 AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
";

async fn execute(system: &System, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&mut system.database().await).await.unwrap();
}

/// Renames a user without waiting for it; gives the command's id.
async fn rename(system: &System, api: &Process, path: &str, name: &str) -> String {
    let request = with_content(system.client.request(Method::PATCH, api.url(path)), &json!({ "name": name }));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

async fn all_published(system: &System) {
    eventually("every event is published", async || (system.count(UNPUBLISHED).await == 0).then_some(())).await;
}

/// The versions of the next events of one user.
async fn versions(subscriber: &Subscriber, number: usize) -> Vec<i64> {
    let mut versions = Vec::new();
    for _ in 0..number {
        let event: Value = serde_json::from_slice(&subscriber.next().await.data).unwrap();
        versions.push(event["data"]["version"].as_i64().unwrap());
    }
    versions
}

async fn replay_all(system: &System) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let environment = system.environment.iter().map(|(name, value)| (name, value));
    command.args(["dead-letters", "replay", "--all", "--yes"]).env_clear().envs(environment);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_earlier_owner_are_published_first_and_in_order() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let subscriber = Subscriber::bind(&system, "users.#").await;
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    for name in ["Two", "Three"] {
        let command = rename(&system, &api, &path, name).await;
        system.outcome(&api, &command).await;
    }
    assert_eq!(versions(&subscriber, 3).await, [1, 2, 3]);
    assert!(worker.terminate().await.success());
    // As a worker leaves them that is killed before it could publish.
    execute(&system, "UPDATE events SET published_at = NULL").await;
    for name in ["Four", "Five"] {
        rename(&system, &api, &path, name).await;
    }
    let _worker = system.worker().await;
    assert_eq!(versions(&subscriber, 5).await, [1, 2, 3, 4, 5]);
    all_published(&system).await;
    assert!(subscriber.waiting().await.is_none(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_loses_no_event() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let direct: Url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.parse().unwrap();
    let network = Proxy::start(&direct).await.unwrap();
    let api = system.api().await;
    // The worker stays a member: only the connections of its pool fail.
    system.set("DATABASE_URL_DIRECT", direct.as_str());
    system.set("DATABASE_URL", network.url(&direct).as_str());
    let _worker = system.worker().await;
    let subscriber = Subscriber::bind(&system, "users.#").await;
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    all_published(&system).await;
    execute(&system, GATE).await;
    let mut gate = system.database().await;
    sqlx::raw_sql("SELECT pg_advisory_lock(7)").execute(&mut gate).await.unwrap();
    rename(&system, &api, &path, "Two").await;
    eventually("the commit waits", async || (system.count(AT_THE_GATE).await == 1).then_some(())).await;
    network.silence();
    sqlx::raw_sql("SELECT pg_advisory_unlock(7)").execute(&mut gate).await.unwrap();
    eventually("the commit is done", async || {
        (system.count("SELECT count(*) FROM events WHERE user_version = 2").await == 1).then_some(())
    })
    .await;
    network.cut();
    network.open();
    rename(&system, &api, &path, "Three").await;
    assert_eq!(versions(&subscriber, 3).await, [1, 2, 3]);
    all_published(&system).await;
    assert!(subscriber.waiting().await.is_none(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_published_before_the_next_command_of_its_user() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let subscriber = Subscriber::bind(&system, "users.#").await;
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    execute(&system, TRIGGER).await;
    let guilty = rename(&system, &api, &path, "Poison").await;
    assert_eq!(system.outcome(&api, &guilty).await["status"], "parked");
    execute(&system, "ALTER TABLE users DISABLE TRIGGER refuse").await;
    replay_all(&system).await;
    rename(&system, &api, &path, "Three").await;
    assert_eq!(versions(&subscriber, 3).await, [1, 2, 3]);

    // Nothing comes after it.
    execute(&system, "ALTER TABLE users ENABLE TRIGGER refuse").await;
    let guilty = rename(&system, &api, &path, "Poison").await;
    assert_eq!(system.outcome(&api, &guilty).await["status"], "parked");
    execute(&system, "ALTER TABLE users DISABLE TRIGGER refuse").await;
    replay_all(&system).await;
    assert_eq!(versions(&subscriber, 1).await, [4]);
    all_published(&system).await;
    assert!(subscriber.waiting().await.is_none(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_marks_what_was_confirmed() {
    const USERS: usize = 40;
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let subscriber = Subscriber::bind(&system, "users.#").await;
    let create = async |number: usize| {
        let body = json!({ "email": format!("u{number}@example.org"), "name": "Test" });
        assert_eq!(system.post(&api, "/v1/users", "respond-async", &body).await.status(), StatusCode::ACCEPTED);
    };
    join_all((0..USERS).map(create)).await;
    assert_eq!(versions(&subscriber, USERS).await, [1; USERS]);
    assert!(worker.terminate().await.success());
    assert_eq!(system.count(UNPUBLISHED).await, 0);
    let _worker = system.worker().await;
    create(USERS).await;
    let event: Value = serde_json::from_slice(&subscriber.next().await.data).unwrap();
    assert_eq!(event["data"]["email"], format!("u{USERS}@example.org"), "none is published again");
    all_published(&system).await;
    assert!(subscriber.waiting().await.is_none(), "each once");
}
