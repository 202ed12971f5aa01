//! Deadline for the head of a request, from its first byte to its end. Between requests it does not run: how long an idle
//! connection is kept is another limit, and much longer.
//!
//! A head whose first bytes arrive in one piece with the request before it has that longer limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::limiter::ConnectionSlot;

const DEADLINE: Duration = Duration::from_secs(10);

/// A stream with that deadline for its reads.
#[derive(Debug)]
pub(super) struct TimedHead<S> {
    stream: S,
    slot: Arc<ConnectionSlot>,
    /// The idle period that the first byte of a head ended, and when.
    begun: Option<(u64, Instant)>,
    /// Wakes the reader at the deadline of a head that came in part.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedHead<S> {
    pub(super) fn new(stream: S, slot: Arc<ConnectionSlot>) -> Self {
        Self { stream, slot, begun: None, timer: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedHead<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        let Some(period) = this.slot.idle_period() else { return read };
        let begun = match this.begun {
            Some((of, at)) if of == period => at,
            _ if buffer.filled().len() > before => {
                let now = Instant::now();
                (this.begun, this.timer) = (Some((period, now)), None);
                now
            }
            _ => return read,
        };
        let deadline = begun + DEADLINE;
        let late = if read.is_ready() {
            Instant::now() >= deadline
        } else {
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            timer.as_mut().poll(context).is_ready()
        };
        if late {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the head of a request is too slow")));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedHead<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
