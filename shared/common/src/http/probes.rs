//! The probes that both services answer.

use poem::endpoint::Endpoint;
use poem::http::StatusCode;
use poem::{Response, Route, get, handler};
use tracing::Span;

use crate::health::{Health, Report};
use crate::telemetry::{TraceId, continue_trace};

/// `/healthz`, `/readyz` and `/metrics`.
pub fn probes(health: &Health) -> Route {
    let readyz = Readyz(health.clone());
    Route::new().at("/healthz", get(healthz)).at("/readyz", get(readyz)).at("/metrics", get(metrics))
}

/// Alive: no I/O, so that a slow database never gets a process killed.
#[handler]
fn healthz() -> &'static str {
    "ok\n"
}

#[handler]
fn metrics() -> Response {
    Response::builder()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(crate::telemetry::prometheus_text())
}

struct Readyz(Health);

impl Endpoint for Readyz {
    type Output = Response;

    async fn call(&self, request: poem::Request) -> poem::Result<Response> {
        Ok(readiness(&self.0.report(), continue_trace(&Span::none(), request.headers())))
    }
}

fn readiness(report: &Report, trace_id: TraceId) -> Response {
    let (status, content_type, body) = if report.ready {
        (StatusCode::OK, "application/json", serde_json::to_value(report).unwrap_or_default())
    } else {
        let problem = serde_json::json!({
            "type": "/problems/not-ready",
            "title": "The instance is not ready",
            "status": 503,
            "trace_id": trace_id.to_string(),
            "checks": report.checks,
        });
        (StatusCode::SERVICE_UNAVAILABLE, "application/problem+json", problem)
    };
    // Indented, so that a person sees one line per check.
    let body = format!("{body:#}\n");
    let response = Response::builder().status(status).content_type(content_type).header("cache-control", "no-store");
    let response = if report.ready { response } else { response.header("retry-after", 1) };
    response.body(body)
}
