//! Messages of other releases, of other clocks and of long ago, with the real executables: nothing is overtaken, and what
//! waits is applied or parked.

use std::path::Path;
use std::process::{Command as Program, Output};

use common::command::{
    Command, CommandId, CreateUser, Digest, Email, Envelope, Idempotency, Name, Principal, SuspendUser, UpdateUser,
    UserId,
};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::harness::{Process, System, eventually, problem};

/// Another program that publishes commands.
struct Publisher {
    // The channel ends with it.
    _connection: Connection,
    channel: Channel,
    exchange: String,
}

impl Publisher {
    /// The exchange exists once a service ran.
    async fn connect(system: &System) -> Self {
        let connection = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel, exchange: format!("{}commands", system.prefix) }
    }

    /// Publishes to the only partition, and waits until the message is there: the next one may come from an API.
    async fn send(&self, properties: BasicProperties, body: &[u8]) {
        let (exchange, options) = (self.exchange.as_str(), BasicPublishOptions::default());
        let publishing = self.channel.basic_publish(exchange.into(), "0".into(), options, body, properties);
        assert!(publishing.await.unwrap().await.unwrap().is_ack());
    }

    async fn command(&self, envelope: &Envelope) {
        self.send(properties(envelope), &envelope.encode()).await;
    }
}

/// As the API sets them.
fn properties(envelope: &Envelope) -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2).with_message_id(envelope.id.to_string().into())
}

/// A command that was accepted at this time, by the clock of its publisher.
fn accepted(accepted_at: OffsetDateTime, command: Command) -> Envelope {
    let (id, principal) = (CommandId::mint_at(accepted_at), Principal::anonymous());
    Envelope { id, accepted_at, principal, if_match: None, idempotency: None, command }
}

fn create(user_id: UserId, email: &str) -> Command {
    let (email, name) = (Email::parse(email).unwrap(), Name::parse("Test").unwrap());
    Command::CreateUser(CreateUser { user_id, email, name })
}

fn rename(user_id: UserId, name: &str) -> Command {
    Command::UpdateUser(UpdateUser { user_id, email: None, name: Some(Name::parse(name).unwrap()) })
}

fn suspend(user_id: UserId) -> Command {
    Command::SuspendUser(SuspendUser { user_id })
}

async fn write(system: &System, api: &Process, method: Method, path: &str, body: Value) -> Value {
    let request = system.client.request(method, api.url(path)).json(&body);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    answer.json().await.unwrap()
}

/// `rollcall dead-letters …`.
async fn operator(system: &System, arguments: &[&str]) -> Output {
    let mut command = Program::new(env!("CARGO_BIN_EXE_rollcall"));
    let environment = system.environment.iter().map(|(name, value)| (name, value));
    command.arg("dead-letters").args(arguments).env_clear().envs(environment);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The same, which must succeed.
async fn dead_letters(system: &System, arguments: &[&str]) -> String {
    let output = operator(system, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn one_partition() -> System {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    system
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_does_not_understand_is_not_overtaken() {
    let system = one_partition().await;
    let api = system.api().await;
    let publisher = Publisher::connect(&system).await;
    let ada = write(&system, &api, Method::POST, "/v1/users", json!({"email": "a@example.org", "name": "Ada"})).await;
    let user: UserId = ada["user_id"].as_str().unwrap().parse().unwrap();
    let (path, now) = (format!("/v1/users/{user}"), OffsetDateTime::now_utc());
    // A type and a condition of the next release, and a note that goes with them.
    let unknown = accepted(now, suspend(user));
    let mut merged: Value = serde_json::from_slice(&unknown.encode()).unwrap();
    merged["command"] = json!({"type": "users.merge", "data": {"user_id": user, "into": UserId::mint()}});
    merged["note"] = "of the next release".into();
    publisher.send(properties(&unknown), merged.to_string().as_bytes()).await;
    let conditional = accepted(now, rename(user, "Wrong"));
    let mut condition: Value = serde_json::from_slice(&conditional.encode()).unwrap();
    condition["if_suspended"] = true.into();
    publisher.send(properties(&conditional), condition.to_string().as_bytes()).await;
    let renamed = write(&system, &api, Method::PATCH, &path, json!({"name": "Last"})).await;

    let worker = system.worker().await;
    assert_eq!(system.outcome(&api, ada["id"].as_str().unwrap()).await["status"], "succeeded");
    let parked = system.outcome(&api, &unknown.id.to_string()).await;
    assert_eq!((&parked["status"], &parked["reason"]), (&json!("parked"), &json!("not-understood")));
    assert_eq!((&parked["type"], &parked["user_id"]), (&json!("users.merge"), &json!(user)));
    for id in [conditional.id.to_string(), renamed["id"].as_str().unwrap().to_owned()] {
        let behind = system.outcome(&api, &id).await;
        assert_eq!((&behind["reason"], &behind["blocked_by"]), (&json!("behind-another"), &json!(unknown.id)));
    }
    let name = unknown.id.to_string();
    let shown: Value = serde_json::from_str(&dead_letters(&system, &["show", &name, "--json"]).await).unwrap();
    assert_eq!(shown["payload"], merged, "as it came, for a worker that understands it");
    assert_eq!(shown["behind"].as_array().map(Vec::len), Some(2));
    // The operator gives both up, one after the other; the condition is not ignored on the way.
    let discarded = operator(&system, &["discard", &name, "--yes"]).await;
    assert!(String::from_utf8_lossy(&discarded.stdout).contains("failed again: not understood"), "{discarded:?}");
    let user: Value = system.get(&api, &path).await.json().await.unwrap();
    assert_eq!((&user["name"], &user["version"]), (&json!("Ada"), &json!(1)));
    dead_letters(&system, &["discard", &conditional.id.to_string(), "--yes"]).await;
    let user: Value = system.get(&api, &path).await.json().await.unwrap();
    assert_eq!((&user["name"], &user["version"]), (&json!("Last"), &json!(2)));
    drop(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_messages_that_are_not_understood_pauses_the_worker() {
    let system = one_partition().await;
    let api = system.api().await;
    let publisher = Publisher::connect(&system).await;
    for number in 0..260 {
        let unknown = accepted(OffsetDateTime::now_utc(), create(UserId::mint(), "x@example.org"));
        let body = String::from_utf8(unknown.encode()).unwrap().replace("users.create", "users.invite");
        // Half of them without anything that could be read.
        if number % 2 == 0 {
            publisher.send(properties(&unknown), body.as_bytes()).await;
        } else {
            publisher.send(BasicProperties::default(), format!("{{{number}").as_bytes()).await;
        }
    }
    let worker = system.worker_unready();
    let line = worker.unready("applying").await;
    assert!(line.contains("would be dead letters"), "{line}");
    assert!(system.count("SELECT count(*) FROM dead_letters WHERE command_id IS NOT NULL").await <= 100);
    drop(api);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_longer_than_outcomes_are_kept_is_applied() {
    let mut system = one_partition().await;
    system.set("COMMAND_RETENTION_DAYS", "1");
    let api = system.api().await;
    // Commands older than their deployment are refused, so this one is a week old.
    let age = "UPDATE deployment SET created_at = created_at - interval '7 days'";
    let aged = sqlx::query(age).execute(&mut system.database().await).await.unwrap();
    assert_eq!(aged.rows_affected(), 1);
    let publisher = Publisher::connect(&system).await;
    let (user, long_ago) = (UserId::mint(), OffsetDateTime::now_utc() - Duration::hours(60));
    for command in [create(user, "ada@example.org"), rename(user, "Ada"), suspend(user)] {
        publisher.command(&accepted(long_ago, command)).await;
    }
    let _worker = system.worker().await;
    let path = format!("/v1/users/{user}");
    let user = eventually("all is applied", async || {
        let user: Value = system.get(&api, &path).await.json().await.ok()?;
        (user["status"] == "suspended").then_some(user)
    })
    .await;
    assert_eq!((&user["name"], &user["version"]), (&json!("Ada"), &json!(3)));
    assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_a_window_apart_that_waited_together_take_effect_twice() {
    let mut system = one_partition().await;
    system.set("IDEMPOTENCY_WINDOW_HOURS", "1");
    let api = system.api().await;
    let publisher = Publisher::connect(&system).await;
    let (user, now) = (UserId::mint(), OffsetDateTime::now_utc());
    let keyed = |at, name| {
        let envelope = accepted(at, rename(user, name));
        let key = Digest::of_key(&envelope.principal, "rename");
        let fingerprint = Digest::of_request(&envelope.command, None);
        Envelope { idempotency: Some(Idempotency { key, fingerprint }), ..envelope }
    };
    let past = now - Duration::hours(2);
    let commands = [
        accepted(past, create(user, "ada@example.org")),
        keyed(past, "First"),
        keyed(past + Duration::minutes(1), "First"),
        accepted(past + Duration::minutes(2), rename(user, "Between")),
        keyed(now, "First"),
    ];
    for command in &commands {
        publisher.command(command).await;
    }
    let _worker = system.worker().await;
    for (command, version) in commands.iter().zip([1, 2, 2, 3, 4]) {
        let outcome = system.outcome(&api, &command.id.to_string()).await;
        assert_eq!((&outcome["status"], &outcome["user_version"]), (&json!("succeeded"), &json!(version)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_expired_in_the_broker_is_parked_and_says_so() {
    let system = one_partition().await;
    let api = system.api().await;
    let publisher = Publisher::connect(&system).await;
    let (user, now) = (UserId::mint(), OffsetDateTime::now_utc());
    // As a policy with a message TTL does while the worker is away.
    let expired = accepted(now, create(user, "ada@example.org"));
    publisher.send(properties(&expired).with_expiration("1".into()), &expired.encode()).await;
    let worker = system.worker().await;
    let outcome = system.outcome(&api, &expired.id.to_string()).await;
    assert_eq!((&outcome["status"], &outcome["reason"]), (&json!("parked"), &json!("expired")));
    let later = accepted(now, suspend(user));
    publisher.command(&later).await;
    assert_eq!(system.outcome(&api, &later.id.to_string()).await["reason"], "behind-another");
    assert!(dead_letters(&system, &["list"]).await.contains("message-ttl"));
    let ready: Value = reqwest::get(worker.url("/readyz")).await.unwrap().json().await.unwrap();
    let line = ready["checks"]["broker dead letters"].as_str().unwrap();
    assert!(line.starts_with("ok: ") && line.contains("1 expired") && line.contains("message-ttl"), "{line}");
    dead_letters(&system, &["replay", "--all", "--yes"]).await;
    let user: Value = system.get(&api, &format!("/v1/users/{user}")).await.json().await.unwrap();
    assert_eq!(user["status"], "suspended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_worker_makes_a_missing_table_again() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
    let drop_all = "DO $$
        DECLARE name text;
        BEGIN
            FOR name IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'commands'::regclass LOOP
                EXECUTE format('DROP TABLE %s', name);
            END LOOP;
        END $$";
    sqlx::raw_sql(drop_all).execute(&mut system.database().await).await.unwrap();
    for number in 0..20 {
        system.create(&api, &format!("u{number}@example.org")).await;
    }
    assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 0);
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_a_first_life_does_not_fit_the_second() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let sign_up = async |name: &str| {
        let body = json!({"email": format!("{name}@example.org"), "name": name});
        let request = system.client.post(api.url("/v1/users")).json(&body).header("prefer", "wait=20");
        let answer = request.header("idempotency-key", "sign-up").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
        (tag, answer.json::<Value>().await.unwrap())
    };
    let (first_tag, ada) = sign_up("ada").await;
    let path = format!("/v1/users/{}", ada["id"].as_str().unwrap());
    let change = |method: Method, tag: &str, body: Value| {
        let request = system.client.request(method, api.url(&path)).header("prefer", "wait=20");
        request.header("if-match", tag).json(&body).send()
    };
    // What is there already makes no version; the condition is checked all the same.
    let same = change(Method::PATCH, &first_tag, json!({"name": "ada"})).await.unwrap();
    assert_eq!((same.status(), same.headers()["etag"].to_str().unwrap()), (StatusCode::OK, first_tag.as_str()));
    assert_eq!(same.json::<Value>().await.unwrap(), ada);
    problem(change(Method::PATCH, "\"7\"", json!({"name": "ada"})).await.unwrap(), 412, "version-lost").await;
    let deleted = system.client.delete(api.url(&path)).header("prefer", "wait=20").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);

    let later = "UPDATE idempotency_keys SET accepted_at = accepted_at - interval '25 hours'";
    sqlx::raw_sql(later).execute(&mut system.database().await).await.unwrap();
    let (second_tag, eve) = sign_up("eve").await;
    assert_eq!((&eve["id"], &eve["version"], second_tag.as_str()), (&ada["id"], &json!(3), "\"3\""));
    let cached = system.client.get(api.url(&path)).header("if-none-match", &first_tag).send().await.unwrap();
    assert_eq!(cached.status(), StatusCode::OK, "not the page of the first life");
    problem(change(Method::PATCH, &first_tag, json!({"name": "Mallory"})).await.unwrap(), 412, "version-lost").await;
    let events = "SELECT string_agg(user_version::text, ' ' ORDER BY position) FROM events";
    let versions: String = sqlx::query_scalar(events).fetch_one(&mut system.database().await).await.unwrap();
    assert_eq!(versions, "1 2 3");
}

/// The clock of a worker decides nothing: one that is days behind or ahead makes no dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_wrong_clock_reorders_nothing() {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !Path::new(library).exists() {
        eprintln!("{library} is not installed: not tried");
        return;
    }
    for offset in ["-2d", "+40d"] {
        let mut system = one_partition().await;
        let api = system.api().await;
        let user =
            write(&system, &api, Method::POST, "/v1/users", json!({"email": "a@example.org", "name": "A"})).await;
        let path = format!("/v1/users/{}", user["user_id"].as_str().unwrap());
        let mut ids = vec![user["id"].as_str().unwrap().to_owned()];
        for number in 0..30 {
            let renamed = write(&system, &api, Method::PATCH, &path, json!({"name": format!("n{number}")})).await;
            ids.push(renamed["id"].as_str().unwrap().to_owned());
        }
        for (name, value) in [("LD_PRELOAD", library), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")] {
            system.set(name, value);
        }
        let wrong = system.worker_unready();
        // It has had its time: it applied them, or it is not ready and says why.
        eventually("it applies them, or says why not", async || {
            let applied = system.count("SELECT count(*) FROM commands WHERE status = 'succeeded'").await;
            let ready = reqwest::get(wrong.url("/readyz")).await.ok()?;
            (applied == 31 || ready.text().await.ok()?.contains("clock")).then_some(())
        })
        .await;
        for name in ["LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"] {
            system.environment.retain(|(known, _)| known != name);
        }
        let _healthy = system.worker().await;
        for (id, version) in ids.iter().zip(1..) {
            let outcome = system.outcome(&api, id).await;
            assert_eq!((&outcome["status"], &outcome["user_version"]), (&json!("succeeded"), &json!(version)));
        }
        assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 0);
    }
}
