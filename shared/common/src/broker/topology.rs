//! The exchanges and queues, and why each argument is what it is.
//!
//! Queue arguments cannot be changed: a queue that exists with others is an error with a remedy, never adapted to.

use lapin::options::{ExchangeDeclareOptions, ExchangeUnbindOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::refusal::{Action, TopologyError, judge};
use crate::config::BrokerSettings;

/// The most messages that wait in one partition; a publish beyond is refused, and the client gets 503. A policy can lower it.
const PARTITION_MAX_LENGTH: i64 = 100_000;
/// A quorum queue without a limit requeues at its tail, which breaks the order; 4.x would set 20, which a few crashes burn.
/// High enough that no outage reaches it: every pause of a worker counts as one delivery.
const DELIVERY_LIMIT: i64 = 1_000_000;

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

    /// The direct exchange of reply hints, and what the names of the queues bound to it begin with. Declared by the API that
    /// waits for hints: commands are accepted and applied without.
    pub fn replies_exchange(&self) -> String {
        format!("{}replies", self.prefix)
    }

    /// The partition and the queue that messages to this exchange under this routing key go to; `None` unless they are commands.
    pub(super) fn partition_of(&self, exchange: &str, routing_key: &str) -> Option<(u16, String)> {
        let partition = routing_key.parse().ok().filter(|_| exchange == self.commands_exchange())?;
        Some((partition, self.partition_queue(partition)))
    }

    /// Whether something of this name is declared here.
    pub(super) fn declares(&self, name: &str) -> bool {
        let partition = name.strip_prefix(&self.prefix).and_then(|name| name.strip_prefix("commands."));
        [self.commands_exchange(), self.events_exchange(), self.dead_letters()].iter().any(|known| known == name)
            || partition.is_some_and(|number| number.parse::<u16>().is_ok_and(|number| number < self.partitions))
    }

    /// A pattern for all names of the deployment: the rights to configure, write and read that a user of the broker needs.
    pub(super) fn pattern(&self) -> String {
        if self.prefix.is_empty() {
            "^(commands|events|dead-letters|arrivals|replies|deployment)".to_owned()
        } else {
            format!("^{}", self.prefix.replace('.', "\\."))
        }
    }

    /// Declares everything; what exists as it should is left alone.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub async fn declare(&self, connection: &Connection) -> Result<(), TopologyError> {
        let source = |source| TopologyError::Broker { kind: "exchange", name: self.commands_exchange(), source };
        let channel = connection.create_channel().await.map_err(source)?;
        for (exchange, kind) in [
            (self.commands_exchange(), ExchangeKind::Direct),
            (self.events_exchange(), ExchangeKind::Topic),
            (self.dead_letters(), ExchangeKind::Fanout),
        ] {
            let declared = declare_exchange(&channel, &exchange, kind).await;
            declared.map_err(|error| judge(self, "exchange", &exchange, Action::Declare, error))?;
        }
        let dead_letters = self.dead_letters();
        self.declare_queue(&channel, &dead_letters, &dead_letters, "", dead_letter_arguments()).await?;
        for partition in 0..self.partitions {
            self.declare_partition(&channel, partition).await?;
        }
        for exchange in [self.commands_exchange(), self.events_exchange()] {
            self.check_writing(&channel, &exchange).await?;
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
        let (queue, exchange) = (self.partition_queue(partition), self.commands_exchange());
        let arguments = self.partition_arguments();
        self.declare_queue(channel, &queue, &exchange, &partition.to_string(), arguments).await
    }

    /// Finds out whether this user may publish to an exchange, without a message: a binding that never existed is removed,
    /// which needs the right and changes nothing.
    async fn check_writing(&self, channel: &Channel, exchange: &str) -> Result<(), TopologyError> {
        let source = self.commands_exchange();
        let unbinding = channel.exchange_unbind(
            exchange.into(),
            source.as_str().into(),
            "rights".into(),
            ExchangeUnbindOptions::default(),
            FieldTable::default(),
        );
        unbinding.await.map_err(|error| judge(self, "exchange", exchange, Action::Bind(&source), error))
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
        spread_leaders(&mut arguments);
        arguments
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
        declared.map_err(|error| judge(self, "queue", name, Action::Declare, error))?;
        let binding = QueueBindOptions::default();
        let bound =
            channel.queue_bind(name.into(), exchange.into(), routing_key.into(), binding, FieldTable::default());
        bound.await.map_err(|error| judge(self, "queue", name, Action::Bind(exchange), error))
    }
}

/// Declares an exchange.
///
/// # Errors
/// As the client library gives them.
pub async fn declare_exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> lapin::Result<()> {
    // Durable: it outlives a restart of the broker. Not auto-deleted: it outlives its last queue.
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    channel.exchange_declare(name.into(), kind, options, FieldTable::default()).await
}

/// Without this the leaders of all queues that one client declares are on the node that it is connected to.
fn spread_leaders(arguments: &mut FieldTable) {
    arguments.insert("x-queue-leader-locator".into(), AMQPValue::LongString("balanced".into()));
}

fn dead_letter_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // One worker at a time, so that one user's letters are recorded in order.
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    // Nothing catches what this queue drops, and 4.x would drop after 20 returns.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    spread_leaders(&mut arguments);
    arguments
}
