//! From a delivery to its spans, and back to the broker.

use common::telemetry::{TRACE_TARGET, amqp_context};
use lapin::Acker;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::AMQPValue;
use opentelemetry::trace::{SpanContext, TraceContextExt};
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

/// Span of one command's processing, which continues the trace of its message.
#[derive(Debug)]
pub(crate) struct CommandSpan {
    span: Span,
    /// Of the span that sent the message.
    sender: SpanContext,
}

impl CommandSpan {
    /// Opens one for each message with an id.
    pub(crate) fn open_all(deliveries: &[Delivery], messages: &[IncomingMessage]) -> Vec<Self> {
        deliveries.iter().zip(messages).filter_map(|(delivery, message)| Self::open(delivery, message)).collect()
    }

    fn open(delivery: &Delivery, message: &IncomingMessage) -> Option<Self> {
        let (id, exchange, key) = (message.id()?, &delivery.exchange, &delivery.routing_key);
        let span = info_span!(
            target: TRACE_TARGET,
            "process command",
            otel.kind = "consumer",
            otel.name = %format_args!("process {exchange}:{key}"),
            otel.status_code = field::Empty,
            messaging.system = "rabbitmq",
            messaging.operation.name = "process",
            messaging.operation.r#type = "process",
            messaging.destination.name = %format_args!("{exchange}:{key}"),
            messaging.rabbitmq.destination.routing_key = %key,
            messaging.message.id = %id,
            command.id = %id,
            command.r#type = message.kind(),
            command.outcome = field::Empty,
            user.id = message.user_id().map(|user| user.to_string()),
        );
        if span.is_disabled() {
            return Some(Self { span, sender: SpanContext::NONE });
        }
        // The parent first: once a span was entered it can no longer be set. It fails only without a trace layer.
        let context = amqp_context(delivery.properties.headers().as_ref());
        let sender = context.span().span_context().clone();
        let _ = span.set_parent(context);
        Some(Self { span, sender })
    }

    /// Notes what became of the command; `None` if it had been decided before.
    pub(crate) fn record(&self, outcome: Option<&Outcome>) {
        self.span.record("command.outcome", crate::instruments::label(outcome));
        if matches!(outcome, Some(Outcome::Parked(_) | Outcome::Behind)) {
            self.span.record("otel.status_code", "error");
        }
    }
}

/// Span of a transaction, with the transaction in the trace of each command.
pub(crate) struct BatchSpan {
    pub(crate) batch: Span,
    _transactions: Vec<Span>,
}

impl BatchSpan {
    /// Opens it for these commands, before the transaction begins.
    pub(crate) fn open<'s>(commands: impl Iterator<Item = &'s CommandSpan>) -> Self {
        let commands: Vec<&CommandSpan> = commands.collect();
        let batch = info_span!(
            target: TRACE_TARGET,
            "apply batch",
            otel.kind = "internal",
            messaging.system = "rabbitmq",
            messaging.batch.message_count = commands.len(),
            db.system.name = "postgresql",
        );
        if batch.is_disabled() {
            return Self { batch, _transactions: Vec::new() };
        }
        let batch_context = batch.context().span().span_context().clone();
        let transaction = |command: &&CommandSpan| {
            batch.add_link(command.sender.clone());
            command.span.add_link(batch_context.clone());
            info_span!(
                target: TRACE_TARGET,
                parent: &command.span,
                "transaction",
                otel.kind = "client",
                db.system.name = "postgresql",
                db.operation.name = "apply batch",
                db.operation.batch.size = commands.len(),
            )
        };
        Self { _transactions: commands.iter().map(transaction).collect(), batch }
    }
}
