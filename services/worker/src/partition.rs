//! The loop over one partition's queue: receive what is waiting, apply, acknowledge, reply.
//!
//! # Why close the channel instead of cancelling the consumer?
//! With a single active consumer, `basic.cancel` activates the next one while this one still holds unacknowledged
//! messages, so the order breaks. Closing the channel returns them first. It is also how the worker pauses: holding
//! deliveries while the database is away would run into the broker's acknowledgement timeout.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::broker::{Link, LinkState, Topology};
use common::command::{CommandId, Envelope};
use common::db::{DatabaseState, Pool, within};
use common::membership::{Holding, Holdings};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use common::telemetry::amqp_trace_headers;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use crate::apply::{Applier, Fence};
use crate::applying::Applying;
use crate::blame::ApplyError;
use crate::consumption::Consumption;
use crate::dead_letters::{RawMessage, Traces, record_raw};
use crate::delivery::{BatchSpans, came_again, decode};
use crate::instruments::Instruments;
use crate::replies::Replies;
use crate::suspects::Suspects;
use crate::users::Outcome;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// While a person has to mend something: each look returns the messages once more, and the broker counts that.
const LONGEST_FAULT_PAUSE: Duration = Duration::from_secs(30);
/// How long a message that is no command may take to be recorded.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);
/// A broker that has just started can leave a request about a queue unanswered for good.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);
/// How often a batch is tried again in place when another transaction was in the way.
const CONTENTION_TRIES: u32 = 5;

/// One partition of this worker.
pub(crate) struct Partition {
    pub(crate) number: u16,
    pub(crate) batch: u16,
    pub(crate) topology: Topology,
    pub(crate) link: Link,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) applier: Applier,
    /// The last batch was refused by the flood guard: one command at a time until one goes through.
    pub(crate) probing: bool,
    pub(crate) suspects: Suspects,
    pub(crate) pool: Pool,
    pub(crate) replies: Replies,
    pub(crate) instruments: Instruments,
    pub(crate) applying: Applying,
    pub(crate) consumption: Consumption,
    pub(crate) holdings: Holdings,
    pub(crate) shutdown: Shutdown,
}

/// How consuming ends in good order.
enum End {
    Stopping,
    /// Another instance owns the partition, or shall.
    LetGo,
}

/// Why consuming ended; the partition is taken up again after a pause.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error("the broker's channel failed")]
    Broker(#[from] lapin::Error),
    #[error("the broker ended the consumer")]
    ConsumerEnded,
    #[error("the broker did not open a consumer within {OPEN_DEADLINE:?}")]
    OpenDeadline,
    #[error("an acknowledgement came too late for its channel")]
    AckLost,
    #[error("failed to apply a batch")]
    Apply(#[from] ApplyError),
    #[error("failed to declare the queue")]
    Topology(#[from] common::broker::TopologyError),
}

impl Partition {
    /// Starts the loop; it ends when the process stops.
    pub(crate) fn start(self) {
        let shutdown = self.shutdown.clone();
        shutdown.supervise("partition", Tier::Front, self.run());
    }

    async fn run(mut self) -> TaskResult {
        let stopping = self.shutdown.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            let (interrupted, lasted) = tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                epoch = self.owned() => self.hold(epoch).await,
            };
            let mut longest = LONGEST_PAUSE;
            match interrupted {
                Ok(End::Stopping) => return Ok(()),
                Ok(End::LetGo) => {
                    info!(partition = self.number, "let go");
                    self.applying.clear(self.number);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(interrupted) => {
                    if let Interrupted::Apply(ApplyError::Deployment(_) | ApplyError::Flood(_)) = interrupted {
                        longest = LONGEST_FAULT_PAUSE;
                    }
                    warn!(partition = self.number, reason = chain(&interrupted), "paused");
                }
            }
            if lasted > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(longest),
            }
        }
    }

    /// Waits until this instance owns the partition and nobody else wants it; gives the epoch.
    async fn owned(&mut self) -> i64 {
        loop {
            let held = self.holdings.ownership.borrow_and_update().get(&self.number).copied();
            match held {
                Some(Holding { epoch, wanted: false }) => return epoch,
                // Nothing of it is under way here.
                Some(Holding { wanted: true, .. }) => self.holdings.let_go(self.number),
                None => {}
            }
            // The sender lives as long as the process: the wait cannot fail.
            let _ = self.holdings.ownership.changed().await;
        }
    }

    /// Consumes under one epoch; gives why it ended, and how long it lasted.
    async fn hold(&mut self, epoch: i64) -> (Result<End, Interrupted>, Duration) {
        let started = Instant::now();
        self.applier.fence(Fence { instance: self.holdings.instance, partition: self.number, epoch });
        let mut ownership = self.holdings.ownership.clone();
        let number = self.number;
        let lost = async move {
            let ours = Some(&Holding { epoch, wanted: false });
            let _ = ownership.wait_for(|owned| owned.get(&number) != ours).await;
        };
        let mut lost = std::pin::pin!(lost);
        let stopping = self.shutdown.clone();
        let opened = tokio::select! {
            () = stopping.reached(Phase::Stopping) => return (Ok(End::Stopping), started.elapsed()),
            () = &mut lost => return (Ok(End::LetGo), started.elapsed()),
            opened = self.open() => opened,
        };
        let end = match opened {
            Err(interrupted) => Err(interrupted),
            Ok((channel, consumer)) => {
                self.consumption.began(self.number);
                let end = self.consume(consumer, lost).await;
                // What was delivered and not acknowledged goes back to the head of the queue; only then may another read.
                let _ = tokio::time::timeout(Duration::from_secs(1), channel.close(200, "released".into())).await;
                self.consumption.ended(self.number);
                end
            }
        };
        (end, started.elapsed())
    }

    /// Waits for both servers, then opens a channel and consumes on it.
    async fn open(&mut self) -> Result<(Channel, Consumer), Interrupted> {
        // The senders live as long as the process: neither wait can fail.
        let _ = self.database.wait_for(|state| *state == DatabaseState::Up).await;
        let connection = match self.link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.as_deref() {
            Ok(LinkState::Up { connection, .. }) => Arc::clone(connection),
            _ => return Err(Interrupted::ConsumerEnded),
        };
        let opening = self.open_on(&connection);
        tokio::time::timeout(OPEN_DEADLINE, opening).await.map_err(|_| Interrupted::OpenDeadline)?
    }

    async fn open_on(&self, connection: &Connection) -> Result<(Channel, Consumer), Interrupted> {
        // A new channel each time: taking a consumer up again on an old one can lose deliveries in flight on 3.10.
        let channel = connection.create_channel().await?;
        self.topology.declare_partition(&channel, self.number).await?;
        // The prefetch is one batch: what a crash can make the broker deliver again stays small.
        channel.basic_qos(self.batch, BasicQosOptions::default()).await?;
        // Acknowledged by hand after the commit; not exclusive, because the queue itself admits one active consumer.
        let options = BasicConsumeOptions::default();
        let queue = self.topology.partition_queue(self.number);
        let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
        info!(partition = self.number, "consuming");
        Ok((channel, consumer))
    }

    async fn consume(
        &mut self,
        mut consumer: Consumer,
        mut lost: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Interrupted> {
        loop {
            let first = tokio::select! {
                // A batch that was begun is finished; only waiting is interrupted.
                biased;
                () = self.shutdown.reached(Phase::Stopping) => return Ok(End::Stopping),
                () = &mut lost => return Ok(End::LetGo),
                delivery = consumer.next() => delivery.ok_or(Interrupted::ConsumerEnded)??,
            };
            let mut deliveries = vec![first];
            let most = if self.probing { 1 } else { usize::from(self.batch) };
            while deliveries.len() < most
                && let Some(Some(next)) = consumer.next().now_or_never()
            {
                deliveries.push(next?);
            }
            // What came again is tried alone, in its place.
            let together = |one: &Delivery, next: &Delivery| !came_again(one) && !came_again(next);
            let sizes: Vec<usize> = deliveries.chunk_by(together).map(<[_]>::len).collect();
            let mut deliveries = deliveries.into_iter();
            for size in sizes {
                // Many alone take long: whoever wants this to end waits for the one under way only.
                if self.shutdown.phase() >= Phase::Stopping {
                    return Ok(End::Stopping);
                }
                if lost.as_mut().now_or_never().is_some() {
                    return Ok(End::LetGo);
                }
                self.process(deliveries.by_ref().take(size).collect()).await?;
            }
        }
    }

    async fn process(&mut self, deliveries: Vec<Delivery>) -> Result<(), Interrupted> {
        let Some(last) = deliveries.last().map(|delivery| delivery.acker.clone()) else { return Ok(()) };
        let mut decoded = Vec::with_capacity(deliveries.len());
        let mut commands = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            match decode(&delivery, &self.applier) {
                Ok(envelope) => {
                    commands.push(envelope);
                    decoded.push(delivery);
                }
                Err(reason) => {
                    // Without the reason: it can quote what stands in the message.
                    warn!(partition = self.number, "a message that cannot be decoded is recorded as it came");
                    self.record(&delivery, &reason).await?;
                    self.instruments.undecodable();
                }
            }
        }
        if !commands.is_empty() {
            let spans = BatchSpans::open(&decoded, &commands);
            let transactions = spans.transactions();
            let started = Instant::now();
            let alone = decoded.iter().any(came_again);
            let traces = decoded.iter().zip(&commands);
            let traces = traces.map(|(d, c)| (c.id, amqp_trace_headers(d.properties.headers().as_ref()))).collect();
            let outcomes = self.apply(&commands, &traces, alone).instrument(spans.batch.clone()).await?;
            drop(transactions);
            spans.record(commands.iter().map(|c| outcomes.get(&c.id)));
            self.instruments.batch(self.number, &commands, started.elapsed(), |c| outcomes.get(&c.id));
        }
        // All at once: the deliveries of a channel are settled in order.
        if !last.ack(BasicAckOptions { multiple: true }).await? {
            return Err(Interrupted::AckLost);
        }
        for (delivery, envelope) in decoded.iter().zip(&commands) {
            if let Some(reply_to) = delivery.properties.reply_to() {
                self.replies.hint(reply_to, envelope.id);
            }
        }
        Ok(())
    }

    async fn record(&self, delivery: &Delivery, reason: &str) -> Result<(), ApplyError> {
        let trace = amqp_trace_headers(delivery.properties.headers().as_ref());
        let mut lease = self.pool.acquire(RECORD_DEADLINE).await?;
        let message = RawMessage { payload: &delivery.data, reason, trace: &trace };
        within(RECORD_DEADLINE, record_raw(&mut lease, message)).await?;
        lease.release();
        Ok(())
    }

    async fn apply(
        &mut self,
        commands: &[Envelope],
        traces: &Traces,
        alone: bool,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        let mut tries = 1;
        loop {
            let end = match commands {
                [command] if alone => self.suspects.apply(&mut self.applier, command, traces).await,
                _ => self.applier.apply_traced(commands, traces).await,
            };
            match end {
                Err(ApplyError::Contention(_)) if tries < CONTENTION_TRIES => {
                    let jittered = Duration::from_millis(20 * u64::from(tries)).mul_f64(rand::random::<f64>());
                    tokio::time::sleep(jittered).await;
                    tries += 1;
                }
                Err(error) => {
                    self.probing |= matches!(error, ApplyError::Flood(_));
                    if let ApplyError::Deployment(_) | ApplyError::Command { .. } | ApplyError::Flood(_) = error {
                        self.applying.stopped(self.number, chain(&error));
                    }
                    return Err(error);
                }
                Ok(outcomes) => {
                    self.probing = false;
                    self.applying.clear(self.number);
                    return Ok(outcomes);
                }
            }
        }
    }
}
