//! Request guard: a connection works on a request until its answer is handed to the library, and the client reads it then.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::{Body, Frame, SizeHint};

use super::ConnectionSlot;

/// A request in hand; dropping it ends it.
#[derive(Debug)]
pub(in crate::http) struct RequestGuard(Arc<ConnectionSlot>);

impl RequestGuard {
    pub(in crate::http) fn new(slot: &Arc<ConnectionSlot>) -> Self {
        slot.request_begins();
        Self(Arc::clone(slot))
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.request_ends();
    }
}

/// The body of an answer, whose request is in hand until all of it is taken.
pub(in crate::http) struct GuardedBody<B> {
    body: B,
    _guard: RequestGuard,
}

impl<B> GuardedBody<B> {
    pub(in crate::http) fn new(body: B, guard: RequestGuard) -> Self {
        Self { body, _guard: guard }
    }
}

impl<B: Body + Unpin> Body for GuardedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
