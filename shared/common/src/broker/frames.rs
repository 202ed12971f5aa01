//! Frame filter: stands between the socket and the client library, and replaces what the library would refuse.
//!
//! # Why is a filter needed?
//! RabbitMQ stores and delivers any octets in the short strings of a message's properties and in the names of its headers. The
//! client library wants UTF-8 there, as AMQP 0-9-1 says, and ends the *connection* at the first frame that it cannot parse: the
//! message is delivered again over the next connection, which ends too. Tables in tables are parsed by recursion: a few
//! thousand levels, which fit into one frame, overflow the stack and end the process. The library cannot be asked to skip a
//! message, and a fork of its parser would have to be kept up.
//!
//! # What does it do?
//! Frames pass unchanged, but for these:
//!
//! - A content header whose properties are not certain to be parsed, or are longer than 16 KiB, is replaced by one that says
//!   why, with the octets of the old one ([`FrameDefect`]). The message arrives in its place in the queue, is recorded as a dead letter, and
//!   is acknowledged like any other.
//! - A body over [`LARGEST_BODY`] is cut, so that nobody fills the memory of a service with a few messages.
//! - In the texts of methods, such as a routing key or the reason of a close, octets that are no UTF-8 become `?`.
//!
//! # Where does it stand?
//! Above TLS, on every connection of a service: of the worker and of the API, consuming and publishing. The library takes its
//! socket type from its runtime, so there is a runtime of our own which is that of Tokio but for the type.

mod defect;
mod properties;
mod runtime;
mod sieve;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use futures_util::io::{AsyncRead, AsyncWrite};

pub use defect::FrameDefect;
pub(super) use runtime::runtime;
use sieve::Sieve;

/// A longer body is cut to this, in bytes: many times the largest command.
pub const LARGEST_BODY: u64 = 64 * 1024;
/// Octets that are read from the socket at once.
const READ_SIZE: usize = 64 * 1024;

/// A connection to the broker from which only frames arrive that the client library can parse.
pub(super) struct FrameFilter<S> {
    stream: S,
    sieve: Sieve,
    scratch: Box<[u8]>,
    /// Frames that have not arrived as a whole.
    arrived: BytesMut,
    /// Frames that passed, and the library has not read.
    passed: BytesMut,
}

impl<S> FrameFilter<S> {
    pub(super) fn over(stream: S) -> Self {
        Self {
            stream,
            sieve: Sieve::default(),
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
            arrived: BytesMut::new(),
            passed: BytesMut::new(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameFilter<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.passed.is_empty() {
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut this.scratch))?;
            if read == 0 {
                // Half a frame is of no use, and the library knows what the end of the stream means.
                return Poll::Ready(Ok(0));
            }
            this.arrived.extend_from_slice(&this.scratch[..read]);
            while this.sieve.pass(&mut this.arrived, &mut this.passed) {}
        }
        let count = buf.len().min(this.passed.len());
        this.passed.copy_to_slice(&mut buf[..count]);
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameFilter<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
