//! The HTTP loop: hyper around a poem endpoint, and the probes that both services answer.
//!
//! # Why not poem's server?
//! It never times out a head that is sent half, spins when accepting fails, does not limit connections, and drops its
//! listener the moment a stop begins.
//!
//! # Why HTTP/1.1 only?
//! Without TLS HTTP/2 is for those who know beforehand that it is spoken. The proxy in front speaks it to clients, and
//! HTTP/1.1 to its upstream. Here it would be a second protocol to defend (streams, floods of frames, compressed heads), and
//! its library refuses large heads with answers that are no problem documents and that nothing can replace.

mod crowd;
mod descriptors;
mod probes;
mod problem;
mod unread;
mod wire;

pub use self::descriptors::possible_connections;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::uri::Scheme;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use poem::Addr;
use poem::endpoint::{BoxEndpoint, Endpoint};
use poem::web::{LocalAddr, RemoteAddr};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info, warn};

use self::crowd::{Answer, Crowd, Visitor};
pub use self::probes::probes;
pub use self::problem::REFUSALS;
use self::unread::{Rest, Unread};
use self::wire::Wire;
use crate::shutdown::{Phase, Shutdown, Tier};

/// Between cutting off what is under way and the end of a stop's grace.
const MARGIN: Duration = Duration::from_millis(50);
/// Connections that one process serves at once, unless it is told otherwise.
pub const MOST_CONNECTIONS: usize = 10_000;
/// For the head of a request, since the accept or the end of the answer before.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a request's head; more than hyper allows its target, so that a target that is too long is told as such.
const MAX_HEAD: usize = 128 * 1024;
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
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).max_buf_size(MAX_HEAD);
    let local =
        stream.local_addr().map_or_else(|_| LocalAddr::default(), |address| LocalAddr(Addr::SocketAddr(address)));
    let endpoint = Arc::clone(endpoint);
    let phase = shutdown.clone();
    let guest = Arc::clone(&visitor);
    let unread = Unread::default();
    let wire = Wire::new(stream, unread.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let endpoint = Arc::clone(&endpoint);
        let misaddressed = problem::misaddressed(&request);
        let remote = RemoteAddr(Addr::SocketAddr(remote));
        let mut request = poem::Request::from((request, local.clone(), remote, Scheme::HTTP));
        let rest = Rest::of(&mut request);
        let unread = unread.clone();
        let phase = phase.clone();
        let busy = guest.busy();
        async move {
            let mut response = match misaddressed {
                Some(refusal) => refusal,
                None => endpoint.get_response(request).await,
            };
            if rest.remains().await {
                unread.set();
            }
            if phase.phase() > Phase::Running || unread.is_set() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
            Ok::<_, std::convert::Infallible>(response.map(|body| Answer::new(body, busy)))
        }
    });
    let connection = graceful.watch(builder.serve_connection(TokioIo::new(wire), service));
    let stopping = shutdown.clone();
    shutdown.track("connection", Tier::Front, async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                debug!(%error, %remote, "connection ended with an error");
            },
            () = visitor.asked_to_go() => debug!(%remote, "connection ended: others need its place"),
            // A client that is slower than the whole grace does not make a stop a failure.
            () = stopping.finish_is_near(MARGIN) => warn!(%remote, "connection cut off: its request did not end in time"),
        }
    });
}
