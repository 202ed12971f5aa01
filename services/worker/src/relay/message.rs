//! The message of an event.

use common::broker::Message;
use common::event::{CONTENT_TYPE, EventAttributes};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::events::RecordedEvent;

/// AMQP delivery mode: kept over a restart of the broker.
const PERSISTENT: u8 = 2;

/// As it is published to the topic exchange, with its type as routing key.
pub(super) fn message(exchange: &str, source: &str, event: &RecordedEvent) -> Message {
    let mut headers = FieldTable::default();
    for (name, value) in [("traceparent", &event.traceparent), ("tracestate", &event.tracestate)] {
        if let Some(value) = value {
            headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(CONTENT_TYPE.into())
        .with_type(event.kind.as_ref().into())
        .with_app_id("rollcall-worker".into())
        .with_timestamp(u64::try_from(event.occurred_at.unix_timestamp()).unwrap_or_default())
        .with_headers(headers);
    let attributes = EventAttributes {
        id: event.id,
        source,
        kind: &event.kind,
        subject: event.user_id,
        time: event.occurred_at,
        traceparent: event.traceparent.as_deref(),
        tracestate: event.tracestate.as_deref(),
    };
    Message {
        exchange: exchange.to_owned(),
        routing_key: event.kind.clone().into_owned(),
        id: event.id.to_string(),
        properties,
        body: attributes.encode(&event.data),
        // Nobody has to subscribe.
        mandatory: false,
    }
}
