//! Publishing with confirms.
//!
//! # Why does one task own each channel?
//! Measured on lapin 4.12: on a confirm channel that tasks share, confirms are swapped between messages, so a rejected
//! message is told "acknowledged".
//!
//! # Why batches with a barrier?
//! When publishes are pipelined, the library attaches a returned message to the wrong confirm. So the owner publishes
//! what is waiting, awaits *all* confirms of that batch under one deadline, and collects the message ids of all returned
//! messages, whichever confirm carried them. A message is accepted when it was confirmed and its id was not among them.
//!
//! # Why is a lost confirm not an error like others?
//! The broker may have stored the message. Only the deadline or the loss of the channel leaves that open, and the caller
//! must say so ([`PublishError::Unknown`]); the channel and its whole batch are given up.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, ErrorKind, PublisherConfirm};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

use super::{CONFIRM_DEADLINE, Link, LinkState};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier};

/// Requests that wait for one channel; beyond, publishing is refused at once.
const QUEUE_LENGTH: usize = 1024;
/// A batch is what is waiting, up to this; larger ones cost latency.
const LARGEST_BATCH: usize = 32;
/// How long messages that were sent may stay unread by a broker that blocks the connection.
const BLOCKED_PATIENCE: Duration = Duration::from_millis(500);
const CHANNEL_DEADLINE: Duration = Duration::from_secs(1);

/// A message to publish.
#[derive(Debug)]
pub struct Message {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// The AMQP `message_id`, unique among messages in flight: returned messages are matched by it.
    pub id: String,
    /// The other properties.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
    /// Whether a message that no queue takes is refused, instead of confirmed and forgotten.
    pub mandatory: bool,
}

/// Why a message was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nothing was sent: there is no connection, or the broker blocks it.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// Nothing was sent: too many messages wait already.
    #[error("too many messages wait for the broker")]
    Full,
    /// No queue took it.
    #[error("no queue took the message")]
    Unroutable,
    /// The queue refused it; it is full.
    #[error("the queue is full")]
    Refused,
    /// The broker may or may not have it.
    #[error("the broker did not confirm in time")]
    Unknown,
}

/// Hands messages to one owning task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    requests: mpsc::Sender<Request>,
}

/// Several publishers, so that confirms are awaited side by side.
#[derive(Debug, Clone)]
pub struct PublisherPool {
    publishers: Arc<[Publisher]>,
}

#[derive(Debug)]
struct Request {
    message: Message,
    deadline: Instant,
    answer: oneshot::Sender<Result<(), PublishError>>,
}

impl PublisherPool {
    /// Starts `size` publishers over one link.
    pub fn start(shutdown: &Shutdown, link: &Link, size: u16) -> Self {
        Self { publishers: (0..size.max(1)).map(|_| Publisher::start(shutdown, link.clone())).collect() }
    }

    /// The publisher of a partition: always the same, so that one user's messages keep their order.
    pub fn of(&self, partition: u16) -> &Publisher {
        &self.publishers[usize::from(partition) % self.publishers.len()]
    }
}

impl Publisher {
    /// Starts the owning task; it ends when the process closes.
    pub fn start(shutdown: &Shutdown, link: Link) -> Self {
        let (requests, receiver) = mpsc::channel(QUEUE_LENGTH);
        let owner = Owner { link, channel: None, instruments: Instruments::new() };
        shutdown.supervise("publisher", Tier::Back, owner.run(receiver, shutdown.clone()));
        Self { requests }
    }

    /// Publishes and waits for the confirm.
    ///
    /// # Errors
    /// See [`PublishError`]; only [`PublishError::Unknown`] leaves open whether the broker has the message.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { message, deadline: Instant::now() + CONFIRM_DEADLINE, answer };
        self.requests.try_send(request).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable("the service is stopping".into()),
        })?;
        answered.await.unwrap_or(Err(PublishError::Unknown))
    }
}

struct Owner {
    link: Link,
    channel: Option<Confirming>,
    instruments: Instruments,
}

struct Confirming {
    channel: Channel,
    generation: u64,
}

impl Owner {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>, shutdown: Shutdown) -> TaskResult {
        loop {
            let first = tokio::select! {
                // What was handed over before the end is still published.
                biased;
                Some(request) = requests.recv() => request,
                () = shutdown.reached(Phase::Closing) => return Ok(()),
            };
            let mut batch = vec![first];
            while batch.len() < LARGEST_BATCH
                && let Ok(request) = requests.try_recv()
            {
                batch.push(request);
            }
            let (batch, late): (Vec<_>, Vec<_>) = batch.into_iter().partition(|r| r.deadline > Instant::now());
            self.refuse(late, &PublishError::Unavailable("the broker confirms too slowly".into()));
            match self.channel().await {
                Ok(channel) => self.publish(channel, batch).await,
                Err(error) => self.refuse(batch, &error),
            }
        }
    }

    /// The channel of the current connection, opened when there is none.
    async fn channel(&mut self) -> Result<Channel, PublishError> {
        let (connection, generation) = match &*self.link.borrow() {
            LinkState::Up { connection, generation } => (Arc::clone(connection), *generation),
            LinkState::Down(reason) | LinkState::Blocked(reason) => {
                return Err(PublishError::Unavailable(reason.clone()));
            }
        };
        if let Some(open) = &self.channel
            && open.generation == generation
            && open.channel.status().connected()
        {
            return Ok(open.channel.clone());
        }
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(CHANNEL_DEADLINE, opening) => opened,
            () = blocked(self.link.clone()) => {
                return Err(PublishError::Unavailable("the broker takes no messages for now".into()));
            }
        };
        match opened {
            Ok(Ok(channel)) => {
                self.channel = Some(Confirming { channel: channel.clone(), generation });
                Ok(channel)
            }
            Ok(Err(error)) => Err(PublishError::Unavailable(error.to_string())),
            Err(_) => Err(PublishError::Unavailable("no channel could be opened in time".into())),
        }
    }

    fn refuse(&self, batch: Vec<Request>, error: &PublishError) {
        for request in batch {
            self.settle(request.answer, Err(error.clone()));
        }
    }

    async fn publish(&mut self, channel: Channel, batch: Vec<Request>) {
        // Requests wait at most a batch before theirs, so the first one's deadline is the strictest and holds for all.
        let Some(deadline) = batch.first().map(|first| first.deadline) else { return };
        let started = Instant::now();
        let work = async {
            let sends = send(&channel, &batch).await;
            join_all(sends.into_iter().map(Sent::confirmed)).await
        };
        let confirmed = tokio::select! {
            confirmed = tokio::time::timeout_at(deadline, work) => confirmed.ok(),
            () = blocked(self.link.clone()) => None,
        };
        self.instruments.confirm_seconds.record(started.elapsed().as_secs_f64(), &[]);
        let Some(results) = confirmed else {
            warn!(messages = batch.len(), "the broker did not confirm in time; the channel is given up");
            self.channel = None;
            return self.refuse(batch, &PublishError::Unknown);
        };
        let returned: HashSet<String> = results.iter().filter_map(returned_id).collect();
        for (request, result) in batch.into_iter().zip(results) {
            let outcome =
                if returned.contains(&request.message.id) { Err(PublishError::Unroutable) } else { judge(result) };
            if outcome == Err(PublishError::Unknown) {
                self.channel = None;
            }
            self.settle(request.answer, outcome);
        }
    }

    fn settle(&self, answer: oneshot::Sender<Result<(), PublishError>>, outcome: Result<(), PublishError>) {
        let label = match &outcome {
            Ok(()) => "accepted",
            Err(PublishError::Unavailable(_)) => "unavailable",
            Err(PublishError::Full) => "full",
            Err(PublishError::Unroutable) => "unroutable",
            Err(PublishError::Refused) => "refused",
            Err(PublishError::Unknown) => "unknown",
        };
        self.instruments.published.add(1, &[KeyValue::new("outcome", label)]);
        // The client may have left; the message stays where it is.
        let _ = answer.send(outcome);
    }
}

/// Ends when the broker has not read from the connection for a while: it says so only to who publishes, so the first
/// messages of an alarm are on their way already, and will be stored when it is over.
async fn blocked(mut link: Link) {
    loop {
        // Fails only when the process closes; then the deadline ends the wait.
        if link.wait_for(|state| matches!(state, LinkState::Blocked(_))).await.is_err() {
            return std::future::pending().await;
        }
        tokio::time::sleep(BLOCKED_PATIENCE).await;
        if matches!(*link.borrow(), LinkState::Blocked(_)) {
            return;
        }
    }
}

/// One message after its publish.
enum Sent {
    Pending(PublisherConfirm),
    Never(String),
    Broken,
}

/// One message after its confirm, or after all hope of one.
enum Settled {
    Confirmed(Box<Confirmation>),
    Never(String),
    Broken,
}

impl Sent {
    async fn confirmed(self) -> Settled {
        match self {
            Self::Pending(confirm) => {
                confirm.await.map_or(Settled::Broken, |confirmation| Settled::Confirmed(Box::new(confirmation)))
            }
            Self::Never(reason) => Settled::Never(reason),
            Self::Broken => Settled::Broken,
        }
    }
}

async fn send(channel: &Channel, batch: &[Request]) -> Vec<Sent> {
    let mut sends = Vec::with_capacity(batch.len());
    for Request { message, .. } in batch {
        let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
        let properties = message.properties.clone().with_message_id(message.id.as_str().into());
        let exchange = message.exchange.as_str().into();
        let routing_key = message.routing_key.as_str().into();
        let sent = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
        sends.push(match sent {
            Ok(confirm) => Sent::Pending(confirm),
            // The library looks at the state before it writes anything.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) => Sent::Never(error.to_string()),
            Err(_) => Sent::Broken,
        });
    }
    sends
}

fn returned_id(settled: &Settled) -> Option<String> {
    let Settled::Confirmed(confirmation) = settled else { return None };
    let (Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) = &**confirmation else { return None };
    returned.delivery.properties.message_id().as_ref().map(ToString::to_string)
}

fn judge(settled: Settled) -> Result<(), PublishError> {
    match settled {
        Settled::Confirmed(confirmation) if confirmation.is_ack() => Ok(()),
        Settled::Confirmed(confirmation) if confirmation.is_nack() => Err(PublishError::Refused),
        Settled::Never(reason) => Err(PublishError::Unavailable(reason)),
        // A confirmation that is neither cannot come on a channel in confirm mode.
        Settled::Broken | Settled::Confirmed(_) => Err(PublishError::Unknown),
    }
}

#[derive(Debug)]
struct Instruments {
    published: Counter<u64>,
    confirm_seconds: Histogram<f64>,
}

impl Instruments {
    fn new() -> Self {
        let meter = crate::telemetry::meter();
        Self {
            published: meter
                .u64_counter("rollcall.broker.published")
                .with_description("Messages handed to the publisher, by outcome")
                .build(),
            confirm_seconds: meter
                .f64_histogram("rollcall.broker.confirm.duration")
                .with_unit("s")
                .with_description("From the first publish of a batch to its last confirm")
                .with_boundaries(crate::telemetry::SECONDS.to_vec())
                .build(),
        }
    }
}
