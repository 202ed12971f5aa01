//! The HTTP loop: hyper-util's around a poem endpoint, and the probes that both services answer.
//!
//! # Why not poem's server?
//! It never times out a head that is sent half, spins when accepting fails, limits neither connections nor HTTP/2
//! streams, and drops its listener the moment a stop begins.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue};
use http::uri::Scheme;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use poem::endpoint::{BoxEndpoint, Endpoint};
use poem::http::StatusCode;
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Response, Route, get, handler};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, info, warn};

use crate::health::{Health, Report};
use crate::shutdown::{Phase, Shutdown, Tier};
use crate::telemetry::{TraceId, continue_trace};

/// Between cutting off what is under way and the end of a stop's grace.
const MARGIN: Duration = Duration::from_millis(50);
/// Connections that one process serves at once; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 10_000;
/// For the head of a request; on a new connection it runs from the accept, because finding out the version of HTTP has no
/// deadline of its own in hyper-util.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How often a quiet HTTP/2 connection is asked whether its peer still lives.
const HTTP2_PING: Duration = Duration::from_secs(20);
const MAX_HTTP2_STREAMS: u32 = 200;
/// After a failed accept, such as for want of file descriptors: trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds the address of a service.
///
/// # Errors
/// Names the address, so that the message alone is enough to mend it.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("failed to listen on {address}: {error}")))
}

/// Serves `endpoint` until the process stops: accepts while it drains, then closes the listener and finishes what is in flight.
pub fn serve(shutdown: &Shutdown, name: &'static str, listener: TcpListener, endpoint: BoxEndpoint<'static>) {
    let stopping = shutdown.clone();
    let endpoint = Arc::new(endpoint);
    shutdown.supervise(name, Tier::Front, async move {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        loop {
            // The permit comes first: what cannot be served is left to the kernel's queue.
            let accepted = tokio::select! {
                () = stopping.reached(Phase::Stopping) => break,
                accepted = accept(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((stream, remote, permit)) => {
                    serve_connection(&stopping, &graceful, &endpoint, stream, remote, permit);
                }
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        info!(server = name, "listener closed; finishing requests in flight");
        tokio::select! {
            () = graceful.shutdown() => {}
            () = stopping.finish_is_near(MARGIN) => {}
        }
        Ok(())
    });
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    // Answers are small: waiting to fill a segment only adds latency.
    stream.set_nodelay(true)?;
    Ok((stream, remote, permit))
}

fn serve_connection(
    shutdown: &Shutdown,
    graceful: &GracefulShutdown,
    endpoint: &Arc<BoxEndpoint<'static>>,
    stream: TcpStream,
    remote: SocketAddr,
    permit: OwnedSemaphorePermit,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_HTTP2_STREAMS).keep_alive_interval(HTTP2_PING);
    let local =
        stream.local_addr().map_or_else(|_| LocalAddr::default(), |address| LocalAddr(Addr::SocketAddr(address)));
    let endpoint = Arc::clone(endpoint);
    let phase = shutdown.clone();
    let spoken = CancellationToken::new();
    let speaking = spoken.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let endpoint = Arc::clone(&endpoint);
        let request = (request, local.clone(), RemoteAddr(Addr::SocketAddr(remote)), Scheme::HTTP).into();
        let phase = phase.clone();
        speaking.cancel();
        async move {
            let mut response = endpoint.get_response(request).await;
            // HTTP/2 says it with GOAWAY; there the header would be an error, and hyper drops it.
            if phase.phase() > Phase::Running {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(hyper::Response::from(response))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    let connection = graceful.watch(connection);
    let stopping = shutdown.clone();
    shutdown.track("connection", Tier::Front, async move {
        let silent = async {
            if timeout(HEADER_DEADLINE, spoken.cancelled()).await.is_ok() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(error, %remote, "connection ended with an error");
            },
            () = silent => debug!(%remote, "connection ended: no request in time"),
            // A client that is slower than the whole grace does not make a stop a failure.
            () = stopping.finish_is_near(MARGIN) => warn!(%remote, "connection cut off: its request did not end in time"),
        }
        drop(permit);
    });
}

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
