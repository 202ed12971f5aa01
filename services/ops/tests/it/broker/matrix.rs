//! Every user of the broker, every exchange and queue, every operation: allowed, or refused with 403.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, ExchangeKind};

use super::Users;
use crate::harness::System;

const ACCESS_REFUSED: u16 = 403;

/// What is tried; the destination of a binding is the user's own queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    DeclareExchange,
    DeleteExchange,
    Publish,
    BindTo,
    DeclareQueue,
    DeleteQueue,
    Purge,
    Consume,
}

use Operation::{BindTo, Consume, DeclareExchange, DeclareQueue, DeleteExchange, DeleteQueue, Publish, Purge};

/// The users that are allowed each operation; all others are refused.
const ALLOWED: &[(&[Operation], &[&str], &[&str])] = &[
    (&[DeclareExchange, DeleteExchange], &["commands", "events", "replies", "dead-letters"], &["setup"]),
    (&[DeclareExchange, DeleteExchange], &["deployment.0190"], &["worker"]),
    (&[DeclareExchange, DeleteExchange], &["others"], &[]),
    (&[Publish], &["commands"], &["api"]),
    (&[Publish], &["events", "replies"], &["worker"]),
    // Who declares the queues must be allowed to write to their dead-letter exchange.
    (&[Publish], &["dead-letters"], &["setup"]),
    (&[Publish], &["deployment.0190", "others", ""], &[]),
    (&[BindTo], &["commands", "dead-letters"], &["setup"]),
    (&[BindTo], &["events"], &["subscriber"]),
    (&[BindTo], &["replies"], &["api"]),
    (&[BindTo], &["deployment.0190", "others"], &[]),
    (&[DeclareQueue, DeleteQueue], &["commands.0", "dead-letters"], &["setup"]),
    (&[Purge, Consume], &["commands.0", "dead-letters"], &["setup", "worker"]),
    (&[DeclareQueue], &["arrivals"], &["api", "worker"]),
    (&[DeclareQueue, DeleteQueue], &["others.queue"], &[]),
    (&[Purge, Consume], &["others.queue"], &[]),
    (&[DeclareQueue, DeleteQueue, Purge, Consume], &["replies.0190"], &["api"]),
    (&[DeclareQueue, DeleteQueue, Purge, Consume], &["SUBSCRIBER.inbox"], &["subscriber"]),
];

/// A connection of one user, opened again when an operation ended it.
struct Session {
    url: String,
    connection: Connection,
}

impl Session {
    async fn open(url: String) -> Self {
        let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
        Self { url, connection }
    }

    async fn channel(&mut self) -> Channel {
        if let Ok(channel) = self.connection.create_channel().await {
            return channel;
        }
        *self = Self::open(self.url.clone()).await;
        self.connection.create_channel().await.unwrap()
    }

    /// Whether the broker allows it; whatever else comes of it does not count. Nothing that exists is removed.
    async fn allowed(&mut self, operation: Operation, name: &str, own_queue: &str) -> bool {
        let channel = self.channel().await;
        let none = FieldTable::default;
        let end = match operation {
            DeclareExchange => {
                let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(name.into(), ExchangeKind::Headers, options, none()).await
            }
            DeleteExchange => {
                let options = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
                channel.exchange_delete(name.into(), options).await
            }
            Publish => publish(&channel, name).await,
            BindTo => {
                let options = QueueBindOptions::default();
                channel.queue_bind(own_queue.into(), name.into(), "matrix".into(), options, none()).await
            }
            DeclareQueue => {
                let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(name.into(), options, none()).await.map(|_| ())
            }
            DeleteQueue => {
                let options = QueueDeleteOptions { if_unused: true, if_empty: true, ..QueueDeleteOptions::default() };
                channel.queue_delete(name.into(), options).await.map(|_| ())
            }
            Purge => channel.queue_purge(name.into(), QueuePurgeOptions::default()).await.map(|_| ()),
            Consume => channel.basic_get(name.into(), BasicGetOptions::default()).await.map(|_| ()),
        };
        let _ = channel.close(200, "tried".into()).await;
        let Err(error) = end else { return true };
        !matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == ACCESS_REFUSED)
    }
}

async fn publish(channel: &Channel, exchange: &str) -> lapin::Result<()> {
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    // No queue is bound under this key.
    channel.basic_publish(exchange.into(), "nowhere".into(), options, b"", properties).await?.await.map(|_| ())
}

/// What is there beside the declared topology: the mark, others' exchange and queue, and a binding for each exchange, so that
/// none is deleted as unused.
async fn furnish(system: &System, subscriber: &str) -> Connection {
    let connection = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let name = |name: &str| format!("{}{name}", system.prefix);
    let witness = name("witness");
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // Quorum queues: the broker deletes none of them on the condition that it is unused.
    for queue in [witness.clone(), name("others.queue"), name("replies.0190"), format!("{subscriber}.inbox")] {
        channel.queue_declare(queue.into(), durable, quorum.clone()).await.unwrap();
    }
    for exchange in ["deployment.0190", "others"] {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declaring =
            channel.exchange_declare(name(exchange).into(), ExchangeKind::Fanout, options, FieldTable::default());
        declaring.await.unwrap();
    }
    for exchange in ["commands", "events", "replies", "dead-letters", "deployment.0190", "others"] {
        let options = QueueBindOptions::default();
        let (queue, exchange) = (witness.as_str().into(), name(exchange).into());
        channel.queue_bind(queue, exchange, "witness".into(), options, FieldTable::default()).await.unwrap();
    }
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn every_forbidden_operation_is_refused_and_every_other_is_not() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    assert!(system.declare());
    let users = Users::new(&system).await;
    let _furniture = furnish(&system, &users.name("subscriber")).await;
    let full = |name: &str| match name.strip_prefix("SUBSCRIBER") {
        Some(rest) => format!("{}{rest}", users.name("subscriber")),
        None if name.is_empty() => String::new(),
        None => format!("{}{name}", system.prefix),
    };
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for user in ["setup", "api", "worker", "subscriber"] {
        let mut session = Session::open(users.url(&system, user)).await;
        let own_queue = full(match user {
            "api" => "replies.0190",
            "subscriber" => "SUBSCRIBER.inbox",
            _ => "commands.0",
        });
        for (operations, names, allowed) in ALLOWED {
            for (operation, name) in operations.iter().flat_map(|op| names.iter().map(move |name| (*op, *name))) {
                checked += 1;
                let expected = allowed.contains(&user);
                if session.allowed(operation, &full(name), &own_queue).await != expected {
                    wrong.push(format!(
                        "{user}: {operation:?} {name} is {}",
                        if expected { "refused" } else { "allowed" }
                    ));
                }
            }
        }
    }
    assert!(checked > 150, "{checked}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    users.remove().await;
}
