//! Replies of the worker to the API: a waited write is answered from them, a lost one costs a read, and a forged one
//! is not believed.

use common::command::{
    CommandKeys, CommandOutcome, CommandReply, Envelope, OutcomeStatus, REPLY_TYPE, SIGNATURE_HEADER, UserId,
};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ExchangeDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use time::OffsetDateTime;
use url::Url;

use crate::auth::{bearing, key};
use crate::harness::{Process, System, eventually, problem};
use crate::proxy::Proxy;

const KEY: &str = "7b0c5d3e9a1f48264b6e8d0f2c4a69573e1b8d7f6c5a49382716054f3e2d1c0b";
const OTHER_KEY: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

const REPLIES: &str = "rollcall_api_replies_total";

/// Acts as a worker: takes the commands of the only partition and replies, without a database.
struct Replier {
    _connection: Connection,
    channel: Channel,
    exchange: String,
    commands: Consumer,
}

impl Replier {
    /// Consumes the partition once the API has a queue for replies.
    async fn start(system: &System, api: &Process) -> Self {
        listening(system, api).await;
        let connection = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (queue, options) = (format!("{}commands.0", system.prefix), BasicConsumeOptions::default());
        let commands = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
        Self { _connection: connection, channel, exchange: format!("{}replies", system.prefix), commands }
    }

    /// The next command, and the queue of the API that waits.
    async fn next(&mut self) -> (Envelope, ShortString) {
        let delivery = self.commands.next().await.unwrap().unwrap();
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        let reply_to = delivery.properties.reply_to().clone();
        (Envelope::decode(&delivery.data).unwrap(), reply_to.unwrap())
    }

    async fn reply(&self, reply_to: &ShortString, key: Option<&str>, reply: CommandReply) {
        let body = CommandReply::encode_all(&[reply]).remove(0);
        let mut headers = FieldTable::default();
        if let Some(key) = key {
            let signature = CommandKeys::parse(key).unwrap().sign(reply_to.as_str(), REPLY_TYPE, &body).unwrap();
            headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(signature.into()));
        }
        let properties = BasicProperties::default().with_headers(headers);
        let (exchange, options) = (self.exchange.as_str().into(), BasicPublishOptions::default());
        let sending = self.channel.basic_publish(exchange, reply_to.clone(), options, &body, properties);
        sending.await.unwrap().await.unwrap();
    }

    /// The answer to a request that waits, and whose command gets this outcome.
    async fn answer(
        &mut self,
        request: RequestBuilder,
        outcome: impl FnOnce(UserId) -> CommandOutcome,
    ) -> (Response, Envelope) {
        let replying = async {
            let (command, reply_to) = self.next().await;
            // A hint finds no row, and so ends nothing.
            self.reply(&reply_to, None, CommandReply { id: command.id, outcome: None }).await;
            let outcome = Some(outcome(command.command.user_id()));
            self.reply(&reply_to, None, CommandReply { id: command.id, outcome }).await;
            command
        };
        let (answer, command) = tokio::join!(request.header("prefer", "wait=30").send(), replying);
        (answer.unwrap(), command)
    }
}

/// Waits until the API has a queue for replies.
async fn listening(system: &System, api: &Process) {
    eventually("a queue for replies", async || {
        (metric(system, api, "rollcall_api_reply_hints", "").await? == "1").then_some(())
    })
    .await;
}

/// The value of a metric with this label.
async fn metric(system: &System, api: &Process, name: &str, label: &str) -> Option<String> {
    let metrics = system.get(api, "/metrics").await.text().await.ok()?;
    let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(label))?;
    line.rsplit(' ').next().map(str::to_owned)
}

fn user(id: UserId, version: i64, email: &str) -> Value {
    let at = "2026-11-05T12:34:56.789012Z";
    json!({
        "id": id.to_string(), "email": email, "name": "Ada", "status": "active", "version": version,
        "created_at": at, "updated_at": at,
    })
}

fn succeeded(user_version: Option<i64>, user: Option<&Value>) -> CommandOutcome {
    let user: Option<Box<RawValue>> = user.map(|user| to_raw_value(user).unwrap());
    let (status, applied_at) = (OutcomeStatus::Succeeded, OffsetDateTime::now_utc());
    CommandOutcome { status, reason: None, applied_at, user_version, user }
}

fn failed(status: OutcomeStatus, reason: &str) -> CommandOutcome {
    CommandOutcome { status, reason: Some(reason.to_owned()), ..succeeded(None, None) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waited_write_is_answered_from_the_reply() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let api = system.api().await;
    let mut worker = Replier::start(&system, &api).await;
    let request = |method: Method, path: &str| system.client.request(method, api.url(path));

    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let create = request(Method::POST, "/v1/users").json(&body);
    let one = |id| succeeded(Some(1), Some(&user(id, 1, "ada@example.org")));
    let (answer, command) = worker.answer(create, one).await;
    assert_eq!((answer.status(), &answer.headers()["etag"]), (StatusCode::CREATED, &"\"1\"".parse().unwrap()));
    let id = command.command.user_id();
    assert_eq!(answer.headers()["location"], format!("/v1/users/{id}"));
    assert_eq!(answer.json::<Value>().await.unwrap(), user(id, 1, "ada@example.org"));

    let path = format!("/v1/users/{id}");
    let change = request(Method::PATCH, &path).json(&json!({"email": "ada@example.net"}));
    let two = |id| succeeded(Some(2), Some(&user(id, 2, "ada@example.net")));
    let (answer, _) = worker.answer(change, two).await;
    assert_eq!((answer.status(), &answer.headers()["etag"]), (StatusCode::OK, &"\"2\"".parse().unwrap()));
    assert_eq!(answer.json::<Value>().await.unwrap(), user(id, 2, "ada@example.net"));

    let suspend = || request(Method::POST, &format!("{path}/suspend"));
    let rejected = |_| failed(OutcomeStatus::Rejected, "already-suspended");
    let (answer, command) = worker.answer(suspend(), rejected).await;
    let rejection = problem(answer, 409, "already-suspended").await;
    assert_eq!(rejection["command_id"], command.id.to_string());
    let (answer, _) = worker.answer(suspend(), |_| failed(OutcomeStatus::Parked, "22P05")).await;
    problem(answer, 409, "command-parked").await;

    // A reply without the user, or with another one, says only that the change was made: the user is read.
    for said in [None, Some(user(UserId::mint(), 3, "eve@example.org")), Some(json!({"id": id.to_string()}))] {
        let (answer, command) = worker.answer(suspend(), |_| succeeded(Some(3), said.as_ref())).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "there is no row to read");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!((&answer["id"], &answer["status"]), (&json!(command.id), &json!("succeeded")));
        assert_eq!((&answer["type"], &answer["user_version"]), (&json!("users.suspend"), &json!(3)));
    }
    let (answer, _) = worker.answer(request(Method::DELETE, &path), |_| succeeded(None, None)).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);

    assert_eq!(metric(&system, &api, "rollcall_api_waiting", "").await.as_deref(), Some("0"));
    assert_eq!(system.count("SELECT count(*) FROM users").await, 0);
    assert_eq!(system.count("SELECT count(*) FROM commands").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_shows_no_user_to_a_key_that_may_only_write() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    system.set("AUTH", "keys");
    let api = system.api().await;
    let mut worker = Replier::start(&system, &api).await;
    let writer = bearing(&key(&system, "sync", "users:write").await);
    let request = writer.post(api.url("/v1/users")).json(&json!({"email": "ada@example.org", "name": "Ada"}));
    let one = |id| succeeded(Some(1), Some(&user(id, 1, "ada@example.org")));
    let (answer, command) = worker.answer(request, one).await;
    assert_eq!((answer.status(), &answer.headers()["etag"]), (StatusCode::OK, &"\"1\"".parse().unwrap()));
    let text = answer.text().await.unwrap();
    assert!(!text.contains("example.org") && text.contains(&command.id.to_string()), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_a_forged_reply_is_not_believed() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    system.set("COMMAND_KEY", KEY);
    let api = system.api().await;
    let mut worker = Replier::start(&system, &api).await;
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let replying = async {
        let (command, reply_to) = worker.next().await;
        let user_id = command.command.user_id();
        let says = |email| {
            let outcome = Some(succeeded(Some(1), Some(&user(user_id, 1, email))));
            CommandReply { id: command.id, outcome }
        };
        // The queue keeps their order: the first that is believed is the answer.
        worker.reply(&reply_to, None, says("mallory@example.org")).await;
        worker.reply(&reply_to, Some(OTHER_KEY), says("mallory@example.org")).await;
        worker.reply(&reply_to, Some(KEY), says("ada@example.org")).await;
    };
    let (answer, ()) = tokio::join!(system.post(&api, "/v1/users", "wait=30", &body), replying);
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.json::<Value>().await.unwrap()["email"], "ada@example.org");
    let unsigned = metric(&system, &api, REPLIES, r#"kind="unsigned""#).await;
    assert_eq!(unsigned.as_deref(), Some("2"));
    assert_eq!(api.output().matches("a reply is not believed").count(), 1, "a line a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_the_worker_signs_its_replies() {
    let mut system = System::prepare().await;
    system.set("COMMAND_KEY", KEY);
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    listening(&system, &api).await;
    eventually("a reply is believed", async || {
        let body = json!({"email": format!("{}@example.org", UserId::mint()), "name": "Ada"});
        assert_eq!(system.post(&api, "/v1/users", "wait=30", &body).await.status(), StatusCode::CREATED);
        metric(&system, &api, REPLIES, r#"kind="outcome""#).await
    })
    .await;
    assert_eq!(metric(&system, &api, REPLIES, r#"kind="unsigned""#).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_costs_a_read() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    listening(&system, &api).await;
    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let exchange = format!("{}replies", system.prefix);
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    for number in 0..3 {
        let body = json!({"email": format!("u{number}@example.org"), "name": "Ada"});
        let answer = system.post(&api, "/v1/users", "wait=30", &body).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    assert_eq!(metric(&system, &api, REPLIES, "").await, None, "none came");
}

#[tokio::test(flavor = "multi_thread")]
async fn waited_writes_are_answered_while_the_api_cannot_reach_the_database() {
    let mut system = System::prepare().await;
    let _worker = system.worker().await;
    let url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let server = Url::parse(&url).unwrap();
    let network = Proxy::start(&server).await.unwrap();
    system.set("DATABASE_URL", network.url(&server).as_str());
    let api = system.api().await;
    listening(&system, &api).await;
    let ada = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", ada["id"].as_str().unwrap());

    network.silence();
    let request =
        |method: Method, path: &str| system.client.request(method, api.url(path)).header("prefer", "wait=30").send();
    problem(request(Method::POST, &format!("{path}/reactivate")).await.unwrap(), 409, "not-suspended").await;
    let suspended = request(Method::POST, &format!("{path}/suspend")).await.unwrap();
    assert_eq!((suspended.status(), &suspended.headers()["etag"]), (StatusCode::OK, &"\"2\"".parse().unwrap()));
    let suspended: Value = suspended.json().await.unwrap();
    assert_eq!((&suspended["id"], &suspended["status"]), (&ada["id"], &json!("suspended")));
    assert_eq!(suspended["created_at"], ada["created_at"]);
    assert!(suspended["suspended_at"].is_string(), "{suspended}");
    let body = json!({"email": "bob@example.org", "name": "Bob"});
    let created = system.post(&api, "/v1/users", "wait=30", &body).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.json::<Value>().await.unwrap()["email"], "bob@example.org");
    assert_eq!(request(Method::DELETE, &path).await.unwrap().status(), StatusCode::NO_CONTENT);
    problem(request(Method::DELETE, &path).await.unwrap(), 404, "user-not-found").await;
    problem(request(Method::GET, &path).await.unwrap(), 503, "database-unavailable").await;
}
