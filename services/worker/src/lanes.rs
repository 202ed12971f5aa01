//! Apply lanes: each applies what waits in its partitions in one transaction after the other.
//!
//! While a transaction runs, the next batches of the lane's partitions gather, so transactions grow with the load, and a lone
//! command finds its lane free. A partition always uses the same lane, and waits for the end of its batch before it hands over
//! the next: order holds.
//!
//! # What if a transaction fails?
//! A lane isolates nothing. Every partition of the transaction then applies its batch in a transaction of its own, where the guilty
//! command is found and a partition that has to wait makes no other one wait. A partition that is no longer owned leaves the transaction,
//! and the others go on.

use std::sync::Arc;

use common::shutdown::{Shutdown, TaskResult, Tier};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, info};

use crate::apply::{Committed, Fence, Share, Transactions};
use crate::blame::ApplyError;
use crate::delivery::{BatchSpan, CommandSpan};
use crate::incoming::IncomingMessage;
use crate::instruments::Instruments;
use crate::partition::STOP_MARGIN;

/// Commands of one transaction, at most, unless a single batch has more. Larger ones gain little and make others wait.
const LARGEST: usize = 1000;
/// Batches that wait for a lane; a partition has one at a time.
const QUEUE_LENGTH: usize = 1024;

/// The lanes of a worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    lanes: Arc<[mpsc::Sender<Request>]>,
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
    pub(crate) fn start(shutdown: &Shutdown, instruments: &Instruments, lanes: Vec<Transactions>) -> Self {
        let start = |transactions| {
            let (sender, requests) = mpsc::channel(QUEUE_LENGTH);
            let lane = Lane { transactions, instruments: instruments.clone(), shutdown: shutdown.clone() };
            shutdown.supervise("lane", Tier::Front, lane.run(requests));
            sender
        };
        Self { lanes: lanes.into_iter().map(start).collect() }
    }

    /// Applies a batch with whatever else waits for its lane.
    pub(crate) async fn apply(&self, batch: LaneBatch) -> LaneAnswer {
        let lane = &self.lanes[usize::from(batch.fence.partition) % self.lanes.len()];
        let (answer, answered) = oneshot::channel();
        if lane.send(Request { batch, answer }).await.is_err() {
            return LaneAnswer::Alone;
        }
        // A lane that ended has stopped; so does the partition.
        answered.await.unwrap_or(LaneAnswer::Alone)
    }
}

struct Lane {
    transactions: Transactions,
    instruments: Instruments,
    shutdown: Shutdown,
}

impl Lane {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> TaskResult {
        let stopping = self.shutdown.clone();
        let mut next = None;
        loop {
            let Some(first) = (match next.take() {
                Some(request) => Some(request),
                None => requests.recv().await,
            }) else {
                return Ok(());
            };
            let (gathered, rest) = gather(first, &mut requests);
            next = rest;
            // The partition may have gone: its messages are in the queue again.
            let gathered: Vec<Request> = gathered.into_iter().filter(|request| !request.answer.is_closed()).collect();
            if gathered.is_empty() {
                continue;
            }
            tokio::select! {
                () = self.apply(gathered) => {}
                // What is not finished when the end is near is undone, and goes back to the queues.
                () = stopping.finish_is_near(STOP_MARGIN) => return Ok(()),
            }
        }
    }

    async fn apply(&mut self, requests: Vec<Request>) {
        let span = BatchSpan::open(requests.iter().flat_map(|request| request.batch.spans.iter()));
        let shares: Vec<Share<'_>> = requests.iter().map(|request| request.batch.share()).collect();
        let committed = self.transactions.together(&shares).instrument(span.batch.clone()).await;
        drop(span);
        match committed {
            Ok(committed) => {
                self.instruments.transaction(requests.iter().map(|request| request.batch.messages.len()).sum());
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

/// Takes what waits, up to a transaction; gives a batch that did not fit, too.
fn gather(first: Request, requests: &mut mpsc::Receiver<Request>) -> (Vec<Request>, Option<Request>) {
    let mut commands = first.batch.messages.len();
    let mut gathered = vec![first];
    while let Ok(request) = requests.try_recv() {
        commands += request.batch.messages.len();
        if commands > LARGEST {
            return (gathered, Some(request));
        }
        gathered.push(request);
    }
    (gathered, None)
}
