//! The exchanges and queues, and why each argument is what it is.
//!
//! Queue arguments are for ever: a queue that exists with others is an error with a mend, never adapted to.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use crate::config::BrokerSettings;

/// The most messages that wait in one partition; a publish beyond is refused, and the client gets 503. A policy can lower it.
const PARTITION_MAX_LENGTH: i64 = 100_000;
/// A quorum queue without a limit requeues at its tail, which breaks the order; 4.x would set 20, which a few crashes burn.
/// High enough that no outage reaches it: every pause of a worker counts as one delivery.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// Why the exchanges and queues are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// It exists with other arguments.
    #[error(
        "the {kind} {name:?} exists with other arguments ({reason}); {}, or set another BROKER_PREFIX",
        mend(kind, name)
    )]
    Mismatch {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the broker says of it.
        reason: String,
    },
    /// The broker did not answer, or refused.
    #[error("failed to declare the {kind} {name:?}")]
    Broker {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the client library says.
        source: lapin::Error,
    },
}

/// The names of one deployment.
#[derive(Debug, Clone)]
pub struct Topology {
    prefix: String,
    partitions: u16,
}

impl Topology {
    /// The names under the settings' prefix.
    pub fn new(settings: &BrokerSettings) -> Self {
        Self { prefix: settings.prefix.clone(), partitions: settings.partitions }
    }

    /// How many partition queues there are.
    pub fn partitions(&self) -> u16 {
        self.partitions
    }

    /// The direct exchange that commands are published to, with the partition number as routing key.
    pub fn commands_exchange(&self) -> String {
        format!("{}commands", self.prefix)
    }

    /// The queue of one partition.
    pub fn partition_queue(&self, partition: u16) -> String {
        format!("{}commands.{partition}", self.prefix)
    }

    /// The topic exchange that change events are published to, with the event's type as routing key. Subscribers bind
    /// queues of their own.
    pub fn events_exchange(&self) -> String {
        format!("{}events", self.prefix)
    }

    /// The fanout exchange and the queue (of the same name) of messages that the broker gave up; workers collect them.
    pub fn dead_letters(&self) -> String {
        format!("{}dead-letters", self.prefix)
    }

    /// Declares everything; what exists as it should is left alone.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub async fn declare(&self, connection: &Connection) -> Result<(), TopologyError> {
        let open = || async {
            let source = |source| TopologyError::Broker { kind: "queue", name: self.commands_exchange(), source };
            connection.create_channel().await.map_err(source)
        };
        let channel = open().await?;
        self.declare_exchange(&channel, &self.commands_exchange(), ExchangeKind::Direct).await?;
        self.declare_exchange(&channel, &self.events_exchange(), ExchangeKind::Topic).await?;
        self.declare_exchange(&channel, &self.dead_letters(), ExchangeKind::Fanout).await?;
        self.declare_queue(&channel, &self.dead_letters(), &self.dead_letters(), "", dead_letter_arguments()).await?;
        for partition in 0..self.partitions {
            self.declare_partition(&channel, partition).await?;
        }
        // Best effort: the channel ends with the connection at the latest.
        let _ = channel.close(200, "declared".into()).await;
        Ok(())
    }

    /// Declares one partition's queue and its binding.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub async fn declare_partition(&self, channel: &Channel, partition: u16) -> Result<(), TopologyError> {
        let queue = self.partition_queue(partition);
        let arguments = self.partition_arguments();
        self.declare_queue(channel, &queue, &self.commands_exchange(), &partition.to_string(), arguments).await
    }

    fn partition_arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        let mut set = |name: &str, value| {
            arguments.insert(name.into(), value);
        };
        // Replicated where there are replicas, and fsynced before the confirm.
        set("x-queue-type", AMQPValue::LongString("quorum".into()));
        // The second lock behind partition ownership: two workers never read one partition at once.
        set("x-single-active-consumer", AMQPValue::Boolean(true));
        set("x-delivery-limit", AMQPValue::LongLongInt(DELIVERY_LIMIT));
        // At-least-once dead-lettering holds only with all three of these; otherwise it silently falls back.
        set("x-dead-letter-exchange", AMQPValue::LongString(self.dead_letters().into()));
        set("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into()));
        set("x-overflow", AMQPValue::LongString("reject-publish".into()));
        set("x-max-length", AMQPValue::LongLongInt(PARTITION_MAX_LENGTH));
        arguments
    }

    async fn declare_exchange(&self, channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), TopologyError> {
        // Durable: it outlives a restart of the broker. Not auto-deleted: it outlives its last queue.
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await;
        declared.map_err(|error| fault("exchange", name, error))
    }

    async fn declare_queue(
        &self,
        channel: &Channel,
        name: &str,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> Result<(), TopologyError> {
        // Durable and shared: neither a restart nor the end of a connection removes it.
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(name.into(), options, arguments).await;
        declared.map_err(|error| fault("queue", name, error))?;
        let binding = QueueBindOptions::default();
        let bound =
            channel.queue_bind(name.into(), exchange.into(), routing_key.into(), binding, FieldTable::default());
        bound.await.map_err(|error| fault("queue", name, error))
    }
}

fn dead_letter_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // One worker at a time, so that one user's letters are recorded in order.
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    // Nothing catches what this queue drops, and 4.x would drop after 20 returns.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    arguments
}

fn mend(kind: &str, name: &str) -> String {
    match kind {
        "queue" => format!("drain and delete it with `rabbitmqctl delete_queue {name}`"),
        // Without the management plugin the broker has no command for it.
        _ => format!("delete it with `rabbitmqadmin delete {kind} name={name}`"),
    }
}

fn fault(kind: &'static str, name: &str, source: lapin::Error) -> TopologyError {
    const PRECONDITION_FAILED: u16 = 406;
    let name = name.to_owned();
    match source.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == PRECONDITION_FAILED => {
            TopologyError::Mismatch { kind, name, reason: error.get_message().to_string() }
        }
        _ => TopologyError::Broker { kind, name, source },
    }
}
