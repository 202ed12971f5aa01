//! The closed list of problems (RFC 9457), and what an answer says of one.
//!
//! The `type` is a path on this host where the problem is described. A client decides by it; `detail` is for people and
//! never carries an inner error's text.

use std::fmt;
use std::marker::PhantomData;

use common::broker::PublishError;
use common::command::{CommandId, Rejection};
use common::db::DbError;
use poem::http::StatusCode;
use poem::web::Path;
use poem::{Response, handler};
use poem_openapi::registry::{MetaHeader, MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::{ToJSON, Type};
use poem_openapi::{ApiResponse, Object};

use crate::loader::LoadError;

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
    /// There are more than 100 header fields, or more than 64 KiB of them.
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
    /// The instance is starting or stopping, or something it needs is away; `checks` says what.
    NotReady "not-ready" 503 "The instance is not ready";
    /// The broker did not confirm the command in time: it may or may not be applied. Ask for it under `command_id`, or send it again if it came with an Idempotency-Key. One that is still pending when commands that were accepted later are decided was lost.
    OutcomeUnknown "outcome-unknown" 504 "Whether the command was accepted is unknown";
}

impl ProblemKind {
    /// The `type` of the problem document.
    pub fn uri(self) -> String {
        format!("/problems/{}", self.name())
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
    challenge: Option<String>,
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
    #[oai(skip_serializing_if_is_empty, default)]
    errors: Vec<FieldFault>,
    /// The command that was accepted, or may have been.
    #[oai(skip_serializing_if_is_none)]
    command_id: Option<String>,
}

impl Problem {
    /// A problem without more to say.
    pub fn new(kind: ProblemKind) -> Self {
        let retry_after_seconds = (kind.status() == 503).then_some(1);
        Self { kind, detail: None, errors: Vec::new(), command_id: None, retry_after_seconds, challenge: None }
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

    /// Names the command concerned.
    #[must_use]
    pub fn of_command(mut self, id: CommandId) -> Self {
        self.command_id = Some(id);
        self
    }

    /// Says in `WWW-Authenticate` what would let the client in (RFC 9110 §11.6.1).
    #[must_use]
    pub(crate) fn challenge(mut self, challenge: String) -> Self {
        self.challenge = Some(challenge);
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

    /// The answer.
    pub fn into_response(self, trace_id: &str) -> Response {
        let document = ProblemDocument {
            kind: self.kind.uri(),
            title: self.kind.title().to_owned(),
            status: self.kind.status(),
            detail: self.detail,
            trace_id: trace_id.to_owned(),
            errors: self.errors,
            command_id: self.command_id.map(|id| id.to_string()),
        };
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::builder().status(status).content_type(CONTENT_TYPE);
        if let Some(seconds) = self.retry_after_seconds {
            response = response.header("retry-after", seconds);
        }
        if let Some(challenge) = self.challenge {
            response = response.header("www-authenticate", challenge);
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

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        tracing::warn!(error = common::shutdown::chain(&error), "a read failed");
        Self::new(ProblemKind::DatabaseUnavailable)
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        Self::new(match error {
            LoadError::Full => ProblemKind::Overloaded,
            LoadError::Unavailable => ProblemKind::DatabaseUnavailable,
        })
    }
}

/// Every operation serves only whom it may.
const REFUSALS: [u16; 2] = [401, 403];

fn challenge_header() -> MetaHeader {
    MetaHeader {
        name: "WWW-Authenticate".to_owned(),
        description: Some("What would let the client in (RFC 6750)".to_owned()),
        required: true,
        deprecated: false,
        schema: String::schema_ref(),
    }
}

/// The statuses with which an operation can fail, for the contract.
pub trait Failures {
    /// In ascending order, without those of a caller who is not served.
    const STATUSES: &'static [u16];
}

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
    fn meta() -> MetaResponses {
        let mut statuses = [F::STATUSES, &REFUSALS].concat();
        statuses.sort_unstable();
        let response = |status: u16| MetaResponse {
            description: describe_status(status),
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: CONTENT_TYPE, schema: ProblemDocument::schema_ref() }],
            headers: if REFUSALS.contains(&status) { vec![challenge_header()] } else { vec![] },
        };
        MetaResponses { responses: statuses.into_iter().map(response).collect() }
    }

    fn register(registry: &mut Registry) {
        ProblemDocument::register(registry);
    }
}

/// The titles of a status's problems, for the contract.
fn describe_status(status: u16) -> &'static str {
    match status {
        400 => "The request is not valid.",
        401 => "No valid key or token came with the request.",
        403 => "The key or token does not have the scope that this operation needs.",
        404 => "There is no such user or command.",
        408 => "The request body did not arrive in time.",
        409 => "The command was rejected: the address is taken, or the user is in that state already. Or it is parked.",
        410 => "The command's outcome is no longer kept.",
        412 => "The user has changed since the version in If-Match.",
        413 => "The request body is too large.",
        415 => "The media type is not supported.",
        422 => "Another request came under the same Idempotency-Key before.",
        503 => "The database or the broker is not available; try again after Retry-After.",
        504 => "Whether the command was accepted is unknown; ask for it under `command_id`.",
        _ => "The service failed.",
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
