//! Change events as a subscriber sees them: as the contract says, in order, and none missing whatever dies.

mod outbox;

use std::collections::{BTreeMap, HashSet};

use common::event::{CONTENT_TYPE, CloudEvent};
use futures_util::future::join_all;
use lapin::message::Delivery;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{System, Writers, eventually};

const KILLS: usize = 8;

/// A queue that is bound to the events of one system.
struct Subscriber {
    // The channel ends with it.
    _connection: Connection,
    channel: Channel,
    queue: String,
}

impl Subscriber {
    /// Binds a queue to the exchange, which exists once a service runs.
    async fn bind(system: &System, pattern: &str) -> Self {
        Self::bind_as(system, "subscriber", pattern, FieldTable::default()).await
    }

    async fn bind_as(system: &System, name: &str, pattern: &str, arguments: FieldTable) -> Self {
        let connection = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let (queue, exchange) = (format!("{}{name}", system.prefix), format!("{}events", system.prefix));
        let declared = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), declared, arguments).await.unwrap();
        let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue.as_str().into(), exchange.into(), pattern.into(), bind, none).await.unwrap();
        Self { _connection: connection, channel, queue }
    }

    async fn next(&self) -> Delivery {
        eventually("an event", async || self.waiting().await).await
    }

    async fn waiting(&self) -> Option<Delivery> {
        let options = BasicGetOptions { no_ack: true };
        self.channel.basic_get(self.queue.as_str().into(), options).await.unwrap().map(|got| got.delivery)
    }
}

/// Validates bodies by what the contract says of their type.
fn validator(kind: &str) -> jsonschema::Validator {
    let mut contract: Value = serde_json::from_str(include_str!("../../../../openapi/rollcall-events.json")).unwrap();
    let mut schema = contract["components"]["messages"][kind.replace('.', "_")]["payload"].take();
    schema["components"] = contract["components"].take();
    // Stricter than the contract asks of subscribers: nothing that it does not describe is sent either.
    let data = if kind == "users.deleted" { "DeletedUser" } else { "User" };
    schema["components"]["schemas"][data]["additionalProperties"] = json!(false);
    schema["additionalProperties"] = json!(false);
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_sees_each_change_in_order_and_as_the_contract_says() {
    let mut system = System::prepare().await;
    system.set("EVENT_SOURCE", "https://directory.example.org/");
    // Without an endpoint there are no traces; nobody has to listen there.
    system.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let subscriber = Subscriber::bind(&system, "users.#").await;
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let writes = [
        (Method::PATCH, path.clone(), r#"{"name":"Ada King"}"#),
        (Method::POST, format!("{path}/suspend"), ""),
        (Method::POST, format!("{path}/suspend"), ""),
        (Method::POST, format!("{path}/reactivate"), ""),
        (Method::DELETE, path.clone(), ""),
    ];
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut states = vec![user.clone()];
    for (method, path, body) in writes {
        let request = system.client.request(method, api.url(&path)).header("traceparent", traceparent);
        let request = request.header("prefer", "wait=20").header("content-type", "application/merge-patch+json");
        let answer = request.body(body).send().await.unwrap();
        if answer.status() == StatusCode::OK {
            states.push(answer.json().await.unwrap());
        }
    }
    states.push(json!({"id": user["id"], "version": 5}));

    let kinds = ["users.created", "users.updated", "users.suspended", "users.reactivated", "users.deleted"];
    for (number, (kind, state)) in kinds.into_iter().zip(&states).enumerate() {
        let delivery = subscriber.next().await;
        assert_eq!(delivery.routing_key.as_str(), kind);
        let body: Value = serde_json::from_slice(&delivery.data).unwrap();
        let faults: Vec<_> = validator(kind).iter_errors(&body).map(|fault| fault.to_string()).collect();
        assert!(faults.is_empty(), "{kind}: {faults:?} in {body:#}");
        let event: CloudEvent = serde_json::from_value(body).unwrap();
        assert_eq!(event.source, "https://directory.example.org/");
        assert_eq!(Some(event.subject.to_string().as_str()), user["id"].as_str());
        assert_eq!(event.data, *state, "what the API answered");
        let properties = &delivery.properties;
        assert_eq!(properties.content_type().as_ref().map(ToString::to_string).as_deref(), Some(CONTENT_TYPE));
        assert_eq!(properties.message_id().as_ref().map(ToString::to_string), Some(event.id.to_string()));
        assert_eq!(properties.delivery_mode(), &Some(2));
        let headers = properties.headers().as_ref().unwrap().inner();
        assert_eq!(
            headers.get("traceparent"),
            Some(&AMQPValue::LongString(event.traceparent.as_deref().unwrap().into()))
        );
        if number > 0 {
            assert_eq!(&event.traceparent.unwrap()[..35], &traceparent[..35], "the trace of the request");
        }
        let command: Value = system.get(&api, &format!("/v1/commands/{}", event.id)).await.json().await.unwrap();
        assert_eq!(command["user_id"], user["id"]);
    }
    assert!(subscriber.waiting().await.is_none(), "the second suspension changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_killed_neither_lose_nor_reorder_events() {
    let system = System::prepare().await;
    let (api, mut first) = tokio::join!(system.api(), system.worker());
    let mut second = system.worker().await;
    let subscriber = Subscriber::bind(&system, "users.*").await;
    let writers = Writers::start(8, &[api.url("")]);
    for _ in 0..KILLS {
        writers.progress(50).await;
        first.kill();
        writers.progress(20).await;
        first = std::mem::replace(&mut second, system.worker_unready());
    }
    writers.finish().await.kept(&system).await;
    eventually("every event is published", async || {
        (system.count("SELECT count(*) FROM events WHERE published_at IS NULL").await == 0).then_some(())
    })
    .await;

    let (mut ids, mut versions) = (HashSet::new(), BTreeMap::<Uuid, i64>::new());
    while let Some(delivery) = subscriber.waiting().await {
        let event: CloudEvent = serde_json::from_slice(&delivery.data).unwrap();
        if ids.insert(event.id) {
            let last = versions.entry(event.subject).or_default();
            *last += 1;
            assert_eq!(event.data["version"], *last, "{event:?}");
        }
    }
    let mut database = system.database().await;
    let succeeded = "SELECT id FROM commands WHERE status = 'succeeded'";
    let succeeded: Vec<Uuid> = sqlx::query_scalar(succeeded).fetch_all(&mut database).await.unwrap();
    assert_eq!(ids, succeeded.into_iter().collect::<HashSet<_>>());
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_refuses_delays_only_the_users_of_what_it_refuses() {
    const REFUSED: usize = 120;
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let healthy = Subscriber::bind(&system, "users.#").await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let refusing = Subscriber::bind_as(&system, "refusing", "users.suspended", full).await;
    refusing.channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let filling = refusing.channel.basic_publish(
        "".into(),
        refusing.queue.as_str().into(),
        BasicPublishOptions::default(),
        b"full",
        lapin::BasicProperties::default(),
    );
    assert!(filling.await.unwrap().await.unwrap().is_ack());
    let send = async |path: &str, body: Value| {
        let answer = system.post(&api, path, "respond-async", &body).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        answer.json::<Value>().await.unwrap()["user_id"].as_str().unwrap().to_owned()
    };
    let create = async |number: usize| {
        send("/v1/users", json!({"email": format!("u{number}@example.org"), "name": "Test"})).await
    };
    let succeeded = async |commands: usize| {
        eventually("so many succeeded", async || {
            let succeeded = system.count("SELECT count(*) FROM commands WHERE status = 'succeeded'").await;
            (succeeded == i64::try_from(commands).unwrap()).then_some(())
        })
        .await;
    };
    // More than the relay reads at once: each suspension is refused, and each later change waits behind it.
    let users = join_all((0..REFUSED).map(create)).await;
    let change = async |user: &str, verb: &str| send(&format!("/v1/users/{user}/{verb}"), json!({})).await;
    join_all(users.iter().map(|user| change(user, "suspend"))).await;
    succeeded(2 * REFUSED).await;
    join_all(users.iter().map(|user| change(user, "reactivate"))).await;
    let others = join_all((0..5).map(|number| create(REFUSED + number))).await;
    succeeded(3 * REFUSED + others.len()).await;
    eventually("the events of the others are published", async || {
        let waiting = "SELECT count(*) FROM events WHERE published_at IS NULL AND type = 'users.created'";
        (system.count(waiting).await == 0).then_some(())
    })
    .await;
    let waiting = "SELECT count(*) FROM events WHERE published_at IS NULL";
    assert_eq!(system.count(waiting).await, i64::try_from(2 * REFUSED).unwrap());
    let metrics = system.get(&worker, "/metrics").await.text().await.unwrap();
    assert!(metrics.contains("rollcall_worker_events_refused_total"), "{metrics}");

    // In the end they count as published: stored wherever they could be.
    assert!(worker.terminate().await.success());
    system.set("EVENT_RETRY_SECONDS", "3");
    let worker = system.worker().await;
    eventually("all are published", async || (system.count(waiting).await == 0).then_some(())).await;
    let metrics = system.get(&worker, "/metrics").await.text().await.unwrap();
    assert!(metrics.contains("rollcall_worker_events_undelivered_total"), "{metrics}");

    let (mut versions, mut messages) = (BTreeMap::<Uuid, i64>::new(), 0);
    let mut ids = HashSet::new();
    while let Some(delivery) = healthy.waiting().await {
        let event: CloudEvent = serde_json::from_slice(&delivery.data).unwrap();
        messages += 1;
        if ids.insert(event.id) {
            let last = versions.entry(event.subject).or_default();
            *last += 1;
            assert_eq!(event.data["version"], *last, "in order: {event:?}");
        }
    }
    let all = 3 * REFUSED + others.len();
    assert_eq!(ids.len(), all);
    // A dozen tries at most over both workers' time.
    assert!(messages < all + 12 * REFUSED, "{messages} messages of {all} events");
}
