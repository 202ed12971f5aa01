//! Setup: declares the exchanges and queues of a deployment, with the reasons of each argument.
//!
//! # Why not in the services?
//! The right to declare a queue is the right to delete it. So the services only ask whether everything exists, and a step
//! of the release, with a user of its own, declares it.
//!
//! Queue arguments cannot be changed: a queue that exists with others is an error with a remedy, never adapted to.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind};

use super::refusal::{Action, judge};
use super::{BrokerUser, Topology, TopologyError, dial};
use crate::config::BrokerSettings;

/// The most messages that wait in one partition; a publish beyond is refused, and the client gets 503. A policy can lower it.
const PARTITION_MAX_LENGTH: i64 = 100_000;
/// A quorum queue without a limit requeues at its tail, which breaks the order; 4.x would set 20, which a few crashes burn.
/// High enough that no outage reaches it: every pause of a worker counts as one delivery.
const DELIVERY_LIMIT: i64 = 1_000_000;
/// For one attempt, the connection included: a broker that has just started can leave a request unanswered for good.
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(10);
/// Each over a connection of its own.
const ATTEMPTS: u32 = 3;

/// An exchange or queue that is as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredObject {
    /// `queue` or `exchange`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether it did not exist before.
    pub created: bool,
}

/// Why the setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The broker could not be reached.
    #[error("the broker cannot be reached: {0}")]
    Connect(String),
    /// The broker refused, or something exists with other arguments.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The broker left a request unanswered in each attempt.
    #[error(
        "the broker did not answer within {ATTEMPT_DEADLINE:?}, in {ATTEMPTS} attempts over new connections; see its log, \
         and run this again: what exists is left alone"
    )]
    Deadline,
}

/// Declares everything over a connection of its own, or over another when the broker does not answer.
///
/// # Errors
/// See [`SetupError`].
pub async fn set_up(settings: &BrokerSettings) -> Result<Vec<DeclaredObject>, SetupError> {
    for _ in 0..ATTEMPTS {
        if let Ok(end) = tokio::time::timeout(ATTEMPT_DEADLINE, attempt(settings)).await {
            return end;
        }
    }
    Err(SetupError::Deadline)
}

async fn attempt(settings: &BrokerSettings) -> Result<Vec<DeclaredObject>, SetupError> {
    let connection = dial(settings, "setup").await.map_err(|error| SetupError::Connect(error.to_string()))?;
    let declared = Topology::new(settings).declare(&connection).await?;
    // Best effort: everything was answered.
    let _ = connection.close(200, "declared".into()).await;
    Ok(declared)
}

impl Topology {
    /// Declares everything, and says of each whether it is new; what exists as it should is left alone.
    ///
    /// # Errors
    /// See [`TopologyError`].
    pub async fn declare(&self, connection: &Connection) -> Result<Vec<DeclaredObject>, TopologyError> {
        let mut declaring = Declaring { topology: self, connection, asking: None, declared: Vec::new() };
        for (exchange, kind) in [
            (self.commands_exchange(), ExchangeKind::Direct),
            (self.events_exchange(), ExchangeKind::Topic),
            (self.replies_exchange(), ExchangeKind::Direct),
            (self.dead_letters(), ExchangeKind::Fanout),
        ] {
            declaring.exchange(exchange, kind).await?;
        }
        declaring.queue(self.dead_letters(), &self.dead_letters(), "", dead_letter_arguments()).await?;
        for partition in 0..self.partitions() {
            let (queue, arguments) = (self.partition_queue(partition), partition_arguments(&self.dead_letters()));
            declaring.queue(queue, &self.commands_exchange(), &partition.to_string(), arguments).await?;
        }
        Ok(declaring.declared)
    }
}

struct Declaring<'a> {
    topology: &'a Topology,
    connection: &'a Connection,
    /// Ends with the question for something that does not exist.
    asking: Option<Channel>,
    declared: Vec<DeclaredObject>,
}

impl Declaring<'_> {
    async fn exchange(&mut self, name: String, kind: ExchangeKind) -> Result<(), TopologyError> {
        let fault = |error| judge(self.topology, BrokerUser::Setup, "exchange", &name, Action::Declare, error);
        // Durable: it outlives a restart of the broker. Not auto-deleted: it outlives its last queue.
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let look = ExchangeDeclareOptions { passive: true, ..options };
        let channel = self.channel().await.map_err(fault)?;
        let found = channel.exchange_declare(name.as_str().into(), kind.clone(), look, FieldTable::default()).await;
        let channel = self.channel().await.map_err(fault)?;
        channel.exchange_declare(name.as_str().into(), kind, options, FieldTable::default()).await.map_err(fault)?;
        self.declared.push(DeclaredObject { kind: "exchange", name, created: found.is_err() });
        Ok(())
    }

    async fn queue(
        &mut self,
        name: String,
        exchange: &str,
        routing_key: &str,
        arguments: FieldTable,
    ) -> Result<(), TopologyError> {
        let fault = |action, error| judge(self.topology, BrokerUser::Setup, "queue", &name, action, error);
        let declare = |error| fault(Action::Declare, error);
        // Durable and shared: neither a restart nor the end of a connection removes it.
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let look = QueueDeclareOptions { passive: true, ..options };
        let channel = self.channel().await.map_err(declare)?;
        let found = channel.queue_declare(name.as_str().into(), look, FieldTable::default()).await;
        let channel = self.channel().await.map_err(declare)?;
        channel.queue_declare(name.as_str().into(), options, arguments).await.map_err(declare)?;
        let options = QueueBindOptions::default();
        channel
            .queue_bind(name.as_str().into(), exchange.into(), routing_key.into(), options, FieldTable::default())
            .await
            .map_err(|error| fault(Action::Bind(exchange), error))?;
        self.declared.push(DeclaredObject { kind: "queue", name, created: found.is_err() });
        Ok(())
    }

    /// The channel, or another when it has ended.
    async fn channel(&mut self) -> lapin::Result<Channel> {
        match self.asking.take().filter(|open| open.status().connected()) {
            Some(open) => Ok(self.asking.insert(open).clone()),
            None => Ok(self.asking.insert(self.connection.create_channel().await?).clone()),
        }
    }
}

fn partition_arguments(dead_letters: &str) -> FieldTable {
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
    set("x-dead-letter-exchange", AMQPValue::LongString(dead_letters.into()));
    set("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into()));
    set("x-overflow", AMQPValue::LongString("reject-publish".into()));
    set("x-max-length", AMQPValue::LongLongInt(PARTITION_MAX_LENGTH));
    spread_leaders(&mut arguments);
    arguments
}

fn dead_letter_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // One worker at a time, so that one user's dead letters are recorded in order.
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    // Nothing catches what this queue drops, and 4.x would drop after 20 returns.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    spread_leaders(&mut arguments);
    arguments
}

/// Without this the leaders of all queues that one client declares are on the node that it is connected to.
fn spread_leaders(arguments: &mut FieldTable) {
    arguments.insert("x-queue-leader-locator".into(), AMQPValue::LongString("balanced".into()));
}
