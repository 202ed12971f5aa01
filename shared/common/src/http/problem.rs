//! The problem documents that are written where no operation was reached (RFC 9457).

use bytes::Bytes;
use http::header::{HOST, TRANSFER_ENCODING};
use http::{HeaderMap, Request, StatusCode, Version};
use poem::Response;
use serde_json::{Value, json};
use tracing::Span;

use super::protection;
use crate::telemetry::continue_trace;

const CONTENT_TYPE: &str = "application/problem+json";

/// The problem types of refused requests: status, name, title and remedy. The API's list has them too.
pub const REFUSALS: [(u16, &str, &str, &str); 4] = [
    (
        400,
        "invalid-request",
        "The request is not valid",
        "the request is not HTTP/1.1 (RFC 9112); check the request line, the names and values of the header fields, \
         Content-Length, and Transfer-Encoding, of which only chunked is taken",
    ),
    (414, "uri-too-long", "The request target is too long", "the target exceeds 64 KiB; send a shorter one"),
    (
        431,
        "headers-too-large",
        "The header fields are too large",
        "there are more than 100 header fields, or the head has more than 128 KiB; send fewer",
    ),
    OVERLOADED,
];

const OVERLOADED: (u16, &str, &str, &str) = (
    503,
    "overloaded",
    "The service is overloaded",
    "the instance serves as many connections as it may; send the request again after the time in Retry-After",
);

/// The refusal of a request that the library takes, but that is not HTTP/1.1 as this service speaks it.
pub(super) fn refused<B>(request: &Request<B>) -> Option<Response> {
    let (field, fault) = fault(request)?;
    let (status, name, title, _) = REFUSALS[0];
    let response = Response::builder().status(StatusCode::BAD_REQUEST).content_type(CONTENT_TYPE);
    let errors = json!([{ "field": field, "detail": fault }]);
    Some(response.header("cache-control", "no-store").body(document(status, name, title, ("errors", errors))))
}

/// The refusal of a request for which no connection slot came free.
pub(super) fn overloaded() -> Response {
    let (_, name, title, detail) = OVERLOADED;
    let response = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).content_type(CONTENT_TYPE);
    let response = response.header("cache-control", "no-store").header("retry-after", 1);
    response.body(document(503, name, title, ("detail", detail.into())))
}

/// The refusal of a request by a name that others may own.
pub(super) fn foreign_host() -> Response {
    let detail = "Host is a name that may be anybody's; ask for localhost or for an IP address";
    let document = document(403, "cross-site", "The request comes from another site", ("detail", detail.into()));
    let response = Response::builder().status(StatusCode::FORBIDDEN).content_type(CONTENT_TYPE);
    response.header("cache-control", "no-store").body(document)
}

/// Whether a reserved slot is for this request.
pub(super) fn is_probe<B>(request: &Request<B>) -> bool {
    matches!(request.uri().path(), "/healthz" | "/readyz")
}

fn fault<B>(request: &Request<B>) -> Option<(&'static str, String)> {
    let hosts = request.headers().get_all(HOST).iter().count();
    // RFC 9112 §3.2.
    if request.version() == Version::HTTP_11 && hosts != 1 {
        return Some(("Host", format!("is there {hosts} times; send it once")));
    }
    // RFC 9112 §6.1: the library looks at the last coding only, and would leave the others in the body.
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    if codings.next().is_some() || !first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Some((
            "Transfer-Encoding",
            "has a coding that is not taken; send chunked alone, or Content-Length".into(),
        ));
    }
    None
}

fn document(status: u16, name: &str, title: &str, (member, value): (&str, Value)) -> String {
    json!({
        "type": format!("/problems/{name}"),
        "title": title,
        "status": status,
        member: value,
        "trace_id": continue_trace(&Span::none(), &HeaderMap::new()).to_string(),
    })
    .to_string()
}

/// A whole answer of this date for a request that could not be parsed; the connection ends with it.
pub(super) fn refusal(status: u16, date: &str) -> Bytes {
    let found = REFUSALS.iter().find(|(known, ..)| *known == status);
    let (status, name, title, detail) = *found.unwrap_or(&REFUSALS[0]);
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let body = document(status, name, title, ("detail", detail.into()));
    format!(
        "HTTP/1.1 {status} {reason}\r\ndate: {date}\r\ncontent-type: {CONTENT_TYPE}\r\ncache-control: no-store\r\n{}\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        protection::lines(),
        body.len()
    )
    .into()
}
