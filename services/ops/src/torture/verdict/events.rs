//! The change events: one for each change, and what a subscriber received of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use common::event::CloudEvent;
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties};
use sqlx::PgConnection;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::rows::Rows;
use super::{Broken, Verdict};

const EXCHANGE: &str = "events";
const QUEUE: &str = "torture-subscriber";
/// Without a delivery for so long the queue is empty.
const SILENCE: Duration = Duration::from_secs(5);

/// An event's row.
#[derive(Debug, sqlx::FromRow)]
struct Event {
    id: Uuid,
    user_id: Uuid,
    version: i64,
    published: bool,
}

/// Binds a queue that outlives the broker's ends. The exchange is there once a service runs.
pub(crate) async fn subscribe(amqp_url: &str) -> lapin::Result<()> {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, arguments).await?;
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(QUEUE.into(), EXCHANGE.into(), "users.#".into(), bind, none).await?;
    connection.close(200, "bound".into()).await
}

/// Every change has its event, every event was received, and the first messages of a user's events came in order.
pub(super) async fn judge(
    verdict: &mut Verdict,
    connection: &mut PgConnection,
    amqp_url: &str,
    rows: &Rows,
    patience: Duration,
) -> anyhow::Result<()> {
    let events = published(connection, patience).await?;
    judge_rows(verdict, &events, rows);
    let received = receive(amqp_url).await?;
    verdict.events = events.len();
    verdict.received = received.len();
    judge_received(verdict, &events, &received);
    Ok(())
}

/// All events in order, once they are published or patience ends.
async fn published(connection: &mut PgConnection, patience: Duration) -> anyhow::Result<Vec<Event>> {
    let deadline = Instant::now() + patience;
    loop {
        let events: Vec<Event> = sqlx::query_as(
            "SELECT id, user_id, user_version AS version, published_at IS NOT NULL AS published
             FROM events
             ORDER BY position",
        )
        .fetch_all(&mut *connection)
        .await?;
        if Instant::now() > deadline || events.iter().all(|event| event.published) {
            return Ok(events);
        }
        sleep(Duration::from_millis(300)).await;
    }
}

fn judge_rows(verdict: &mut Verdict, events: &[Event], rows: &Rows) {
    let mut versions: HashMap<Uuid, Vec<i64>> = HashMap::new();
    let mut ids = HashSet::new();
    for event in events {
        if !event.published {
            verdict.found(Broken::Stuck, format!("event {} is not published", event.id));
        }
        if !ids.insert(event.id) {
            verdict.found(Broken::Twice, format!("command {} has two events", event.id));
        }
        if !rows.commands.get(&event.id).is_some_and(|row| row.succeeded() && row.user_id == event.user_id) {
            verdict.found(Broken::Wrong, format!("event {} is of no command that succeeded", event.id));
        }
        versions.entry(event.user_id).or_default().push(event.version);
    }
    for (user, versions) in &versions {
        let counted = (1..).zip(versions).all(|(expected, version)| expected == *version);
        if !counted {
            verdict.found(Broken::Reordered, format!("the events of user {user} have the versions {versions:?}"));
        }
    }
    for user in rows.concerned() {
        // Retries have their first command's outcome and no event of their own.
        let made: HashSet<Option<i64>> =
            rows.of_user(user).filter(|row| row.succeeded()).map(|row| row.version).collect();
        let told = versions.get(&user).map_or(0, Vec::len);
        if told != made.len() {
            let what = format!("user {user} was changed {} times and has {told} events", made.len());
            verdict.found(if told < made.len() { Broken::Lost } else { Broken::Twice }, what);
        }
    }
}

fn judge_received(verdict: &mut Verdict, events: &[Event], received: &[CloudEvent]) {
    let known: HashMap<Uuid, &Event> = events.iter().map(|event| (event.id, event)).collect();
    let mut seen = HashSet::new();
    let mut last: BTreeMap<Uuid, i64> = BTreeMap::new();
    for message in received {
        let version = message.data["version"].as_i64().unwrap_or_default();
        let as_recorded =
            known.get(&message.id).is_some_and(|event| event.version == version && event.user_id == message.subject);
        if !as_recorded {
            verdict.found(Broken::Wrong, format!("event {} was received and is not recorded so", message.id));
        }
        if seen.insert(message.id) {
            let before = last.insert(message.subject, version).unwrap_or(0);
            if version != before + 1 {
                let what = format!("user {}: event {version} was received after {before}", message.subject);
                verdict.found(Broken::Reordered, what);
            }
        }
    }
    for event in events.iter().filter(|event| event.published && !seen.contains(&event.id)) {
        verdict.found(Broken::Lost, format!("event {} of user {} was never received", event.id, event.user_id));
    }
}

/// Takes everything out of the subscriber's queue.
async fn receive(amqp_url: &str) -> anyhow::Result<Vec<CloudEvent>> {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
    let channel: Channel = connection.create_channel().await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    channel.basic_qos(1000, lapin::options::BasicQosOptions::default()).await?;
    let mut consumer = channel.basic_consume(QUEUE.into(), "".into(), options, none).await?;
    let mut received = Vec::new();
    while let Ok(Some(delivery)) = timeout(SILENCE, consumer.next()).await {
        let delivery = delivery?;
        received.push(serde_json::from_slice(&delivery.data)?);
        delivery.ack(BasicAckOptions::default()).await?;
    }
    connection.close(200, "received".into()).await?;
    Ok(received)
}
