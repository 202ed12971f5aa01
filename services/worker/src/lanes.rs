//! Apply lanes: each applies what waits in its partitions in one transaction after the other.
//!
//! While a transaction runs, deliveries gather in its partitions. When it has ended, each of them takes what waits there and hands it
//! over, and the next transaction has it all: transactions grow with the load, and a lone command finds its lane free. Under load
//! a lane also lingers between transactions, because larger ones cost less per command. A partition always uses the same lane,
//! and waits for the end of its batch before it hands over the next: order holds.
//!
//! # What if a transaction fails?
//! A lane isolates nothing, and waits neither long for a lock nor long in all. Every partition of the transaction then applies its
//! batch in a transaction of its own, where the guilty command is found and a partition that has to wait makes no other one wait; it
//! stays out of the lane until one of its batches has gone through. A partition that is no longer owned leaves the transaction, and
//! the others go on.

mod gate;

use std::sync::Arc;
use std::time::Duration;

use common::shutdown::{Shutdown, TaskResult, Tier};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, info};

use self::gate::Gate;
pub(crate) use self::gate::LanePlace;
use crate::apply::{Committed, Fence, Share, Transactions};
use crate::blame::ApplyError;
use crate::delivery::{BatchSpan, CommandSpan};
use crate::incoming::IncomingMessage;
use crate::instruments::Instruments;
use crate::partition::STOP_MARGIN;
use crate::replies::Replies;

/// Commands of one transaction, at most, unless a single batch has more. Larger ones gain little and make others wait.
const LARGEST: usize = 1000;
/// Batches that wait for a lane; a partition has one at a time.
const QUEUE_LENGTH: usize = 1024;
/// How long a lane waits for partitions that have deliveries and are about to hand them over.
const GATHERING: Duration = Duration::from_millis(2);
/// From the beginning of one transaction to the next under load.
const LINGER: Duration = Duration::from_millis(6);
/// Commands of a transaction, on average of the last ones, that are load.
const LOAD: usize = 3;

/// The lanes of a worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    lanes: Arc<[LaneHandle]>,
}

#[derive(Debug)]
struct LaneHandle {
    gate: Gate,
    requests: mpsc::Sender<Request>,
}

/// Batch of one partition.
#[derive(Debug)]
pub(crate) struct LaneBatch {
    pub(crate) fence: Fence,
    /// When the queue was last seen empty, by the database's clock, if it was.
    pub(crate) published_after: Option<OffsetDateTime>,
    pub(crate) messages: Arc<[IncomingMessage]>,
    /// The spans of its commands.
    pub(crate) spans: Arc<[CommandSpan]>,
}

#[derive(Debug)]
struct Request {
    batch: LaneBatch,
    answer: oneshot::Sender<LaneAnswer>,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) enum LaneAnswer {
    /// It was applied, perhaps with others.
    Committed(Arc<Committed>),
    /// The partition is not owned any more.
    Fenced,
    /// Nothing was applied: the batch needs a transaction of its own.
    Alone,
}

impl Lanes {
    /// Starts as many lanes as there are transactions to run; each ends once no partition uses it any more.
    pub(crate) fn start(
        shutdown: &Shutdown,
        instruments: &Instruments,
        replies: &Replies,
        lanes: Vec<Transactions>,
    ) -> Self {
        let start = |transactions| {
            let (sender, requests) = mpsc::channel(QUEUE_LENGTH);
            let gate = Gate::default();
            let lane = Lane {
                transactions,
                gate: gate.clone(),
                requests,
                next: None,
                instruments: instruments.clone(),
                replies: replies.clone(),
                shutdown: shutdown.clone(),
            };
            shutdown.supervise("lane", Tier::Front, lane.run());
            LaneHandle { gate, requests: sender }
        };
        Self { lanes: lanes.into_iter().map(start).collect() }
    }

    /// Announces a batch of a partition: the lane waits a moment for it before it begins a transaction.
    pub(crate) fn announce(&self, partition: u16) -> LanePlace {
        self.of(partition).gate.announce()
    }

    /// Applies a batch with whatever else waits for its lane.
    pub(crate) async fn apply(&self, batch: LaneBatch, place: LanePlace) -> LaneAnswer {
        let (answer, answered) = oneshot::channel();
        let sent = self.of(batch.fence.partition).requests.send(Request { batch, answer }).await;
        drop(place);
        if sent.is_err() {
            return LaneAnswer::Alone;
        }
        // A lane that ended has stopped; so does the partition.
        answered.await.unwrap_or(LaneAnswer::Alone)
    }

    fn of(&self, partition: u16) -> &LaneHandle {
        &self.lanes[usize::from(partition) % self.lanes.len()]
    }
}

struct Lane {
    transactions: Transactions,
    gate: Gate,
    requests: mpsc::Receiver<Request>,
    /// One that did not fit into the last transaction.
    next: Option<Request>,
    instruments: Instruments,
    replies: Replies,
    shutdown: Shutdown,
}

impl Lane {
    async fn run(mut self) -> TaskResult {
        let stopping = self.shutdown.clone();
        let mut load = 0;
        loop {
            self.gate.open();
            let Some(requests) = self.gather().await else { return Ok(()) };
            self.gate.close();
            let started = Instant::now();
            let commands: usize = requests.iter().map(|request| request.batch.messages.len()).sum();
            tokio::select! {
                () = self.apply(requests) => {}
                // What is not finished when the end is near is undone, and goes back to the queues.
                () = stopping.finish_is_near(STOP_MARGIN) => return Ok(()),
            }
            load = usize::midpoint(load, commands);
            if load >= LOAD {
                sleep_until(started + LINGER).await;
            }
        }
    }

    /// Takes what is announced, up to a transaction; `None` once no partition uses the lane any more.
    async fn gather(&mut self) -> Option<Vec<Request>> {
        let mut gathered = Vec::new();
        let mut commands = 0;
        let mut request = match self.next.take() {
            Some(request) => request,
            None => self.requests.recv().await?,
        };
        let deadline = Instant::now() + GATHERING;
        loop {
            // The partition may have gone: its messages are in the queue again.
            if !request.answer.is_closed() {
                commands += request.batch.messages.len();
                if commands > LARGEST && !gathered.is_empty() {
                    self.next = Some(request);
                    break;
                }
                gathered.push(request);
            }
            request = tokio::select! {
                biased;
                Some(request) = self.requests.recv() => request,
                () = self.gate.nobody_announced() => break,
                () = sleep_until(deadline) => break,
            };
        }
        Some(gathered)
    }

    async fn apply(&mut self, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let span = BatchSpan::open(requests.iter().flat_map(|request| request.batch.spans.iter()));
        let shares: Vec<Share<'_>> = requests.iter().map(|request| request.batch.share()).collect();
        let committed = self.transactions.together(&shares).instrument(span.batch.clone()).await;
        drop(span);
        match committed {
            Ok(committed) => {
                self.instruments.transaction(requests.iter().map(|request| request.batch.messages.len()).sum());
                // Those of one API instance leave in one message.
                for request in &requests {
                    if committed.partitions.contains(&request.batch.fence.partition) {
                        self.replies.send(&request.batch.messages, &committed);
                    }
                }
                let committed = Arc::new(committed);
                for Request { batch, answer } in requests {
                    let owned = committed.partitions.contains(&batch.fence.partition);
                    let end = if owned { LaneAnswer::Committed(Arc::clone(&committed)) } else { LaneAnswer::Fenced };
                    // The partition may have gone.
                    let _ = answer.send(end);
                }
            }
            Err(ApplyError::Fenced) => {
                for request in requests {
                    let _ = request.answer.send(LaneAnswer::Fenced);
                }
            }
            Err(error) => {
                info!(partitions = requests.len(), %error, "a transaction failed; its partitions apply their batches alone");
                for request in requests {
                    let _ = request.answer.send(LaneAnswer::Alone);
                }
            }
        }
    }
}

impl LaneBatch {
    fn share(&self) -> Share<'_> {
        Share { fence: self.fence, published_after: self.published_after, messages: &self.messages }
    }
}
