//! The publisher's metrics.

use opentelemetry::metrics::{Counter, Histogram};

#[derive(Debug)]
pub(super) struct Instruments {
    pub(super) published: Counter<u64>,
    pub(super) confirm_seconds: Histogram<f64>,
    pub(super) channels_replaced: Counter<u64>,
}

impl Instruments {
    pub(super) fn new() -> Self {
        let meter = crate::telemetry::meter();
        Self {
            published: meter
                .u64_counter("rollcall.broker.published")
                .with_description("Messages handed to the publisher, by outcome")
                .build(),
            confirm_seconds: meter
                .f64_histogram("rollcall.broker.confirm.duration")
                .with_unit("s")
                .with_description("From the first publish of a batch to its last confirm")
                .with_boundaries(crate::telemetry::SECONDS.to_vec())
                .build(),
            channels_replaced: meter
                .u64_counter("rollcall.broker.channels.replaced")
                .with_description(
                    "Publishing channels that were replaced because a message was not confirmed, by reason",
                )
                .build(),
        }
    }
}
