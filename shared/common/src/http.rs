//! The HTTP loop: hyper-util's around a poem endpoint, and the probes that both services answer.
//!
//! # Why not poem's server?
//! It never times out a head that is sent half, spins when accepting fails, limits neither connections nor HTTP/2
//! streams, and drops its listener the moment a stop begins.

mod crowd;
mod probes;
mod problem;
mod wire;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::uri::Scheme;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use poem::Addr;
use poem::endpoint::{BoxEndpoint, Endpoint};
use poem::web::{LocalAddr, RemoteAddr};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::crowd::{Answer, Crowd, Visitor};
pub use self::probes::probes;
pub use self::problem::REFUSALS;
use self::wire::Wire;
use crate::shutdown::{Phase, Shutdown, Tier};

/// Between cutting off what is under way and the end of a stop's grace.
const MARGIN: Duration = Duration::from_millis(50);
/// Connections that one process serves at once, unless it is told otherwise.
pub const MOST_CONNECTIONS: usize = 10_000;
/// For the head of a request; on a new connection it runs from the accept, because finding out the version of HTTP has no
/// deadline of its own in hyper-util.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How often a quiet HTTP/2 connection is asked whether its peer still lives.
const HTTP2_PING: Duration = Duration::from_secs(20);
const MAX_HTTP2_STREAMS: u32 = 200;
/// For the head of a request; more than hyper allows its target, so that a target that is too long is told as such.
const MAX_HEAD: u32 = 128 * 1024;
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

/// Serves `endpoint` until the process stops: accepts while it drains, then closes the listener and finishes what is in
/// flight. Beyond `most` connections at once, whoever has been quiet for longest goes for the next.
pub fn serve(
    shutdown: &Shutdown,
    name: &'static str,
    listener: TcpListener,
    most: usize,
    endpoint: BoxEndpoint<'static>,
) {
    let stopping = shutdown.clone();
    let endpoint = Arc::new(endpoint);
    shutdown.supervise(name, Tier::Front, async move {
        let crowd = Crowd::new(most);
        let graceful = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stopping.reached(Phase::Stopping) => break,
                accepted = accept(&listener, &crowd) => accepted,
            };
            match accepted {
                Ok((stream, remote, visitor)) => {
                    serve_connection(&stopping, &graceful, &endpoint, stream, remote, visitor);
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

async fn accept(listener: &TcpListener, crowd: &Crowd) -> io::Result<(TcpStream, SocketAddr, Arc<Visitor>)> {
    let (stream, remote) = listener.accept().await?;
    // Answers are small: waiting to fill a segment only adds latency.
    stream.set_nodelay(true)?;
    Ok((stream, remote, crowd.enter().await))
}

fn serve_connection(
    shutdown: &Shutdown,
    graceful: &GracefulShutdown,
    endpoint: &Arc<BoxEndpoint<'static>>,
    stream: TcpStream,
    remote: SocketAddr,
    visitor: Arc<Visitor>,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).max_buf_size(MAX_HEAD as usize);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).max_concurrent_streams(MAX_HTTP2_STREAMS).keep_alive_interval(HTTP2_PING);
    http2.max_header_list_size(MAX_HEAD);
    let local =
        stream.local_addr().map_or_else(|_| LocalAddr::default(), |address| LocalAddr(Addr::SocketAddr(address)));
    let endpoint = Arc::clone(endpoint);
    let phase = shutdown.clone();
    let spoken = CancellationToken::new();
    let (speaking, guest) = (spoken.clone(), Arc::clone(&visitor));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let endpoint = Arc::clone(&endpoint);
        let misaddressed = problem::misaddressed(&request);
        let request = (request, local.clone(), RemoteAddr(Addr::SocketAddr(remote)), Scheme::HTTP).into();
        let phase = phase.clone();
        speaking.cancel();
        let busy = guest.busy();
        async move {
            let mut response = match misaddressed {
                Some(refusal) => refusal,
                None => endpoint.get_response(request).await,
            };
            // HTTP/2 says it with GOAWAY; there the header would be an error, and hyper drops it.
            if phase.phase() > Phase::Running {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer::new(body, busy)))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Wire::new(stream)), service).into_owned();
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
            () = visitor.asked_to_go() => debug!(%remote, "connection ended: others need its place"),
            // A client that is slower than the whole grace does not make a stop a failure.
            () = stopping.finish_is_near(MARGIN) => warn!(%remote, "connection cut off: its request did not end in time"),
        }
    });
}
