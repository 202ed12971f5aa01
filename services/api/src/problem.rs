//! The closed list of problems (RFC 9457), and what an answer says of one.
//!
//! The `type` is a path on this host where the problem is described. A client decides by it; `detail` is for people and
//! never carries an inner error's text.

use std::fmt;
use std::marker::PhantomData;

use common::broker::PublishError;
use common::command::{CommandId, Rejection};
use poem::http::header::WWW_AUTHENTICATE;
use poem::http::{HeaderName, StatusCode};
use poem::web::Path;
use poem::{Response, handler};
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ApiResponse, Object};
use serde_json::Value;
use uuid::Uuid;

use crate::contract::EXAMPLE_COMMAND;

/// The media type of every problem.
pub(crate) const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! problems {
    ($($(#[doc = $doc:literal])+ $kind:ident $name:literal $status:literal $title:literal;)+) => {
        /// Every kind of problem.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl ProblemKind {
            /// All of them, in the order of their status.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The last segment of the `type`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// The HTTP status.
            pub const fn status(self) -> u16 {
                match self { $(Self::$kind => $status,)+ }
            }

            /// The same short text for every occurrence.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }

            /// What it means and what to do.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc),+),)+ }
            }
        }
    };
}

problems! {
    /// The request is malformed or breaks a rule. `errors` names each field with its fault and the mend. Nothing was published.
    InvalidRequest "invalid-request" 400 "The request is not valid";
    /// This operation needs to know who asks. Send `Authorization: Bearer …` with an API key or an access token; if one was sent, it is not valid, or not any more.
    Unauthenticated "unauthenticated" 401 "No valid key or token came with the request";
    /// The key or token is valid, but does not have the scope that this operation needs; `WWW-Authenticate` names it.
    Forbidden "forbidden" 403 "The key or token does not allow this";
    /// A service that lets everybody in without a key serves this machine only: `Host` must be `localhost` or an IP address, and a web page must be the service's own or of an origin that it was told to let in.
    CrossSite "cross-site" 403 "The request comes from another site";
    /// No operation has this path.
    NoSuchRoute "no-such-route" 404 "There is nothing at this path";
    /// There is no user with this id: it was never created, not created yet, or deleted.
    UserNotFound "user-not-found" 404 "There is no such user";
    /// The id is not one that this service handed out for a command.
    CommandNotFound "command-not-found" 404 "There is no such command";
    /// The path exists, but not with this method; `Allow` lists those that do.
    MethodNotAllowed "method-not-allowed" 405 "The method is not allowed here";
    /// The client sent its body too slowly.
    RequestTimeout "request-timeout" 408 "The request body did not arrive in time";
    /// Another user has this e-mail address, in whatever letter case.
    EmailTaken "email-taken" 409 "The e-mail address is taken";
    /// A user with this id exists already.
    UserExists "user-exists" 409 "The user exists already";
    /// The user is suspended already.
    AlreadySuspended "already-suspended" 409 "The user is suspended already";
    /// The user is active already.
    NotSuspended "not-suspended" 409 "The user is not suspended";
    /// The command could not be applied and waits for an operator; nothing has to be sent again.
    CommandParked "command-parked" 409 "The command is parked";
    /// The command is older than the time for which outcomes are kept.
    CommandExpired "command-expired" 410 "The command's outcome is no longer kept";
    /// The user changed since the version in If-Match. Read it again and decide anew.
    VersionLost "version-lost" 412 "The user has changed";
    /// The body is larger than 64 KiB.
    BodyTooLarge "body-too-large" 413 "The request body is too large";
    /// The target of the request is longer than 64 KiB.
    UriTooLong "uri-too-long" 414 "The request target is too long";
    /// Send application/json, or application/merge-patch+json where a user is changed.
    UnsupportedMediaType "unsupported-media-type" 415 "The media type is not supported";
    /// Another request came under this Idempotency-Key before; this one changed nothing. Use a fresh key for each request, and the same one only to send it again unchanged.
    IdempotencyKeyReused "idempotency-key-reused" 422 "The idempotency key belongs to another request";
    /// The caller sent more requests than are allowed. Wait as long as Retry-After says; `RateLimit` says how many are left.
    TooManyRequests "too-many-requests" 429 "Too many requests";
    /// There are more than 100 header fields, or the head of the request has more than 128 KiB.
    HeadersTooLarge "headers-too-large" 431 "The header fields are too large";
    /// A fault of the service; its log has the details under the trace id.
    Internal "internal" 500 "The service failed";
    /// The database cannot be read at the moment. Try again after the time in Retry-After.
    DatabaseUnavailable "database-unavailable" 503 "The database is not available";
    /// Whether the key or token is valid cannot be found out at the moment. Try again after the time in Retry-After.
    AuthenticationUnavailable "authentication-unavailable" 503 "Keys and tokens cannot be checked";
    /// The command was not accepted, because the broker is away or refuses messages. Send it again after the time in Retry-After.
    BrokerUnavailable "broker-unavailable" 503 "Commands cannot be accepted";
    /// Too much waits already. Send it again after the time in Retry-After.
    Overloaded "overloaded" 503 "The service is overloaded";
    /// The instance is starting or stopping, or something it needs is away; `checks` says what. A write is answered so while the clock of the instance is wrong, and nothing was accepted then.
    NotReady "not-ready" 503 "The instance is not ready";
    /// The broker did not confirm the command in time: it may or may not be applied. Ask for it under `command_id`, or send it again if it came with an Idempotency-Key. One that is still pending when commands that were accepted later are decided was lost.
    OutcomeUnknown "outcome-unknown" 504 "Whether the command was accepted is unknown";
}

impl ProblemKind {
    /// The `type` of the problem document.
    pub fn uri(self) -> String {
        format!("/problems/{}", self.name())
    }

    /// The kind with this last segment of its `type`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// An occurrence, for the contract; a read has no command.
    pub(crate) fn example(self, of_read: bool) -> Value {
        let problem = match self {
            Self::InvalidRequest => Problem::invalid_field("email", "is missing; add it as a string"),
            // What was accepted, and what may have been.
            Self::UserNotFound
            | Self::EmailTaken
            | Self::UserExists
            | Self::AlreadySuspended
            | Self::NotSuspended
            | Self::CommandParked
            | Self::VersionLost
            | Self::IdempotencyKeyReused
            | Self::OutcomeUnknown
                if !of_read =>
            {
                Problem { command_id: CommandId::try_from(EXAMPLE_COMMAND).ok(), ..Problem::new(self) }
            }
            _ => Problem::new(self),
        };
        problem.document("4bf92f3577b34da6a3ce929d0e0e4736").to_json().unwrap_or_default()
    }

    fn mark(self) -> MetaHeader {
        let name = format!("{MARK}{}", self.name());
        MetaHeader { name, description: None, required: false, deprecated: false, schema: String::schema_ref() }
    }
}

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq, Object)]
pub struct FieldFault {
    /// The member, parameter or header.
    pub field: String,
    /// What is wrong with it, and how to mend it.
    pub detail: String,
}

/// One occurrence of a problem.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Which one.
    pub kind: ProblemKind,
    detail: Option<String>,
    errors: Vec<FieldFault>,
    command_id: Option<CommandId>,
    retry_after_seconds: Option<u32>,
    headers: Vec<(HeaderName, String)>,
}

/// An error, as every operation answers it (RFC 9457).
#[derive(Debug, Object)]
#[oai(rename = "Problem")]
struct ProblemDocument {
    /// Which problem it is; described at this path.
    #[oai(rename = "type")]
    kind: String,
    /// The same short text for every occurrence of the problem.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What happened this time.
    #[oai(skip_serializing_if_is_none)]
    detail: Option<String>,
    /// The id under which logs and traces know this request.
    trace_id: String,
    /// Each fault of the request.
    #[oai(skip_serializing_if_is_none)]
    errors: Option<Vec<FieldFault>>,
    /// The command that was accepted, or may have been.
    #[oai(skip_serializing_if_is_none)]
    command_id: Option<Uuid>,
}

impl Problem {
    /// A problem without more to say.
    pub fn new(kind: ProblemKind) -> Self {
        let retry_after_seconds = (kind.status() == 503).then_some(1);
        Self { kind, detail: None, errors: Vec::new(), command_id: None, retry_after_seconds, headers: Vec::new() }
    }

    /// A request with faults.
    pub fn invalid(errors: Vec<FieldFault>) -> Self {
        Self { errors, ..Self::new(ProblemKind::InvalidRequest) }
    }

    /// A request with one fault.
    pub fn invalid_field(field: &str, detail: impl fmt::Display) -> Self {
        Self::invalid(vec![FieldFault { field: field.to_owned(), detail: detail.to_string() }])
    }

    /// Says what happened this time.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// Says when to come again, in seconds.
    #[must_use]
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Names the command concerned.
    #[must_use]
    pub fn of_command(mut self, id: CommandId) -> Self {
        self.command_id = Some(id);
        self
    }

    /// Says in `WWW-Authenticate` what would let the client in (RFC 9110 §11.6.1).
    #[must_use]
    pub(crate) fn challenge(self, challenge: String) -> Self {
        self.header(WWW_AUTHENTICATE, challenge)
    }

    /// With what else the client has to know.
    pub(crate) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A command that was not accepted.
    pub fn not_accepted(error: &PublishError, id: CommandId) -> Self {
        match error {
            PublishError::Unavailable(_) | PublishError::Unroutable => Self::new(ProblemKind::BrokerUnavailable),
            PublishError::Full | PublishError::Refused => Self::new(ProblemKind::Overloaded),
            PublishError::Unknown => Self::new(ProblemKind::OutcomeUnknown).of_command(id),
        }
    }

    fn document(&self, trace_id: &str) -> ProblemDocument {
        ProblemDocument {
            kind: self.kind.uri(),
            title: self.kind.title().to_owned(),
            status: self.kind.status(),
            detail: self.detail.clone(),
            trace_id: trace_id.to_owned(),
            errors: (!self.errors.is_empty()).then(|| self.errors.clone()),
            command_id: self.command_id.map(Uuid::from),
        }
    }

    /// The answer.
    pub fn into_response(self, trace_id: &str) -> Response {
        let document = self.document(trace_id);
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::builder().status(status).content_type(CONTENT_TYPE);
        if let Some(seconds) = self.retry_after_seconds {
            response = response.header("retry-after", seconds);
        }
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(document.to_json_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.title())
    }
}

impl std::error::Error for Problem {}

impl From<Rejection> for Problem {
    fn from(rejection: Rejection) -> Self {
        Self::new(match rejection {
            Rejection::EmailTaken => ProblemKind::EmailTaken,
            Rejection::UserExists => ProblemKind::UserExists,
            Rejection::NotFound => ProblemKind::UserNotFound,
            Rejection::VersionLost => ProblemKind::VersionLost,
            Rejection::AlreadySuspended => ProblemKind::AlreadySuspended,
            Rejection::NotSuspended => ProblemKind::NotSuspended,
            Rejection::KeyReused => ProblemKind::IdempotencyKeyReused,
        })
    }
}

/// The problems that every operation can answer with.
const EVERYWHERE: &[ProblemKind] = &[
    ProblemKind::Unauthenticated,
    ProblemKind::Forbidden,
    ProblemKind::CrossSite,
    ProblemKind::UriTooLong,
    ProblemKind::TooManyRequests,
    ProblemKind::HeadersTooLarge,
    ProblemKind::Internal,
    ProblemKind::AuthenticationUnavailable,
];

/// The problems with which an operation can fail, for the contract.
pub trait Failures {
    /// Without those of every operation.
    const KINDS: &'static [ProblemKind];
}

/// What the headers begin with that name problems while the contract is made.
pub(crate) const MARK: &str = "problem:";

/// A problem as the error of one operation.
#[derive(Debug)]
pub struct Failed<F>(Problem, PhantomData<F>);

impl<F, P: Into<Problem>> From<P> for Failed<F> {
    fn from(problem: P) -> Self {
        Self(problem.into(), PhantomData)
    }
}

impl<F> From<Failed<F>> for poem::Error {
    fn from(failed: Failed<F>) -> Self {
        let status = StatusCode::from_u16(failed.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(failed.0, status)
    }
}

impl<F: Failures> ApiResponse for Failed<F> {
    /// A response has no place for examples here, so its problems are named as headers, which the contract's mends turn
    /// into description and examples.
    fn meta() -> MetaResponses {
        let mut kinds = [F::KINDS, EVERYWHERE].concat();
        kinds.sort_by_key(|kind| kind.status());
        let response = |kinds: &[ProblemKind]| MetaResponse {
            description: "",
            status: kinds.first().map(|kind| kind.status()),
            status_range: None,
            content: vec![MetaMediaType { content_type: CONTENT_TYPE, schema: ProblemDocument::schema_ref() }],
            headers: kinds.iter().map(|kind| kind.mark()).collect(),
        };
        MetaResponses { responses: kinds.chunk_by(|a, b| a.status() == b.status()).map(response).collect() }
    }

    fn register(registry: &mut Registry) {
        ProblemDocument::register(registry);
    }
}

/// All problems, one a line.
#[handler]
pub(crate) fn list() -> String {
    ProblemKind::ALL
        .iter()
        .fold(String::new(), |list, kind| format!("{list}{} {:<32} {}\n", kind.status(), kind.uri(), kind.title()))
}

/// One problem.
#[handler]
pub(crate) fn describe(Path(name): Path<String>) -> poem::Result<String> {
    let kind = ProblemKind::ALL.iter().find(|kind| kind.name() == name);
    let kind = kind.ok_or(poem::error::NotFoundError)?;
    Ok(format!("{} ({})\n\n{}\n", kind.title(), kind.status(), kind.description().trim()))
}
