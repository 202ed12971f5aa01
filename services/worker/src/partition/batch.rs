//! One batch of a partition: decode, apply, acknowledge, reply.

use std::collections::HashMap;
use std::time::Duration;

use common::command::{CommandId, Envelope};
use common::db::within;
use common::shutdown::chain;
use common::telemetry::amqp_trace_headers;
use lapin::message::Delivery;
use tokio::time::Instant;
use tracing::{Instrument, warn};

use super::{Interrupted, Partition};
use crate::blame::ApplyError;
use crate::dead_letters::{RawMessage, Traces, record_raw};
use crate::delivery::{BatchSpans, acknowledge, decode, suspicious};
use crate::users::Outcome;

/// How long a message that is no command may take to be recorded.
const RECORD_DEADLINE: Duration = Duration::from_secs(10);
/// How often a batch is tried again in place when another transaction was in the way.
const CONTENTION_TRIES: u32 = 5;

impl Partition {
    pub(super) async fn process(&mut self, deliveries: Vec<Delivery>) -> Result<(), Interrupted> {
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
        #[cfg(feature = "mutants")]
        let acknowledged = crate::mutants::acknowledged(&last).await?;
        if !commands.is_empty() {
            let spans = BatchSpans::open(&decoded, &commands);
            let transactions = spans.transactions();
            let started = Instant::now();
            let alone = decoded.iter().any(suspicious);
            let traces = decoded.iter().zip(&commands);
            let traces = traces.map(|(d, c)| (c.id, amqp_trace_headers(d.properties.headers().as_ref()))).collect();
            let outcomes = self.apply(&commands, &traces, alone).instrument(spans.batch.clone()).await?;
            self.committed.notify_one();
            drop(transactions);
            spans.record(commands.iter().map(|c| outcomes.get(&c.id)));
            self.instruments.batch(self.number, &commands, started.elapsed(), |c| outcomes.get(&c.id));
        }
        #[cfg(feature = "mutants")]
        if acknowledged {
            return Ok(());
        }
        // All at once: the deliveries of a channel are settled in order.
        if !acknowledge(&last, true).await? {
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
        lease.release().await?;
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
                // Not a fault: somebody else applies the partition now.
                Err(ApplyError::Fenced) => return Err(ApplyError::Fenced),
                Err(error) => {
                    self.probing |= matches!(error, ApplyError::Flood(_));
                    self.applying.failed(self.number, chain(&error));
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
