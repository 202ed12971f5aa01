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

use crate::auth::Guard;
use crate::compression;
use crate::cors::Origins;
use crate::headers::{check_single, parameter_mend};
use crate::problem::{Failed, Problem, ProblemKind};
use crate::rate::Allowance;

/// Path templates with the methods that they have.
pub(crate) type AllowedMethods = BTreeMap<String, Vec<String>>;

/// The middleware.
#[derive(Debug)]
pub(crate) struct Edge {
    allowed: Arc<AllowedMethods>,
    origins: Arc<Origins>,
    guard: Option<Guard>,
    seconds: Histogram<f64>,
}

impl Edge {
    /// With a guard, the host that a request names is checked.
    pub(crate) fn new(allowed: AllowedMethods, origins: Origins, guard: Option<Guard>) -> Self {
        let seconds = meter()
            .f64_histogram("http.server.request.duration")
            .with_unit("s")
            .with_description("Requests by operation and status")
            .with_boundaries(SECONDS.to_vec())
            .build();
        Self { allowed: Arc::new(allowed), origins: Arc::new(origins), guard, seconds }
    }
}

impl<E: Endpoint<Output = Response>> Middleware<E> for Edge {
    type Output = EdgeEndpoint<E>;

    fn transform(&self, inner: E) -> EdgeEndpoint<E> {
        EdgeEndpoint {
            inner,
            allowed: Arc::clone(&self.allowed),
            origins: Arc::clone(&self.origins),
            guard: self.guard.clone(),
            seconds: self.seconds.clone(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct EdgeEndpoint<E> {
    inner: E,
    allowed: Arc<AllowedMethods>,
    origins: Arc<Origins>,
    guard: Option<Guard>,
    seconds: Histogram<f64>,
}

impl<E: Endpoint<Output = Response>> Endpoint for EdgeEndpoint<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let started = Instant::now();
        let method = request.method().clone();
        let uri = request.uri().clone();
        let path = uri.path();
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
            url.path = shown_path(path),
            command.id = field::Empty,
        );
        let trace_id = continue_trace(&span, request.headers());
        let (origin, gzip) = (request.headers().get(header::ORIGIN).cloned(), compression::accepted(request.headers()));
        let allowance = Allowance::default();
        request.set_data(allowance.clone());
        request.set_data(trace_id);
        if let Some(mut answer) = self.origins.preflight(&request) {
            self.origins.allow(origin.as_ref(), answer.headers_mut());
            return Ok(answer);
        }
        let answered = match self.check(&request, path) {
            Ok(()) => AssertUnwindSafe(self.inner.call(request)).catch_unwind().instrument(span.clone()).await,
            Err(problem) => Ok(Err(Failed::<()>::from(problem).into())),
        };
        let (operation, mut response) = match answered {
            Ok(Ok(response)) => (operation(response.data()), response),
            Ok(Err(failure)) => (operation(failure.data()), self.respond(&failure, path, trace_id)),
            Err(_) => {
                error!(%trace_id, "a handler panicked");
                (NO_OPERATION, Problem::new(ProblemKind::Internal).into_response(&trace_id.to_string()))
            }
        };
        self.record(&span, &method, operation, response.status(), started);
        // Answers have names and addresses of people, which no cache keeps; a client that keeps one itself may ask with its tag.
        // A proxy that compresses weakens the tag, and a weak one never matches in If-Match.
        let headers = response.headers_mut();
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store, no-transform"));
        allowance.write(headers);
        self.origins.allow(origin.as_ref(), headers);
        Ok(compression::compress(gzip, response).await)
    }
}

const NO_OPERATION: &str = "none";

fn operation(id: Option<&OperationId>) -> &'static str {
    id.map_or(NO_OPERATION, |id| id.0)
}

impl<E> EdgeEndpoint<E> {
    /// Refuses what no path takes; the host of an operation is checked with its caller.
    fn check(&self, request: &Request, path: &str) -> Result<(), Problem> {
        check_single(request.headers())?;
        match &self.guard {
            Some(guard) if path != "/healthz" && !path.starts_with("/v1/") => guard.check_host(request),
            _ => Ok(()),
        }
    }

    fn respond(&self, failure: &poem::Error, path: &str, trace_id: TraceId) -> Response {
        let allow = failure.is::<MethodNotAllowedError>().then(|| self.allow(path));
        let problem = match failure.downcast_ref::<ParsePathError>() {
            Some(fault) => {
                let name = self.path_parameter(path, fault.name);
                Problem::invalid_field(name, parameter_mend(name))
            }
            None => to_problem(failure, trace_id),
        };
        let mut response = problem.into_response(&trace_id.to_string());
        if let Some(Ok(allow)) = allow.map(|methods| HeaderValue::from_str(&methods)) {
            response.headers_mut().insert(header::ALLOW, allow);
        }
        response
    }

    /// The methods of the path, for `Allow`; everything outside the contract is read only.
    fn allow(&self, path: &str) -> String {
        self.template(path).map_or_else(|| "GET, HEAD".to_owned(), |(_, methods)| methods.join(", "))
    }

    /// The name of a path parameter in the contract; the library knows it as `param` and its place.
    fn path_parameter(&self, path: &str, place: &str) -> &str {
        let (Some((template, _)), Some(Ok(place))) =
            (self.template(path), place.strip_prefix("param").map(str::parse::<usize>))
        else {
            return "path";
        };
        let mut names = template.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
        names.nth(place).unwrap_or("path")
    }

    fn template(&self, path: &str) -> Option<(&String, &Vec<String>)> {
        self.allowed.iter().find(|(template, _)| fits(template, path))
    }

    fn record(&self, span: &Span, method: &Method, operation: &'static str, status: StatusCode, started: Instant) {
        if operation != NO_OPERATION {
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

/// Whether a path is one of a template.
pub(crate) fn fits(template: &str, path: &str) -> bool {
    template.split('/').count() == path.split('/').count()
        && template.split('/').zip(path.split('/')).all(|(t, p)| t.starts_with('{') || t == p)
}

/// A path as a span may show it: one with an address or a name in it, which is none of ours, is not repeated.
fn shown_path(path: &str) -> &str {
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if plain { path } else { "REDACTED" }
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
    if failure.is::<ContentTypeError>() {
        return Problem::new(ProblemKind::UnsupportedMediaType);
    }
    if failure.status().is_client_error() {
        return Problem::new(ProblemKind::InvalidRequest).detail("the request cannot be read");
    }
    // Its text is a library's and can quote the request.
    error!(%trace_id, status = failure.status().as_u16(), "a request failed");
    Problem::new(ProblemKind::Internal)
}

#[cfg(test)]
mod tests {
    use poem::endpoint::make;
    use poem::{EndpointExt, IntoResponse};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_with_a_problem_that_does_not_tell_it() {
        let panicking =
            make(|_| async { if true { panic!("the secret") } else { Ok::<_, poem::Error>("".into_response()) } });
        let endpoint = panicking.with(Edge::new(AllowedMethods::new(), Origins::Own, None));
        let response = endpoint.get_response(Request::default()).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.content_type(), Some("application/problem+json"));
        let body = response.into_body().into_string().await.expect("a body");
        assert!(body.contains("/problems/internal") && body.contains("trace_id"), "{body}");
        assert!(!body.contains("secret"), "{body}");
    }

    #[tokio::test]
    async fn an_error_that_nobody_foresaw_is_answered_without_its_text() {
        for (status, kind) in [(500, "internal"), (502, "internal"), (400, "invalid-request"), (411, "invalid-request")]
        {
            let status = StatusCode::from_u16(status).expect("a status");
            let failing =
                make(move |_| async move { Err::<Response, _>(poem::Error::from_string("the secret", status)) });
            let response = failing
                .with(Edge::new(AllowedMethods::new(), Origins::Own, None))
                .get_response(Request::default())
                .await;
            let body = response.into_body().into_string().await.expect("a body");
            assert!(body.contains(kind) && !body.contains("secret"), "{status}: {body}");
        }
    }
}
