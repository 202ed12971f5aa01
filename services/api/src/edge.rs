//! The outermost layer: trace, metrics, and the place where every failure becomes a problem document.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use common::telemetry::{SECONDS, TRACE_TARGET, TraceId, continue_trace, meter};
use futures_util::FutureExt;
use opentelemetry::KeyValue;
use opentelemetry::metrics::Histogram;
use poem::error::{MethodNotAllowedError, NotFoundError};
use poem::http::{HeaderValue, Method, StatusCode, header};
use poem::{Endpoint, Middleware, Request, Response};
use poem_openapi::OperationId;
use poem_openapi::error::{ContentTypeError, ParseParamError, ParsePathError};
use tokio::time::Instant;
use tracing::{Instrument, Span, error, field, info_span};

use crate::headers::parameter_mend;
use crate::problem::{Problem, ProblemKind};

/// Path templates with the methods that they have.
pub(crate) type AllowedMethods = BTreeMap<String, Vec<String>>;

/// The middleware.
#[derive(Debug)]
pub(crate) struct Edge {
    allowed: Arc<AllowedMethods>,
    seconds: Histogram<f64>,
}

impl Edge {
    pub(crate) fn new(allowed: AllowedMethods) -> Self {
        let seconds = meter()
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("Requests by operation and status")
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self { allowed: Arc::new(allowed), seconds }
    }
}

impl<E: Endpoint<Output = Response>> Middleware<E> for Edge {
    type Output = EdgeEndpoint<E>;

    fn transform(&self, inner: E) -> EdgeEndpoint<E> {
        EdgeEndpoint { inner, allowed: Arc::clone(&self.allowed), seconds: self.seconds.clone() }
    }
}

#[derive(Debug)]
pub(crate) struct EdgeEndpoint<E> {
    inner: E,
    allowed: Arc<AllowedMethods>,
    seconds: Histogram<f64>,
}

impl<E: Endpoint<Output = Response>> Endpoint for EdgeEndpoint<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let started = Instant::now();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        // RFC 9110 §9.3.2: HEAD is GET without the body, which the connection leaves out.
        if method == Method::HEAD {
            request.set_method(Method::GET);
        }
        let span = info_span!(
            target: TRACE_TARGET,
            "request",
            otel.kind = "server",
            otel.name = %method,
            otel.status_code = field::Empty,
            http.request.method = %method,
            http.response.status_code = field::Empty,
            http.operation = field::Empty,
            url.path = path,
            command.id = field::Empty,
        );
        let trace_id = continue_trace(&span, request.headers());
        let answered = AssertUnwindSafe(self.inner.call(request)).catch_unwind().instrument(span.clone()).await;
        let (operation, response) = match answered {
            Ok(Ok(response)) => (operation(response.data()), response),
            Ok(Err(failure)) => (operation(failure.data()), self.respond(&failure, &path, trace_id)),
            Err(_) => {
                error!(%trace_id, "a handler panicked");
                (NO_OPERATION, Problem::new(ProblemKind::Internal).into_response(&trace_id.to_string()))
            }
        };
        self.record(&span, &method, operation, response.status(), started);
        Ok(response)
    }
}

const NO_OPERATION: &str = "none";

fn operation(id: Option<&OperationId>) -> &'static str {
    id.map_or(NO_OPERATION, |id| id.0)
}

impl<E> EdgeEndpoint<E> {
    fn respond(&self, failure: &poem::Error, path: &str, trace_id: TraceId) -> Response {
        let allow = failure.is::<MethodNotAllowedError>().then(|| self.allow(path));
        let problem = to_problem(failure, trace_id);
        let mut response = problem.into_response(&trace_id.to_string());
        if let Some(Ok(allow)) = allow.map(|methods| HeaderValue::from_str(&methods)) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }

    /// The methods of the path, for `Allow`; everything outside the contract is read only.
    fn allow(&self, path: &str) -> String {
        let matches = |template: &str| {
            template.split('/').count() == path.split('/').count()
                && template.split('/').zip(path.split('/')).all(|(t, p)| t.starts_with('{') || t == p)
        };
        let methods =
            self.allowed.iter().find(|(template, _)| matches(template)).map(|(_, methods)| methods.join(", "));
        methods.unwrap_or_else(|| "GET, HEAD".to_owned())
    }

    fn record(&self, span: &Span, method: &Method, operation: &'static str, status: StatusCode, started: Instant) {
        if operation != NO_OPERATION {
            span.record("otel.name", operation);
            span.record("http.operation", operation);
        }
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "error");
        }
        let labels = [
            KeyValue::new("http.request.method", known_method(method)),
            KeyValue::new("http.operation", operation),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        self.seconds.record(started.elapsed().as_secs_f64(), &labels);
    }
}

/// Anybody can invent methods; a label must stay bounded.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

fn to_problem(failure: &poem::Error, trace_id: TraceId) -> Problem {
    if let Some(problem) = failure.downcast_ref::<Problem>() {
        return problem.clone();
    }
    if failure.is::<NotFoundError>() {
        return Problem::new(ProblemKind::NoSuchRoute);
    }
    if failure.is::<MethodNotAllowedError>() {
        return Problem::new(ProblemKind::MethodNotAllowed);
    }
    if let Some(fault) = failure.downcast_ref::<ParseParamError>() {
        return Problem::invalid_field(fault.name, parameter_mend(fault.name));
    }
    if let Some(fault) = failure.downcast_ref::<ParsePathError>() {
        return Problem::invalid_field(fault.name, parameter_mend(fault.name));
    }
    if failure.is::<ContentTypeError>() {
        return Problem::new(ProblemKind::UnsupportedMediaType);
    }
    if failure.status().is_client_error() {
        return Problem::new(ProblemKind::InvalidRequest).detail("the request cannot be read");
    }
    error!(%trace_id, error = %failure, "a request failed");
    Problem::new(ProblemKind::Internal)
}
