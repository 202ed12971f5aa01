//! One batch of a partition: decode, apply, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use common::health::CheckFailure;
use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, warn};

use super::{Interrupted, Partition};
use crate::admission::admit;
use crate::apply::Committed;
use crate::blame::ApplyError;
use crate::delivery::{BatchSpan, CommandSpan, acknowledge, refuse, suspicious};
use crate::incoming::IncomingMessage;
use crate::lanes::{LaneAnswer, LaneBatch, LanePlace};

/// How often a batch is tried again in place when another transaction was in the way.
const CONTENTION_TRIES: u32 = 5;

/// Deliveries with their messages, in order.
struct Sorted {
    deliveries: Vec<Delivery>,
    messages: Arc<[IncomingMessage]>,
    /// How many of these are no commands.
    raw: usize,
    /// No commands, and more than are recorded.
    surplus: Vec<Delivery>,
}

impl Partition {
    /// Applies and acknowledges. A place is that of a batch that was announced to the lane.
    pub(super) async fn process(
        &mut self,
        deliveries: Vec<Delivery>,
        place: Option<LanePlace>,
    ) -> Result<(), Interrupted> {
        let Sorted { deliveries, messages, raw, surplus } = self.sort(deliveries);
        let Some(last) = deliveries.last().map(|delivery| delivery.acker.clone()) else {
            return self.refuse(surplus).await;
        };
        #[cfg(feature = "mutants")]
        let acknowledged = crate::mutants::acknowledged(&last).await?;
        let spans: Arc<[CommandSpan]> = CommandSpan::open_all(&deliveries, &messages).into();
        let started = Instant::now();
        let suspected = deliveries.iter().any(suspicious);
        let place = place.filter(|_| !suspected);
        let committed = self.apply(&messages, &spans, place, suspected).await?;
        self.raw_guard.note(messages.len(), raw);
        let outcomes = messages.iter().filter_map(IncomingMessage::id).map(|id| committed.outcomes.get(&id));
        for (span, outcome) in spans.iter().zip(outcomes) {
            span.record(outcome);
        }
        drop(spans);
        self.instruments.batch(self.number, &messages, started.elapsed(), &committed.outcomes);
        #[cfg(feature = "mutants")]
        if acknowledged {
            return Ok(());
        }
        // First, because what follows acknowledges whatever is left before the last one.
        self.refuse(surplus).await?;
        // All at once: the deliveries of a channel are settled in order.
        if !acknowledge(&last, true).await? {
            return Err(Interrupted::AckLost);
        }
        Ok(())
    }

    /// Admits the deliveries, and sets those aside that are no commands and more than are recorded.
    fn sort(&self, deliveries: Vec<Delivery>) -> Sorted {
        let admitted: Vec<(Delivery, IncomingMessage)> = deliveries
            .into_iter()
            .map(|mut delivery| {
                let message = admit(&mut delivery, &self.keys);
                (delivery, message)
            })
            .collect();
        let is_raw = |message: &IncomingMessage| message.id().is_none();
        let raw = admitted.iter().filter(|(_, message)| is_raw(message)).count();
        let room = self.raw_guard.room(admitted.len(), raw);
        let (mut taken, mut messages, mut surplus, mut recorded) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (delivery, message) in admitted {
            let raw = is_raw(&message);
            if raw && recorded == room {
                surplus.push(delivery);
                continue;
            }
            recorded += usize::from(raw);
            taken.push(delivery);
            messages.push(message);
        }
        Sorted { deliveries: taken, messages: messages.into(), raw: recorded, surplus }
    }

    async fn refuse(&self, surplus: Vec<Delivery>) -> Result<(), Interrupted> {
        if surplus.is_empty() {
            return Ok(());
        }
        for delivery in &surplus {
            if !refuse(&delivery.acker).await? {
                return Err(Interrupted::AckLost);
            }
        }
        let (partition, messages) = (self.number, surplus.len());
        warn!(partition, messages, "too many messages are no commands; the broker moves these to its dead letters");
        Ok(())
    }

    /// Applies a batch in the transaction of its lane, or in its own: one that failed with others, a command that may have ended
    /// its worker, and what comes after a batch that could not be applied.
    async fn apply(
        &mut self,
        messages: &Arc<[IncomingMessage]>,
        spans: &Arc<[CommandSpan]>,
        place: Option<LanePlace>,
        suspected: bool,
    ) -> Result<Arc<Committed>, ApplyError> {
        if let Some(place) = place
            && let Some(share) = self.applier.share(messages)
        {
            let (fence, published_after) = (share.fence, share.published_after);
            let batch = LaneBatch { fence, published_after, messages: Arc::clone(messages), spans: Arc::clone(spans) };
            match self.lanes.apply(batch, place).await {
                LaneAnswer::Committed(committed) => return Ok(committed),
                LaneAnswer::Fenced => return Err(ApplyError::Fenced),
                LaneAnswer::Alone => {}
            }
        }
        let span = BatchSpan::open(spans.iter());
        let committed = self.apply_alone(messages, suspected).instrument(span.batch.clone()).await?;
        self.instruments.transaction(messages.len());
        self.replies.send(messages, &committed);
        Ok(Arc::new(committed))
    }

    async fn apply_alone(&mut self, messages: &[IncomingMessage], suspected: bool) -> Result<Committed, ApplyError> {
        let mut tries = 1;
        loop {
            let end = match messages {
                // What is not understood is parked without a try.
                [message] if suspected && message.envelope().is_some() => {
                    self.suspects.apply(&mut self.applier, message).await
                }
                _ => self.applier.apply(messages).await,
            };
            match end {
                Err(ApplyError::Contention(_)) if tries < CONTENTION_TRIES => {
                    let jittered = Duration::from_millis(20 * u64::from(tries)).mul_f64(rand::random::<f64>());
                    tokio::time::sleep(jittered).await;
                    tries += 1;
                }
                // Not a fault: somebody else applies the partition now.
                Err(ApplyError::Fenced) => return Err(ApplyError::Fenced),
                Err(error) => {
                    self.probing |= matches!(error, ApplyError::Flood(_));
                    self.isolated = true;
                    self.applying.failed(self.number, CheckFailure::of(&error));
                    return Err(error);
                }
                Ok(committed) => {
                    self.isolated = false;
                    // What is no command shows nothing.
                    if self.probing && messages.iter().any(|message| message.id().is_some()) {
                        self.probing = false;
                        self.applying.clear(self.number);
                    }
                    return Ok(committed);
                }
            }
        }
    }
}
