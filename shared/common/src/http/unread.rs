//! What is left of a request's body when its answer is there. A little that has come is read and forgotten; otherwise the
//! connection ends with the answer, and says so: a client would send its next request behind a body that nobody reads, and
//! lose it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::timeout;

use super::limiter::ConnectionSlot;

/// Bytes that are read and forgotten.
const LITTLE: u64 = 64 * 1024;
/// For what has come already, and only has to be handed over.
const HANDED_OVER: Duration = Duration::from_millis(20);

/// Whether a connection has received what nobody will read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The rest of a request's body, whichever part of the service has the body.
pub(super) struct Rest {
    body: Option<(Shared, Arc<ConnectionSlot>)>,
    /// The client waits to be told that it may send.
    unsent: bool,
}

type Shared = Arc<Mutex<BoxBody<Bytes, io::Error>>>;

impl Rest {
    /// Keeps a hand on the body while the request passes on.
    pub(super) fn of(request: &mut poem::Request, slot: &Arc<ConnectionSlot>) -> Self {
        let unsent = request.headers().contains_key(http::header::EXPECT);
        let body = BoxBody::from(request.take_body());
        if body.is_end_stream() {
            request.set_body(body);
            return Self { body: None, unsent };
        }
        let body = Arc::new(Mutex::new(body));
        request.set_body(BoxBody::new(Watched::new(Arc::clone(&body), Arc::clone(slot))));
        Self { body: Some((body, Arc::clone(slot))), unsent }
    }

    /// Whether something of it is left that is not worth reading.
    pub(super) async fn remains(self) -> bool {
        let Some((body, slot)) = self.body else { return false };
        let mut body = Watched::new(body, slot);
        if body.is_end_stream() {
            return false;
        }
        if self.unsent || body.size_hint().lower() > LITTLE {
            return true;
        }
        let reading = async {
            let mut read = 0;
            while read <= LITTLE {
                match body.frame().await {
                    None => return true,
                    Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
                    Some(Err(_)) => break,
                }
            }
            false
        };
        !timeout(HANDED_OVER, reading).await.unwrap_or_default()
    }
}

/// A body that two parts of the service share, never at the same time; the limiter learns when the client is waited for.
struct Watched {
    body: Shared,
    slot: Arc<ConnectionSlot>,
    awaited: bool,
}

impl Watched {
    fn new(body: Shared, slot: Arc<ConnectionSlot>) -> Self {
        Self { body, slot, awaited: false }
    }

    fn with<T>(&self, look: impl FnOnce(&mut BoxBody<Bytes, io::Error>) -> T) -> T {
        look(&mut self.body.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn awaits(&mut self, awaited: bool) {
        if self.awaited != awaited {
            self.awaited = awaited;
            self.slot.awaits_body(awaited);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.awaits(false);
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let watched = self.get_mut();
        let frame = watched.with(|body| Pin::new(body).poll_frame(context));
        watched.awaits(frame.is_pending());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}
