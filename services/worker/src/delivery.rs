//! From a delivery to its spans, and back to the broker.

use common::telemetry::{TRACE_TARGET, amqp_context};
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::AMQPValue;
use opentelemetry::trace::TraceContextExt;
use tokio::time::timeout;
use tracing::{Span, field, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::incoming::IncomingMessage;
use crate::users::Outcome;

/// For an acknowledgement to be written. When the connection ends at that moment, the client library may not say so for ever:
/// the partition would stand still.
const ACK_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
/// How often a message may come back before it is tried alone.
const UNSUSPICIOUS: i64 = 1;

/// Acknowledges a delivery, and those before it when `multiple`; false when it came too late for its channel.
pub(crate) async fn acknowledge(acker: &Acker, multiple: bool) -> lapin::Result<bool> {
    timeout(ACK_DEADLINE, acker.ack(BasicAckOptions { multiple })).await.unwrap_or(Ok(false))
}

/// Refuses a delivery, which the broker moves to its dead letters; false when it came too late for its channel.
pub(crate) async fn refuse(acker: &Acker) -> lapin::Result<bool> {
    timeout(ACK_DEADLINE, acker.reject(BasicRejectOptions { requeue: false })).await.unwrap_or(Ok(false))
}

/// Whether the broker had to take it back so often that it may be what ended its workers. Once is no reason: a restart, an
/// outage or a hand-over returns all that was delivered, and one by one that takes long.
pub(crate) fn suspicious(delivery: &Delivery) -> bool {
    let headers = delivery.properties.headers().as_ref();
    // The type of the number differs between versions of the broker; a quorum queue sets it from the second time on.
    let returned = match headers.and_then(|h| h.inner().get("x-delivery-count")) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        _ => 0,
    };
    returned > UNSUSPICIOUS
}

/// The spans of one batch: its own, and for each message with an id one that continues the command's trace.
pub(crate) struct BatchSpans {
    pub(crate) batch: Span,
    commands: Vec<Span>,
}

impl BatchSpans {
    /// Opens them before the batch is applied.
    pub(crate) fn open(deliveries: &[Delivery], messages: &[IncomingMessage]) -> Self {
        let batch = info_span!(
            target: TRACE_TARGET,
            "apply batch",
            otel.kind = "internal",
            messaging.system = "rabbitmq",
            messaging.batch.message_count = deliveries.len(),
            db.system.name = "postgresql",
        );
        let batch_context = batch.context().span().span_context().clone();
        let mut spans = Vec::with_capacity(messages.len());
        for (delivery, message) in deliveries.iter().zip(messages) {
            let Some(header) = message.header() else { continue };
            let destination = format!("{}:{}", delivery.exchange, delivery.routing_key);
            let span = info_span!(
                target: TRACE_TARGET,
                "process command",
                otel.kind = "consumer",
                otel.name = %format_args!("process {destination}"),
                otel.status_code = field::Empty,
                messaging.system = "rabbitmq",
                messaging.operation.name = "process",
                messaging.operation.r#type = "process",
                messaging.destination.name = destination,
                messaging.rabbitmq.destination.routing_key = %delivery.routing_key,
                messaging.message.id = %header.id,
                command.id = %header.id,
                command.r#type = header.kind,
                command.outcome = field::Empty,
                user.id = header.user_id.map(|id| id.to_string()),
            );
            // The parent first: once a span was entered it can no longer be set. Both fail only without a trace layer.
            let context = amqp_context(delivery.properties.headers().as_ref());
            batch.add_link(context.span().span_context().clone());
            let _ = span.set_parent(context);
            span.add_link(batch_context.clone());
            spans.push(span);
        }
        Self { batch, commands: spans }
    }

    /// The spans that cover the transaction in each command's own trace.
    pub(crate) fn transactions(&self) -> Vec<Span> {
        self.commands
            .iter()
            .map(|parent| {
                info_span!(
                    target: TRACE_TARGET,
                    parent: parent,
                    "transaction",
                    otel.kind = "client",
                    db.system.name = "postgresql",
                    db.operation.name = "apply batch",
                    db.operation.batch.size = self.commands.len(),
                )
            })
            .collect()
    }

    /// Notes what became of each command; `None` for one that had been decided before.
    pub(crate) fn record<'a>(&self, outcomes: impl Iterator<Item = Option<&'a Outcome>>) {
        for (span, outcome) in self.commands.iter().zip(outcomes) {
            span.record("command.outcome", crate::instruments::label(outcome));
            if matches!(outcome, Some(Outcome::Parked(_) | Outcome::Behind)) {
                span.record("otel.status_code", "error");
            }
        }
    }
}
