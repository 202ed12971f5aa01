//! The worker's metrics.

use std::collections::HashMap;
use std::time::Duration;

use common::command::CommandId;
use common::db::Pool;
use common::telemetry::{SECONDS, meter};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use time::OffsetDateTime;

use crate::incoming::IncomingMessage;
use crate::users::Outcome;

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Instruments {
    commands: Counter<u64>,
    undecodable: Counter<u64>,
    defective: Counter<u64>,
    dead_letters: Counter<u64>,
    parked: Counter<u64>,
    batch_size: Histogram<u64>,
    batch_seconds: Histogram<f64>,
    oldest_age: Gauge<f64>,
}

impl Instruments {
    pub(crate) fn new(pool: &Pool) -> Self {
        let meter = meter();
        common::db::observe_pool(pool);
        Self {
            commands: meter
                .u64_counter("rollcall.worker.commands")
                .with_description("Commands, by type and outcome; duplicate for those decided before")
                .build(),
            undecodable: meter
                .u64_counter("rollcall.worker.undecodable")
                .with_description("Messages without a readable command id, recorded as they came")
                .build(),
            defective: defective_messages(),
            dead_letters: meter
                .u64_counter("rollcall.worker.dead_letters")
                .with_description("Commands that could not be applied, by SQLSTATE or word")
                .build(),
            parked: meter
                .u64_counter("rollcall.worker.parked")
                .with_description("Commands that were parked behind a dead letter of their user")
                .build(),
            batch_size: meter
                .u64_histogram("rollcall.worker.batch.size")
                .with_description("Commands of one transaction")
                .with_boundaries(vec![1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0])
                .build(),
            batch_seconds: meter
                .f64_histogram("rollcall.worker.batch.duration")
                .with_unit("s")
                .with_description("From the receipt of a partition's batch to its commit")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            oldest_age: meter
                .f64_gauge("rollcall.worker.oldest.age")
                .with_unit("s")
                .with_description("Age of the oldest command of a partition's last batch when it was applied")
                .build(),
        }
    }

    /// A transaction over so many messages was committed.
    pub(crate) fn transaction(&self, messages: usize) {
        self.batch_size.record(u64::try_from(messages).unwrap_or(u64::MAX), &[]);
    }

    /// The batch of a partition was applied.
    pub(crate) fn batch(
        &self,
        partition: u16,
        messages: &[IncomingMessage],
        took: Duration,
        outcomes: &HashMap<CommandId, Outcome>,
    ) {
        for message in messages {
            if message.defect.is_some() {
                self.defective.add(1, &[KeyValue::new("partition", i64::from(partition))]);
            }
            let Some(id) = message.id() else {
                self.undecodable.add(1, &[]);
                continue;
            };
            // Not the name in a message of another release: anybody can write one, and labels are kept.
            let kind = message.envelope().map_or("unknown", |envelope| envelope.command.wire_name());
            let outcome = outcomes.get(&id);
            self.commands.add(1, &[KeyValue::new("type", kind), KeyValue::new("outcome", label(outcome))]);
            match outcome {
                Some(Outcome::Parked(code)) => self.dead_letters.add(1, &[KeyValue::new("reason", code.clone())]),
                Some(Outcome::Behind) => self.parked.add(1, &[]),
                Some(Outcome::Succeeded(_) | Outcome::Rejected(_)) | None => {}
            }
        }
        self.batch_seconds.record(took.as_secs_f64(), &[]);
        if let Some(oldest) = messages.iter().filter_map(|m| Some(m.envelope()?.accepted_at)).min() {
            let age = (OffsetDateTime::now_utc() - oldest).as_seconds_f64();
            self.oldest_age.record(age, &[KeyValue::new("partition", i64::from(partition))]);
        }
    }
}

/// Messages that did not arrive as they were published, by partition; without one for those among the broker's dead letters.
pub(crate) fn defective_messages() -> Counter<u64> {
    meter()
        .u64_counter("rollcall.worker.defective_messages")
        .with_description(
            "Messages whose properties the client library cannot parse, or that were too long, by partition",
        )
        .build()
}

/// An outcome as metrics and spans name it.
pub(crate) fn label(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        None => "duplicate",
        Some(Outcome::Succeeded(_)) => "succeeded",
        Some(Outcome::Rejected(rejection)) => rejection.as_str(),
        Some(Outcome::Parked(_)) => "parked",
        Some(Outcome::Behind) => crate::dead_letters::BEHIND,
    }
}
