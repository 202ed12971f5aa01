//! One batch of a partition: decode, apply, acknowledge, reply.

use std::collections::HashMap;
use std::time::Duration;

use common::command::CommandId;
use common::health::CheckFailure;
use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, warn};

use super::{Interrupted, Partition};
use crate::admission::admit;
use crate::blame::ApplyError;
use crate::delivery::{BatchSpans, acknowledge, refuse, suspicious};
use crate::incoming::IncomingMessage;
use crate::users::Outcome;

/// How often a batch is tried again in place when another transaction was in the way.
const CONTENTION_TRIES: u32 = 5;

/// Deliveries with their messages, in order.
struct Sorted {
    deliveries: Vec<Delivery>,
    messages: Vec<IncomingMessage>,
    /// How many of these are no commands.
    raw: usize,
    /// No commands, and more than are recorded.
    surplus: Vec<Delivery>,
}

impl Partition {
    pub(super) async fn process(&mut self, deliveries: Vec<Delivery>) -> Result<(), Interrupted> {
        let Sorted { deliveries, messages, raw, surplus } = self.sort(deliveries);
        let Some(last) = deliveries.last().map(|delivery| delivery.acker.clone()) else {
            return self.refuse(surplus).await;
        };
        #[cfg(feature = "mutants")]
        let acknowledged = crate::mutants::acknowledged(&last).await?;
        let spans = BatchSpans::open(&deliveries, &messages);
        let transactions = spans.transactions();
        let started = Instant::now();
        let alone = deliveries.iter().any(suspicious);
        let outcomes = self.apply(&messages, alone).instrument(spans.batch.clone()).await?;
        self.raw_guard.note(messages.len(), raw);
        drop(transactions);
        spans.record(messages.iter().filter_map(IncomingMessage::id).map(|id| outcomes.get(&id)));
        self.instruments.batch(self.number, &messages, started.elapsed(), &outcomes);
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
        for (delivery, message) in deliveries.iter().zip(&messages) {
            if let (Some(reply_to), Some(id)) = (delivery.properties.reply_to(), message.id()) {
                self.replies.hint(reply_to, id);
            }
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
        let mut sorted = Sorted { deliveries: Vec::new(), messages: Vec::new(), raw: 0, surplus: Vec::new() };
        for (delivery, message) in admitted {
            let raw = is_raw(&message);
            if raw && sorted.raw == room {
                sorted.surplus.push(delivery);
                continue;
            }
            sorted.raw += usize::from(raw);
            sorted.deliveries.push(delivery);
            sorted.messages.push(message);
        }
        sorted
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

    async fn apply(
        &mut self,
        messages: &[IncomingMessage],
        alone: bool,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        let mut tries = 1;
        loop {
            let end = match messages {
                // What is not understood is parked without a try.
                [message] if alone && message.envelope().is_some() => {
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
                    self.applying.failed(self.number, CheckFailure::of(&error));
                    return Err(error);
                }
                Ok(outcomes) => {
                    // What is no command shows nothing.
                    if self.probing && messages.iter().any(|message| message.id().is_some()) {
                        self.probing = false;
                        self.applying.clear(self.number);
                    }
                    return Ok(outcomes);
                }
            }
        }
    }
}
