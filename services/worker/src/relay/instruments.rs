//! Metrics of the relay.

use common::telemetry::meter;
use opentelemetry::metrics::{Counter, Gauge};

pub(super) struct Instruments {
    pub(super) published: Counter<u64>,
    pub(super) refused: Counter<u64>,
    pub(super) let_go: Counter<u64>,
    pub(super) oldest_age: Gauge<f64>,
}

impl Instruments {
    pub(super) fn new() -> Self {
        let meter = meter();
        Self {
            published: meter
                .u64_counter("rollcall.worker.events.published")
                .with_description("Change events that count as published")
                .build(),
            refused: meter
                .u64_counter("rollcall.worker.events.refused")
                .with_description("Change events that a subscriber's queue refused, each try counted")
                .build(),
            let_go: meter
                .u64_counter("rollcall.worker.events.undelivered")
                .with_description(
                    "Change events that count as published although a subscriber's queue refused them to the end",
                )
                .build(),
            oldest_age: meter
                .f64_gauge("rollcall.worker.events.oldest.age")
                .with_unit("s")
                .with_description(
                    "Age of the oldest change event of this worker's partitions that is not published yet",
                )
                .build(),
        }
    }
}
