//! Request bodies: read under a limit, checked member by member, all faults reported at once.
//!
//! # Why not the library's JSON payload?
//! It stops at the first fault, often without naming the field, and bounds neither the size nor the time of a body.

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use poem::http::Method;
use poem::http::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use crate::headers::lines;
use crate::problem::{FieldFault, Problem, ProblemKind};

/// RFC 5789 §2.2.
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

const LARGEST: usize = 64 * 1024;
/// How long a client may take to send a body, and what it earns more time by.
const GRACE: Duration = Duration::from_secs(10);
const BYTES_PER_SECOND: u32 = 16 * 1024;
/// Of the members or parameters that nobody knows, so that a small request cannot ask for a large answer.
pub(crate) const MOST_UNKNOWN: usize = 20;

/// A body whose schema is `Self` and whose checked value is `Valid`.
pub(crate) trait Checked: Type {
    /// The media type in the contract; `application/json` is accepted as well.
    const MEDIA_TYPE: &'static str = "application/json";
    /// What the operation works with.
    type Valid: Send;

    /// Takes every member; `None` when any was faulty.
    fn check(members: &mut Members) -> Option<Self::Valid>;
}

/// An extracted and checked body.
#[derive(Debug)]
pub(crate) struct Body<T: Checked>(pub(crate) T::Valid);

/// The members of a JSON object, and what was wrong with them.
#[derive(Debug)]
pub(crate) struct Members {
    values: Map<String, Value>,
    faults: Vec<FieldFault>,
}

impl Members {
    /// A string that must be there.
    pub(crate) fn required<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        if !self.values.contains_key(name) {
            self.fault::<()>(name, "is missing; add it as a string");
        }
        self.optional(name, parse)
    }

    /// A string that may be left out; null is no value of it.
    pub(crate) fn optional<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let found = match self.values.remove(name)? {
            Value::String(text) => match parse(&text) {
                Ok(value) => return Some(value),
                Err(fault) => return self.fault(name, fault),
            },
            Value::Null => "null, and cannot be removed",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        self.fault(name, format_args!("is {found}; give a string"))
    }

    /// Whether a member is there, whatever its value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Notes a fault.
    pub(crate) fn fault<T>(&mut self, field: &str, detail: impl fmt::Display) -> Option<T> {
        self.faults.push(FieldFault { field: field.to_owned(), detail: detail.to_string() });
        None
    }

    /// Members that nobody took are unknown.
    fn finish<T>(mut self, valid: Option<T>) -> Result<T, Problem> {
        for (name, _) in std::mem::take(&mut self.values).into_iter().take(MOST_UNKNOWN) {
            self.fault::<()>(&shown(&name), "is unknown; remove it");
        }
        match valid {
            Some(valid) if self.faults.is_empty() => Ok(valid),
            _ => Err(Problem::invalid(self.faults)),
        }
    }
}

/// A name that comes from outside: shown, but not at any length.
pub(crate) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// An object, and the names that it has more than once: another reader of the same text may take the other value
/// (RFC 8259 §4).
struct Object {
    values: Map<String, Value>,
    repeated: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Object, A::Error> {
                let mut object = Object { values: Map::new(), repeated: BTreeSet::new() };
                while let Some((name, value)) = entries.next_entry::<String, Value>()? {
                    if object.values.insert(name.clone(), value).is_some() {
                        object.repeated.insert(name);
                    }
                }
                Ok(object)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn parse<T: Checked>(bytes: &[u8]) -> Result<T::Valid, Problem> {
    if bytes.is_empty() {
        return Err(Problem::invalid_field("body", "is missing; send a JSON object"));
    }
    let Object { values, repeated } = serde_json::from_slice(bytes).map_err(|fault| {
        if fault.is_data() {
            return Problem::invalid_field("body", "is not a JSON object; send one in braces");
        }
        let (line, column) = (fault.line(), fault.column());
        Problem::invalid_field("body", format_args!("is not JSON; correct it at line {line}, column {column}"))
    })?;
    let mut members = Members { values, faults: Vec::new() };
    for name in repeated.iter().take(MOST_UNKNOWN) {
        members.fault::<()>(&shown(name), "is there more than once; give it once");
    }
    let valid = T::check(&mut members);
    members.finish(valid)
}

async fn read(request: &Request, body: &mut RequestBody, grace: Duration) -> Result<Vec<u8>, Problem> {
    let announced = request.header("content-length").and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > LARGEST) {
        return Err(Problem::new(ProblemKind::BodyTooLarge));
    }
    let body = body.take().map_err(|_| Problem::new(ProblemKind::Internal))?;
    let mut pieces = pin!(body.into_bytes_stream());
    let (began, mut bytes) = (Instant::now(), Vec::new());
    loop {
        let earned = Duration::from_secs(1) * u32::try_from(bytes.len()).unwrap_or(u32::MAX) / BYTES_PER_SECOND;
        let piece = timeout_at(began + grace + earned, pieces.next()).await;
        match piece.map_err(|_| Problem::new(ProblemKind::RequestTimeout))? {
            None => return Ok(bytes),
            Some(Ok(piece)) if bytes.len() + piece.len() > LARGEST => {
                return Err(Problem::new(ProblemKind::BodyTooLarge));
            }
            Some(Ok(piece)) if bytes.is_empty() => bytes = piece.into(),
            Some(Ok(piece)) => bytes.extend_from_slice(&piece),
            Some(Err(_)) => return Err(Problem::invalid_field("body", "ended early; send all of it")),
        }
    }
}

/// Whether a request has content, for operations that take none.
pub(crate) async fn has_content(request: &Request, body: &mut RequestBody) -> Result<bool, Problem> {
    // What is announced does not have to be sent.
    if request.header("content-length").is_some_and(|length| !length.trim_start_matches('0').is_empty()) {
        return Ok(true);
    }
    let Ok(body) = body.take() else { return Ok(false) };
    if body.is_empty() {
        return Ok(false);
    }
    match tokio::time::timeout(GRACE, body.into_bytes_limit(0)).await {
        Ok(read) => Ok(read.is_err()),
        Err(_) => Err(Problem::new(ProblemKind::RequestTimeout)),
    }
}

fn media_type_fits(content_type: Option<&str>, own: &str) -> bool {
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.eq_ignore_ascii_case(own)
}

impl<'a, T: Checked> ApiExtractor<'a> for Body<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = vec![MetaMediaType { content_type: T::MEDIA_TYPE, schema: T::schema_ref() }];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let fail = |problem: Problem| crate::problem::Failed::<()>::from(problem).into();
        if !media_type_fits(request.content_type(), T::MEDIA_TYPE) {
            // RFC 9110 §15.5.16.
            let taken = if *request.method() == Method::PATCH { ACCEPT_PATCH } else { ACCEPT };
            return Err(fail(Problem::new(ProblemKind::UnsupportedMediaType).header(taken, T::MEDIA_TYPE)));
        }
        // RFC 9110 §8.4: what is encoded is not what the media type says.
        let codings = lines(request.headers(), "content-encoding").unwrap_or_default();
        if codings.split(',').map(str::trim).any(|coding| !matches!(coding, "" | "identity")) {
            let problem = Problem::new(ProblemKind::UnsupportedMediaType);
            let problem = problem.detail("the body has a Content-Encoding; send it without");
            return Err(fail(problem.header(ACCEPT_ENCODING, "identity")));
        }
        let bytes = read(request, body, GRACE).await.map_err(fail)?;
        parse::<T>(&bytes).map(Body).map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use poem::Body;

    use super::*;

    /// Reads pieces of a size that come at an interval.
    async fn read_paced(size: usize, interval: Duration) -> Result<usize, ProblemKind> {
        let pieces = stream::unfold(0, move |sent| async move {
            tokio::time::sleep(interval).await;
            (sent < LARGEST).then(|| (Ok::<_, std::io::Error>(vec![b' '; size]), sent + size))
        });
        let (request, mut body) = Request::builder().body(Body::from_bytes_stream(pieces)).split();
        read(&request, &mut body, GRACE).await.map(|bytes| bytes.len()).map_err(|problem| problem.kind)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_a_minimum_rate() {
        let second = Duration::from_secs(1);
        assert_eq!(read_paced(8 * 1024, second).await, Ok(LARGEST));
        for (size, interval) in [(1, 11 * second), (1, second), (4 * 1024, second)] {
            let began = Instant::now();
            assert_eq!(read_paced(size, interval).await, Err(ProblemKind::RequestTimeout), "{size} bytes each");
            assert!(began.elapsed() < 14 * second, "the client earns no time that it does not use");
        }
    }
}
