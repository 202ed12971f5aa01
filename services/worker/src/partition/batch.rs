//! One batch of a partition: decode, apply, acknowledge, reply.

use std::collections::HashMap;
use std::time::Duration;

use common::command::CommandId;
use common::health::CheckFailure;
use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::Instrument;

use super::{Interrupted, Partition};
use crate::admission::admit;
use crate::blame::ApplyError;
use crate::delivery::{BatchSpans, acknowledge, suspicious};
use crate::incoming::IncomingMessage;
use crate::users::Outcome;

/// How often a batch is tried again in place when another transaction was in the way.
const CONTENTION_TRIES: u32 = 5;

impl Partition {
    pub(super) async fn process(&mut self, deliveries: Vec<Delivery>) -> Result<(), Interrupted> {
        let Some(last) = deliveries.last().map(|delivery| delivery.acker.clone()) else { return Ok(()) };
        let mut deliveries = deliveries;
        let messages: Vec<IncomingMessage> =
            deliveries.iter_mut().map(|delivery| admit(delivery, &self.keys)).collect();
        #[cfg(feature = "mutants")]
        let acknowledged = crate::mutants::acknowledged(&last).await?;
        let spans = BatchSpans::open(&deliveries, &messages);
        let transactions = spans.transactions();
        let started = Instant::now();
        let alone = deliveries.iter().any(suspicious);
        let outcomes = self.apply(&messages, alone).instrument(spans.batch.clone()).await?;
        self.committed.notify_one();
        drop(transactions);
        spans.record(messages.iter().filter_map(IncomingMessage::id).map(|id| outcomes.get(&id)));
        self.instruments.batch(self.number, &messages, started.elapsed(), &outcomes);
        #[cfg(feature = "mutants")]
        if acknowledged {
            return Ok(());
        }
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
                    if std::mem::take(&mut self.probing) {
                        self.applying.clear(self.number);
                    }
                    return Ok(outcomes);
                }
            }
        }
    }
}
