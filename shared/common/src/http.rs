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

mod descriptors;
mod head;
pub mod host;
mod limiter;
mod listening;
mod probes;
mod problem;
mod protection;
mod unread;
mod wire;

pub use self::descriptors::possible_connections;
pub use self::limiter::client_network;
pub use self::listening::{bind, listen, serve, serve_when_ready};

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use http::uri::Scheme;
use http::{Request, Version};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::Addr;
use poem::endpoint::{BoxEndpoint, Endpoint};
use poem::web::{LocalAddr, RemoteAddr};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::{debug, warn};

use self::head::TimedHead;
use self::limiter::{ConnectionLimiter, ConnectionSlot, GuardedBody, RequestGuard};
pub use self::probes::probes;
pub use self::problem::REFUSALS;
use self::unread::{Rest, Unread};
use self::wire::Wire;
use crate::shutdown::{Phase, Shutdown, Tier};

/// Between cutting off what is under way and the end of a stop's grace.
const MARGIN: Duration = Duration::from_millis(50);
/// Connections that one process serves at once, unless it is told otherwise.
pub const MOST_CONNECTIONS: usize = 10_000;
/// How long an idle connection is kept: longer than load balancers keep theirs (nginx and AWS 60 s, Azure 240 s, Google
/// 600 s), because one that sends a request into a connection that is being closed loses it. Eviction bounds the number.
pub const KEEP_ALIVE: Duration = Duration::from_secs(620);
/// By how much longer than announced an idle connection is kept: the client's clock starts when the answer arrives.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(2);
/// How long a stop waits for the request of a connection that has none in hand: it may be on its way already.
const LAST_REQUEST: Duration = Duration::from_millis(40);
/// Bytes of a request's head, from the method to the empty line; more than hyper allows its target, so that a target that is too
/// long is refused as such.
const MAX_HEAD: usize = 128 * 1024;
/// More than a head, so that the limit above decides.
const MAX_BUFFER: usize = 2 * MAX_HEAD;
/// RFC 2068 §19.7.1.1: how long the connection is kept for a next request.
const KEEP_ALIVE_FIELD: HeaderName = HeaderName::from_static("keep-alive");

/// What one listener allows its clients.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// Connections at once; beyond, the longest idle one is closed for the next.
    pub most: usize,
    /// Of these, the connections of one address, or of an IPv6 network of 64 bits.
    pub most_per_address: Option<usize>,
    /// How long an idle connection is kept, as `Keep-Alive` announces it.
    pub keep_alive: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { most: MOST_CONNECTIONS, most_per_address: None, keep_alive: KEEP_ALIVE }
    }
}

/// What the connections of one listener share.
struct Server {
    shutdown: Shutdown,
    endpoint: Arc<BoxEndpoint<'static>>,
    limiter: ConnectionLimiter,
    keep_alive: Duration,
}

impl Server {
    fn new(shutdown: Shutdown, limits: ConnectionLimits, endpoint: BoxEndpoint<'static>) -> Self {
        let ConnectionLimits { most, most_per_address, keep_alive } = limits;
        let limiter = ConnectionLimiter::new(most, most_per_address);
        Self { shutdown, endpoint: Arc::new(endpoint), limiter, keep_alive }
    }

    /// Serves a connection once there is a slot for it.
    async fn admit(&self, stream: TcpStream, remote: SocketAddr) {
        // Answers are small: waiting to fill a segment only adds latency. One that is gone already needs no answer.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        tokio::select! {
            slot = self.limiter.enter(remote.ip()) => self.serve(stream, remote, slot),
            () = self.shutdown.finish_is_near(MARGIN) => {}
        }
    }

    fn serve(&self, stream: TcpStream, remote: SocketAddr, slot: Arc<ConnectionSlot>) {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // Runs from the end of an answer; the head itself has a deadline of its own.
            .header_read_timeout(self.keep_alive + KEEP_ALIVE_MARGIN)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_BUFFER)
            // RFC 9112 §9.6: a client that closes its sending side may still read. One that is gone is noticed when the
            // answer cannot be written; a wait for an outcome has its own bound.
            .half_close(true);
        let local =
            stream.local_addr().map_or_else(|_| LocalAddr::default(), |address| LocalAddr(Addr::SocketAddr(address)));
        let kept = HeaderValue::from_str(&format!("timeout={}", self.keep_alive.as_secs()));
        let endpoint = Arc::clone(&self.endpoint);
        let phase = self.shutdown.clone();
        let connection_slot = Arc::clone(&slot);
        let unread = Unread::default();
        let wire = Wire::new(TimedHead::new(stream, Arc::clone(&slot)), unread.clone(), Arc::clone(&slot));
        let service = service_fn(move |request: Request<Incoming>| {
            let endpoint = Arc::clone(&endpoint);
            let slot = Arc::clone(&connection_slot);
            let refused = problem::refused(&request);
            let reserved = slot.is_reserved() && !problem::is_probe(&request);
            let kept = kept.as_ref().ok().filter(|_| persists(&request)).cloned();
            let remote = RemoteAddr(Addr::SocketAddr(remote));
            let mut request = poem::Request::from((request, local.clone(), remote, Scheme::HTTP));
            let rest = Rest::of(&mut request, &slot);
            let unread = unread.clone();
            let phase = phase.clone();
            let guard = RequestGuard::new(&slot);
            async move {
                let mut overloaded = false;
                let mut response = if let Some(refusal) = refused {
                    // Where its body ends is not certain.
                    unread.set();
                    refusal
                } else if reserved && !slot.promoted().await {
                    overloaded = true;
                    problem::overloaded()
                } else {
                    endpoint.get_response(request).await
                };
                if rest.remains().await {
                    unread.set();
                }
                let closes = overloaded || phase.phase() > Phase::Running || unread.is_set();
                announce(response.headers_mut(), closes, kept);
                protection::protect(response.headers_mut());
                let response: hyper::Response<BoxBody<Bytes, io::Error>> = response.into();
                Ok::<_, std::convert::Infallible>(response.map(|body| GuardedBody::new(body, guard)))
            }
        });
        let connection = builder.serve_connection(TokioIo::new(wire), service);
        let stopping = self.shutdown.clone();
        self.shutdown.track("connection", Tier::Front, async move {
            let mut connection = pin!(connection);
            let (mut stops, mut evicted_at) = (false, None);
            loop {
                tokio::select! {
                    // What has arrived is read before a stop closes the connection.
                    biased;
                    ended = connection.as_mut() => {
                        if let Err(error) = ended {
                            debug!(%error, %remote, "connection ended with an error");
                        }
                        return;
                    }
                    // The library closes it when it is idle, or the answer is read.
                    () = slot.evicted(), if evicted_at.is_none() => {
                        debug!(%remote, "connection evicted: another one needs its slot");
                        connection.as_mut().graceful_shutdown();
                        evicted_at = Some(Instant::now());
                    }
                    () = released(&slot, evicted_at) => return,
                    // A client that is slower than the whole grace does not make a stop a failure.
                    () = stopping.finish_is_near(MARGIN) => {
                        warn!(%remote, "connection cut off: its request did not end in time");
                        return;
                    }
                    () = last_request(&stopping), if !stops => {
                        connection.as_mut().graceful_shutdown();
                        stops = true;
                    }
                }
            }
        });
    }
}

async fn released(slot: &ConnectionSlot, evicted_at: Option<Instant>) {
    match evicted_at {
        Some(at) => slot.released(at).await,
        None => std::future::pending().await,
    }
}

async fn last_request(shutdown: &Shutdown) {
    shutdown.reached(Phase::Stopping).await;
    tokio::time::sleep(LAST_REQUEST).await;
}

/// Whether the client wants to use the connection again (RFC 9112 §9.3).
fn persists<B>(request: &Request<B>) -> bool {
    let says = |option: &str| {
        let lines = request.headers().get_all(CONNECTION).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case(option))
    };
    !says("close") && (request.version() == Version::HTTP_11 || says("keep-alive"))
}

/// Says what becomes of the connection after the answer.
fn announce(headers: &mut HeaderMap, closes: bool, kept: Option<HeaderValue>) {
    if closes {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if let Some(kept) = kept {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        headers.insert(KEEP_ALIVE_FIELD, kept);
    }
}
