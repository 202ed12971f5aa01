//! Names of the exchanges and queues, and the question whether they exist. [`setup`](super::setup) declares them.

use lapin::options::{ExchangeDeclareOptions, ExchangeUnbindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ExchangeKind};

use super::BrokerUser;
use super::refusal::{Action, TopologyError, judge, missing, refuses};
use crate::config::BrokerSettings;

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

    /// What every name begins with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
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

    /// The direct exchange of replies, and what the names of the queues bound to it begin with. An API declares a queue of
    /// its own for each connection.
    pub fn replies_exchange(&self) -> String {
        format!("{}replies", self.prefix)
    }

    /// The partition that messages to this exchange under this routing key go to; `None` unless they are commands.
    pub(super) fn partition_of(&self, exchange: &str, routing_key: &str) -> Option<u16> {
        let of_commands = exchange.strip_prefix(&self.prefix) == Some("commands");
        routing_key.parse().ok().filter(|_| of_commands)
    }

    /// The partition whose queue has this name.
    pub(super) fn partition_of_queue(&self, name: &str) -> Option<u16> {
        let number = name.strip_prefix(&self.prefix)?.strip_prefix("commands.")?;
        number.parse().ok().filter(|number| *number < self.partitions)
    }

    /// The exchanges without which this user can do nothing.
    pub(super) fn needed_by(&self, user: BrokerUser) -> Vec<String> {
        match user {
            BrokerUser::Api | BrokerUser::Setup => vec![self.commands_exchange()],
            // The queue of dead letters has the name of its exchange.
            BrokerUser::Worker => vec![self.events_exchange(), self.dead_letters()],
        }
    }

    /// Makes sure that everything without which this user can do nothing exists, and that it may publish. Changes nothing.
    /// A queue of a partition that is missing costs that partition only.
    ///
    /// # Errors
    /// See [`TopologyError`]; not [`TopologyError::Mismatch`], because arguments show only to who declares.
    pub async fn check(&self, connection: &Connection, user: BrokerUser) -> Result<(), TopologyError> {
        let source = |source| TopologyError::Broker { kind: "exchange", name: self.commands_exchange(), source };
        let channel = connection.create_channel().await.map_err(source)?;
        // To which exchange it publishes, and one that it may read from.
        let (publishes, reads) = match user {
            BrokerUser::Api | BrokerUser::Setup => (self.commands_exchange(), self.replies_exchange()),
            BrokerUser::Worker => (self.events_exchange(), self.dead_letters()),
        };
        for exchange in &self.needed_by(user) {
            let look = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let kind = ExchangeKind::Direct;
            let found = channel.exchange_declare(exchange.as_str().into(), kind, look, FieldTable::default()).await;
            found.map_err(|error| judge(self, user, "exchange", exchange, Action::Declare, error))?;
        }
        if user == BrokerUser::Worker {
            self.check_queue(&channel, user, &self.dead_letters()).await?;
        }
        self.check_writing(&channel, user, &publishes, &reads).await?;
        // Best effort: the channel ends with the connection at the latest.
        let _ = channel.close(200, "checked".into()).await;
        Ok(())
    }

    async fn check_queue(&self, channel: &Channel, user: BrokerUser, queue: &str) -> Result<(), TopologyError> {
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = channel.queue_declare(queue.into(), look, FieldTable::default()).await;
        found.map(|_| ()).map_err(|error| judge(self, user, "queue", queue, Action::Declare, error))
    }

    /// Finds out whether this user may publish to an exchange, without a message: a binding that never existed is removed,
    /// which needs the right and changes nothing. The broker looks at the right to write first, and at what exists last.
    async fn check_writing(
        &self,
        channel: &Channel,
        user: BrokerUser,
        exchange: &str,
        reads: &str,
    ) -> Result<(), TopologyError> {
        let (options, arguments) = (ExchangeUnbindOptions::default(), FieldTable::default());
        let unbinding = channel.exchange_unbind(exchange.into(), reads.into(), "rights".into(), options, arguments);
        match unbinding.await {
            Err(error) if !refuses(&error, reads) && missing(&error).as_deref() != Some(reads) => {
                Err(judge(self, user, "exchange", exchange, Action::Bind(reads), error))
            }
            _ => Ok(()),
        }
    }

    /// What a worker reports when the broker does not let it consume a queue.
    pub fn unreadable(&self, queue: &str, error: lapin::Error) -> TopologyError {
        judge(self, BrokerUser::Worker, "queue", queue, Action::Consume, error)
    }
}
