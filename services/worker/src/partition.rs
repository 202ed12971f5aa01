//! The loop over one partition's queue: receive what is waiting, and hand it to `batch`.
//!
//! # Why close the channel instead of cancelling the consumer?
//! With a single active consumer, `basic.cancel` activates the next one while this one still holds unacknowledged
//! messages, so the order breaks. Closing the channel returns them first. It is also how the worker pauses: holding
//! deliveries while the database is away would run into the broker's acknowledgement timeout.
//! The client library sends `basic.cancel` when a consumer is dropped on an open channel, so here the channel is always
//! closed first. `rollcall torture` found one user's commands applied out of order when it was not.

mod batch;
mod look;

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use common::broker::{ChannelError, Link, LinkState, Topology, TopologyError, open_channel};
use common::command::CommandKeys;
use common::db::DatabaseState;
use common::health::CheckFailure;
use common::membership::{Holding, Holdings, Ownership};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::apply::{Applier, Fence};
use crate::blame::ApplyError;
use crate::consumption::{Applying, Consumption};
use crate::delivery::suspicious;
use crate::flood::FloodGuard;
use crate::instruments::Instruments;
use crate::lanes::Lanes;
use crate::progress::{Progress, QueueWatch, Tick};
use crate::relay::EventFeed;
use crate::replies::Replies;
use crate::suspects::Suspects;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A broker that has just started can leave a request about a queue unanswered for good.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);
/// For a batch that is under way when its partition is lost.
const COMMIT_MARGIN: Duration = Duration::from_secs(1);
/// For taking off a try that was cut off, while the channel closes. It may have to wait for the end of the session that the
/// try had.
const WITHDRAW_DEADLINE: Duration = Duration::from_secs(2);
/// What these can take at a stop, and a little more.
pub(crate) const STOP_MARGIN: Duration = Duration::from_millis(2500);

/// One partition of this worker.
pub(crate) struct Partition {
    pub(crate) number: u16,
    pub(crate) batch: u16,
    /// How long it may be without a delivery while messages wait.
    pub(crate) stall: Duration,
    /// How often in a row that happened.
    pub(crate) stalls: u32,
    pub(crate) topology: Topology,
    pub(crate) keys: CommandKeys,
    pub(crate) link: Link,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) applier: Applier,
    pub(crate) lanes: Lanes,
    /// The last batch was refused by the flood guard: one command at a time until one goes through.
    pub(crate) probing: bool,
    /// The last batch could not be applied: no lane waits for this partition until one goes through.
    pub(crate) isolated: bool,
    /// For what is no command: it pauses nothing.
    pub(crate) raw_guard: FloodGuard,
    pub(crate) suspects: Suspects,
    pub(crate) replies: Replies,
    pub(crate) feed: EventFeed,
    pub(crate) instruments: Instruments,
    pub(crate) consumption: Consumption,
    pub(crate) applying: Applying,
    pub(crate) progress: Progress,
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
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the broker ended the consumer")]
    ConsumerEnded,
    #[error("the broker did not open a consumer within {OPEN_DEADLINE:?}")]
    OpenDeadline,
    #[error("{0} messages wait and none was delivered")]
    Stalled(u32),
    #[error("an acknowledgement came too late for its channel")]
    AckLost,
    #[error("failed to apply a batch")]
    Apply(#[from] ApplyError),
    #[error("the queue cannot be consumed")]
    Topology(#[source] TopologyError),
    /// Another partition's may be there: this one is tried again until it is.
    #[error(transparent)]
    Missing(TopologyError),
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
            match interrupted {
                Ok(End::Stopping) => return Ok(()),
                Ok(End::LetGo) => {
                    info!(partition = self.number, "let go");
                    self.applying.clear(self.number);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(interrupted) => {
                    let reason = CheckFailure::of(&interrupted);
                    warn!(partition = self.number, %reason, "paused");
                    self.consumption.interrupted(self.number, reason);
                }
            }
            if lasted > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
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
            // Whatever failed here is the next owner's to find out.
            self.applying.clear(self.number);
            // The sender lives as long as the process: the wait cannot fail.
            let _ = self.holdings.ownership.changed().await;
        }
    }

    /// Consumes under one epoch; gives why it ended, and how long it lasted.
    async fn hold(&mut self, epoch: i64) -> (Result<End, Interrupted>, Duration) {
        let started = Instant::now();
        self.applier.fence(Fence { instance: self.holdings.instance, partition: self.number, epoch });
        self.feed.behind(self.number);
        let mut ownership = self.holdings.ownership.clone();
        let number = self.number;
        let lost = async move {
            let ours = Some(&Holding { epoch, wanted: false });
            let _ = ownership.wait_for(|owned| owned.get(&number) != ours).await;
        };
        let mut lost = std::pin::pin!(lost);
        let stopping = self.shutdown.clone();
        // Only the wait for the servers is interrupted, and not the opening: see `open`.
        let ready = tokio::select! {
            () = stopping.reached(Phase::Stopping) => return (Ok(End::Stopping), started.elapsed()),
            () = &mut lost => return (Ok(End::LetGo), started.elapsed()),
            ready = self.ready() => ready,
        };
        let end = match ready {
            Err(interrupted) => Err(interrupted),
            Ok(connection) => self.consume_over(&connection, epoch, lost).await,
        };
        (end, started.elapsed())
    }

    async fn consume_over(
        &mut self,
        connection: &Connection,
        epoch: i64,
        lost: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Interrupted> {
        let (channel, mut consumer) = self.open(connection).await?;
        let taken = taken(self.holdings.ownership.clone(), self.number, epoch);
        self.consumption.began(self.number);
        let end = tokio::select! {
            end = self.consume(&channel, &mut consumer, lost) => end,
            () = taken => Ok(End::LetGo),
        };
        if matches!(end, Err(Interrupted::Stalled(_))) {
            self.stalled(connection).await;
        }
        tokio::join!(close(&channel), self.withdraw());
        // Not before: a consumer that is dropped on an open channel sends `basic.cancel`.
        drop(consumer);
        self.consumption.ended(self.number);
        end
    }

    /// Takes off the try that was cut off, if one was: it ended for no fault of its command.
    async fn withdraw(&self) {
        match tokio::time::timeout(WITHDRAW_DEADLINE, self.suspects.withdraw()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(partition = self.number, reason = chain(&error), "a try is taken off later"),
            Err(_) => warn!(partition = self.number, "a try could not be taken off within {WITHDRAW_DEADLINE:?}"),
        }
    }

    /// A consumer that receives nothing looks healthy to every probe. So the channel is replaced, which the caller does
    /// anyway; the next time the connection; and then the process ends, for whoever supervises it to see.
    async fn stalled(&mut self, connection: &Connection) {
        self.stalls += 1;
        match self.stalls {
            1 => {}
            2 => {
                let closing = connection.close(200, "no deliveries".into());
                let _ = tokio::time::timeout(Duration::from_secs(1), closing).await;
            }
            _ => self.shutdown.fail(format!("partition {} receives nothing, though messages wait", self.number)),
        }
    }

    /// Waits for both servers. After a batch that did not go through, also for a trial that does: every delivery that comes
    /// back counts against the queue's limit, and a database that can be read is not always one that can be written.
    async fn ready(&mut self) -> Result<Arc<Connection>, Interrupted> {
        // The senders live as long as the process: neither wait can fail.
        let _ = self.database.wait_for(|state| *state == DatabaseState::Up).await;
        if self.applying.fails(self.number) {
            self.applier.probe().await?;
            // What floods shows only in the commands themselves.
            if !self.probing {
                self.applying.clear(self.number);
            }
        }
        match self.link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.as_deref() {
            Ok(LinkState::Up { connection, .. }) => Ok(Arc::clone(connection)),
            _ => Err(Interrupted::ConsumerEnded),
        }
    }

    /// Opens a channel with a consumer. Not to be dropped half-way: the broker may have delivered already, and a consumer
    /// must not end before its channel.
    async fn open(&self, connection: &Connection) -> Result<(Channel, Consumer), Interrupted> {
        // A new channel each time: taking a consumer up again on an old one can lose deliveries in flight on 3.10.
        let creating = tokio::time::timeout(OPEN_DEADLINE, open_channel(connection));
        let channel = creating.await.map_err(|_| Interrupted::OpenDeadline)??;
        let mut consuming = pin!(self.consume_on(&channel));
        let opened = tokio::time::timeout(OPEN_DEADLINE, &mut consuming).await;
        let failure = match opened {
            Ok(Ok(consumer)) => return Ok((channel.clone(), consumer)),
            Ok(Err(failure)) => failure,
            Err(_) => Interrupted::OpenDeadline,
        };
        close(&channel).await;
        Err(failure)
    }

    async fn consume_on(&self, channel: &Channel) -> Result<Consumer, Interrupted> {
        // The prefetch is one batch: what a crash can make the broker deliver again stays small.
        channel.basic_qos(self.batch, BasicQosOptions::default()).await?;
        // Acknowledged by hand after the commit; not exclusive, because the queue itself admits one active consumer.
        let options = BasicConsumeOptions::default();
        let queue = self.topology.partition_queue(self.number);
        let consuming = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let consumer = consuming.await.map_err(|error| match self.topology.unreadable(&queue, error) {
            missing @ TopologyError::Missing { .. } => Interrupted::Missing(missing),
            other => Interrupted::Topology(other),
        })?;
        info!(partition = self.number, "consuming");
        Ok(consumer)
    }

    async fn consume(
        &mut self,
        channel: &Channel,
        consumer: &mut Consumer,
        mut lost: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Interrupted> {
        let mut ticks = self.progress.ticks();
        let mut queue = QueueWatch::new(self.progress.clone(), self.number, self.batch);
        let mut stalls_at = Instant::now() + self.stall;
        loop {
            let first = tokio::select! {
                // A batch that was begun is finished; only waiting is interrupted.
                biased;
                () = self.shutdown.reached(Phase::Stopping) => return Ok(End::Stopping),
                () = &mut lost => return Ok(End::LetGo),
                Some(tick) = Tick::next(&mut ticks) => match self.look(channel, consumer, &mut queue, tick).await? {
                    Some(delivery) => delivery,
                    None => continue,
                },
                delivery = consumer.next() => delivery.ok_or(Interrupted::ConsumerEnded)??,
                () = tokio::time::sleep_until(stalls_at) => {
                    self.look_for_waiting(channel).await?;
                    stalls_at = Instant::now() + self.stall;
                    continue;
                }
            };
            self.stalls = 0;
            let mut place = (!self.isolated).then(|| self.lanes.announce(self.number));
            if let Some(place) = &place {
                tokio::select! {
                    () = place.ready() => {}
                    () = self.shutdown.reached(Phase::Stopping) => return Ok(End::Stopping),
                    () = &mut lost => return Ok(End::LetGo),
                }
            }
            let mut deliveries = vec![first];
            let most = if self.probing { 1 } else { usize::from(self.batch) };
            while deliveries.len() < most
                && let Some(Some(next)) = consumer.next().now_or_never()
            {
                deliveries.push(next?);
            }
            // What may have ended a worker is tried alone, in its place.
            let together = |one: &Delivery, next: &Delivery| !suspicious(one) && !suspicious(next);
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
                // What is not finished when the end is near is undone, and goes back to the queue.
                let stopping = self.shutdown.clone();
                tokio::select! {
                    processed = self.process(deliveries.by_ref().take(size).collect(), place.take()) => processed?,
                    () = stopping.finish_is_near(STOP_MARGIN) => return Ok(End::Stopping),
                }
                queue.settled(size);
            }
            stalls_at = Instant::now() + self.stall;
        }
    }
}

/// Waits until a partition has not been this instance's under this epoch for a while. A batch that is still under way can
/// hardly be committed any more, and as long as it holds its messages the next owner is given none.
async fn taken(mut ownership: watch::Receiver<Ownership>, number: u16, epoch: i64) {
    let ours = |owned: &Ownership| owned.get(&number).is_some_and(|holding| holding.epoch == epoch);
    while ownership.wait_for(|owned| !ours(owned)).await.is_ok() {
        // What is about to be committed may be.
        let back = tokio::time::timeout(COMMIT_MARGIN, ownership.wait_for(ours)).await;
        if !matches!(back, Ok(Ok(_))) {
            return;
        }
    }
}

/// What was delivered and not acknowledged goes back to the head of the queue; only then may another read.
async fn close(channel: &Channel) {
    let _ = tokio::time::timeout(Duration::from_secs(1), channel.close(200, "released".into())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_partition_counts_as_taken_once_it_has_been_lost_for_a_while() {
        let held = |epoch| Ownership::from([(7, Holding { epoch, wanted: false })]);
        let (sender, ownership) = watch::channel(held(1));
        let mut taken = pin!(taken(ownership, 7, 1));
        let mut within = async |wait| tokio::time::timeout(wait, &mut taken).await.is_ok();
        let moment = COMMIT_MARGIN / 2;
        // Wanted by another is not lost; nor is what is back in a moment.
        for step in [Ownership::from([(7, Holding { epoch: 1, wanted: true })]), Ownership::new(), held(1)] {
            sender.send_replace(step);
            assert!(!within(moment).await);
        }
        assert!(!within(COMMIT_MARGIN * 5).await);
        sender.send_replace(held(2));
        assert!(!within(moment).await);
        assert!(within(COMMIT_MARGIN).await, "another epoch is another's, even if that is this instance again");
    }
}
