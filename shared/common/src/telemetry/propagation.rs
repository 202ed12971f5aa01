//! W3C trace context (`traceparent`, `tracestate`) in and out, over HTTP and AMQP headers.

use std::collections::HashMap;
use std::fmt;

use lapin::types::{AMQPValue, FieldTable};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Twice what W3C asks everybody to carry of `tracestate`.
const LONGEST_HEADER: usize = 1024;

/// The id that a request's log lines, spans and problem documents share: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(opentelemetry::TraceId);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes `span` a child of the context that the headers carry, if they do, and says which trace it is part of: the
/// caller's, the recorded one, or a fresh id when nothing is recorded.
pub fn continue_trace(span: &Span, headers: &http::HeaderMap) -> TraceId {
    let parent = TraceContextPropagator::new().extract(&HeaderMap(headers));
    let incoming = parent.span().span_context().trace_id();
    if parent.span().span_context().is_valid() {
        // Fails only without a trace layer; then there is nothing to attach to.
        let _ = span.set_parent(parent);
    }
    let recorded = span.context().span().span_context().trace_id();
    TraceId(
        [recorded, incoming]
            .into_iter()
            .find(|id| *id != opentelemetry::TraceId::INVALID)
            .unwrap_or_else(|| opentelemetry::TraceId::from(rand::random::<u128>())),
    )
}

/// The context of `span` as headers; empty when nothing is recorded.
pub fn inject(span: &Span) -> HashMap<String, String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut Carrier(&mut carrier));
    carrier
}

/// Writes the context of `span` into AMQP headers; nothing when nothing is recorded.
pub fn inject_amqp(span: &Span, headers: &mut FieldTable) {
    for (name, value) in inject(span) {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
}

/// The context that AMQP headers carry; invalid when they carry none.
pub fn amqp_context(headers: Option<&FieldTable>) -> Context {
    let TraceHeaders { traceparent, tracestate } = amqp_trace_headers(headers);
    let named = [("traceparent", traceparent), ("tracestate", tracestate)];
    let carrier: HashMap<String, String> =
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    TraceContextPropagator::new().extract(&carrier)
}

/// A message's trace context as it was written, for whoever stores the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceHeaders {
    /// Which span sent it.
    pub traceparent: Option<String>,
    /// What the systems on the way added.
    pub tracestate: Option<String>,
}

/// The trace context that AMQP headers carry, as it was written; what no W3C header can be is left out, since whoever may
/// publish can write anything there.
pub fn amqp_trace_headers(headers: Option<&FieldTable>) -> TraceHeaders {
    let text = |name: &str| match headers.and_then(|h| h.inner().get(name)) {
        Some(AMQPValue::LongString(value)) => Some(value.to_string()),
        _ => None,
    };
    let text = |name| text(name).filter(|v| v.len() <= LONGEST_HEADER && v.bytes().all(|b| (b' '..=b'~').contains(&b)));
    TraceHeaders { traceparent: text("traceparent"), tracestate: text("tracestate") }
}

struct HeaderMap<'a>(&'a http::HeaderMap);

impl Extractor for HeaderMap<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Carrier<'a>(&'a mut HashMap<String, String>);

impl Injector for Carrier<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key.to_owned(), value);
    }
}
