//! The problem documents that are written where no operation was reached (RFC 9457).

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tracing::Span;

use crate::telemetry::continue_trace;

/// The problem types of refused requests: status, name, title and mend. The API's list has them too.
pub const REFUSALS: [(u16, &str, &str, &str); 3] = [
    (
        400,
        "invalid-request",
        "The request is not valid",
        "the request is not HTTP/1.1 as RFC 9112 has it; send it anew",
    ),
    (414, "uri-too-long", "The request target is too long", "the target exceeds 64 KiB; send a shorter one"),
    (
        431,
        "headers-too-large",
        "The header fields are too large",
        "there are more than 100 header fields, or more than 64 KiB of them; send fewer",
    ),
];

/// A whole answer for a request that could not be parsed; the connection ends with it.
pub(super) fn refusal(status: u16) -> Bytes {
    let found = REFUSALS.iter().find(|(known, ..)| *known == status);
    let (status, name, title, detail) = *found.unwrap_or(&REFUSALS[0]);
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let body = json!({
        "type": format!("/problems/{name}"),
        "title": title,
        "status": status,
        "detail": detail,
        "trace_id": continue_trace(&Span::none(), &HeaderMap::new()).to_string(),
    })
    .to_string();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}
