//! What is left of a request's body when its answer is there. Then the connection ends with the answer, and says so:
//! otherwise a client would send its next request behind a body that nobody reads, and lose it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, SizeHint};

/// Whether a connection has received what nobody will read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Lets the request pass on; until its body is at its end, it counts as unread.
    pub(super) fn watch(&self, request: &mut poem::Request) {
        let body = BoxBody::from(request.take_body());
        if body.is_end_stream() {
            request.set_body(body);
        } else {
            self.0.store(true, Ordering::Relaxed);
            request.set_body(BoxBody::new(Watched { body, unread: self.clone() }));
        }
    }
}

/// A body that says when it was read.
struct Watched {
    body: BoxBody<Bytes, io::Error>,
    unread: Unread,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let watched = self.get_mut();
        let frame = Pin::new(&mut watched.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || watched.body.is_end_stream() {
            watched.unread.0.store(false, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
