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
//!
//! # Why is a channel replaced after a refusal?
//! The broker's client of a quorum queue lives in the channel. In RabbitMQ 3.10 one whose first call to the queue's leader
//! failed, because that node had just died, refuses every later message too; a new channel asks for the leader again.
//!
//! # What does a refusal mean?
//! The queue is full, or it has no leader. The broker does not say which, so it is asked whether messages wait there.

mod batch;
mod instruments;
mod question;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{BasicProperties, Channel};
use opentelemetry::KeyValue;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

use self::batch::{judge, returned_id, send};
use self::instruments::Instruments;
use self::question::{ask, partitions};
use super::reports::Cause;
use super::{CONFIRM_DEADLINE, Link, LinkReports, LinkState, open_channel};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};

/// Requests that wait for one channel; beyond, publishing is refused at once.
const QUEUE_LENGTH: usize = 1024;
/// A batch is what is waiting, up to this; larger ones cost latency.
const LARGEST_BATCH: usize = 32;
/// How long messages that were sent may stay unread by a broker that blocks the connection.
const BLOCKED_PATIENCE: Duration = Duration::from_millis(500);
const CHANNEL_DEADLINE: Duration = Duration::from_secs(1);
/// How often a channel may be replaced because of refusals: a full queue refuses everything, whatever the channel.
const REPLACE_INTERVAL: Duration = Duration::from_secs(1);

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
    /// Nothing was stored: there is no connection, the broker blocks it, or it refused a command for another reason than a
    /// full queue.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// Nothing was sent: too many messages wait already.
    #[error("too many messages wait for the broker")]
    Full,
    /// No queue took it.
    #[error("no queue took the message")]
    Unroutable,
    /// A queue refused it. A partition queue that does is full; of others it is not known.
    #[error("the broker refused the message: a queue is full, or has no leader")]
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
        let owner = Owner { link, channel: None, replaced_at: None, instruments: Instruments::new() };
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
    /// When the last channel was replaced because of a refusal.
    replaced_at: Option<Instant>,
    instruments: Instruments,
}

#[derive(Clone)]
struct Confirming {
    channel: Channel,
    generation: u64,
    reports: Arc<LinkReports>,
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
            // Tasks that are ready to run may have more to publish.
            tokio::task::yield_now().await;
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
    async fn channel(&mut self) -> Result<Confirming, PublishError> {
        let (connection, generation, reports) = match &*self.link.borrow() {
            LinkState::Up { connection, generation, reports } => {
                (Arc::clone(connection), *generation, Arc::clone(reports))
            }
            LinkState::Down(reason) | LinkState::Blocked(reason) => {
                return Err(PublishError::Unavailable(reason.clone()));
            }
        };
        if let Some(open) = &self.channel
            && open.generation == generation
            && open.channel.status().connected()
        {
            return Ok(open.clone());
        }
        let opening = async {
            let channel = open_channel(&connection).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, super::ChannelError>(channel)
        };
        let opened = tokio::select! {
            opened = tokio::time::timeout(CHANNEL_DEADLINE, opening) => opened,
            () = blocked(self.link.clone()) => {
                return Err(PublishError::Unavailable("the broker takes no messages for now".into()));
            }
        };
        match opened {
            Ok(Ok(channel)) => Ok(self.channel.insert(Confirming { channel, generation, reports }).clone()),
            Ok(Err(error)) => Err(PublishError::Unavailable(chain(&error))),
            Err(_) => Err(PublishError::Unavailable("no channel could be opened in time".into())),
        }
    }

    fn refuse(&self, batch: Vec<Request>, error: &PublishError) {
        for request in batch {
            self.settle(request.answer, Err(error.clone()));
        }
    }

    async fn publish(&mut self, confirming: Confirming, mut batch: Vec<Request>) {
        // Requests wait at most a batch before theirs, so the first one's deadline is the strictest and holds for all.
        let Some(deadline) = batch.first().map(|first| first.deadline) else { return };
        let Confirming { channel, reports, .. } = confirming;
        let started = Instant::now();
        let work = async {
            let mut results = Vec::with_capacity(batch.len());
            for sent in send(&channel, &mut batch).await {
                results.push(sent.confirmed().await);
            }
            results
        };
        let confirmed = tokio::select! {
            confirmed = tokio::time::timeout_at(deadline, work) => confirmed.ok(),
            () = blocked(self.link.clone()) => None,
        };
        self.instruments.confirm_seconds.record(started.elapsed().as_secs_f64(), &[]);
        let Some(results) = confirmed else {
            warn!(messages = batch.len(), "the broker did not confirm in time; the channel is replaced");
            self.replace("unconfirmed");
            // A broker that blocks has not read them.
            if Instant::now() >= deadline {
                for partition in partitions(&reports, batch.iter()) {
                    reports.unconfirmed(partition, started, Cause::Unanswered);
                }
            }
            return self.refuse(batch, &PublishError::Unknown);
        };
        let returned: HashSet<String> = results.iter().filter_map(returned_id).collect();
        let outcomes = batch.into_iter().zip(results).map(|(request, result)| {
            let unroutable = returned.contains(&request.message.id);
            (request, if unroutable { Err(PublishError::Unroutable) } else { judge(result) })
        });
        let mut outcomes: Vec<_> = outcomes.collect();
        if outcomes.iter().any(|(_, outcome)| *outcome == Err(PublishError::Unknown)) {
            self.channel = None;
        }
        self.explain(&channel, &reports, started, &mut outcomes).await;
        for (request, outcome) in outcomes {
            self.settle(request.answer, outcome);
        }
    }

    /// Finds out what the refusals among these outcomes mean, and reports which partitions confirm and which do not.
    async fn explain(
        &mut self,
        channel: &Channel,
        reports: &LinkReports,
        started: Instant,
        outcomes: &mut [(Request, Result<(), PublishError>)],
    ) {
        let of = |wanted: Result<(), PublishError>| {
            let requests = outcomes.iter().filter(|(_, outcome)| *outcome == wanted).map(|(request, _)| request);
            partitions(reports, requests)
        };
        let refused = of(Err(PublishError::Refused));
        let (closed, accepted) = (of(Err(PublishError::Unknown)), of(Ok(())));
        for partition in of(Err(PublishError::Unroutable)) {
            reports.unroutable(partition);
        }
        let causes = ask(channel, reports, &refused).await;
        let closed = closed.into_iter().map(|partition| (partition, Cause::Closed));
        for (partition, cause) in causes.clone().into_iter().chain(closed) {
            reports.unconfirmed(partition, started, cause);
        }
        // One that does both was full for a moment.
        for partition in accepted {
            reports.confirmed(partition);
        }
        let mut nacked = false;
        for (request, outcome) in outcomes {
            if *outcome == Err(PublishError::Refused) {
                nacked = true;
                let message = &request.message;
                let partition = reports.topology().partition_of(&message.exchange, &message.routing_key);
                if partition.and_then(|partition| causes.get(&partition)) == Some(&Cause::Refused) {
                    let reason = "it refuses the command, and its queue is not full; it may have lost its leader";
                    *outcome = Err(PublishError::Unavailable(reason.to_owned()));
                }
            }
        }
        let lately = self.replaced_at.is_some_and(|at| at.elapsed() < REPLACE_INTERVAL);
        if nacked && !lately {
            warn!(partitions = ?causes.keys(), "the broker refused messages; the channel is replaced");
            self.replaced_at = Some(Instant::now());
            self.replace("refused");
        }
    }

    fn replace(&mut self, reason: &'static str) {
        self.channel = None;
        self.instruments.channels_replaced.add(1, &[KeyValue::new("reason", reason)]);
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
