//! Stream of one connection: a client that does not read is cut off, one that still sends is read to the end before the
//! connection is closed, and what hyper refuses by itself becomes a problem document like every other error.
//!
//! # Why look at the bytes?
//! hyper answers what it cannot parse before any service sees it, with a bare status, and has no way to say it differently.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::limiter::ConnectionSlot;
use super::problem;
use super::unread::Unread;

/// For how long a client may read nothing while there is something for it.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// For how long a client may go on to send what nobody reads. Closed at once, the connection would be reset, and the answer
/// lost with it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);

/// A stream with all of that.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    /// Runs while the client reads nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// A refusal that replaces hyper's.
    refusal: Bytes,
    unread: Unread,
    /// The limiter learns when the client does not read.
    slot: Arc<ConnectionSlot>,
    /// Runs since the last byte was written, while there may be something left to hear.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, unread: Unread, slot: Arc<ConnectionSlot>) -> Self {
        Self { stream, stalled: None, refusal: Bytes::new(), unread, slot, lingering: None }
    }

    /// Reads and forgets until the client has nothing more to say.
    fn hear_out(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let lingering = self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut forgotten = [0; 8192];
        while lingering.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut forgotten);
            let read = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Lets a write pass, or end with an error when it has been waiting for too long.
    fn bounded<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.slot.answer_unread(false);
            }
            return written;
        }
        let slot = &self.slot;
        let stalled = self.stalled.get_or_insert_with(|| {
            slot.answer_unread(true);
            Box::pin(sleep(WRITE_DEADLINE))
        });
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }

    fn write_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.refusal.has_remaining() {
            let written = Pin::new(&mut self.stream).poll_write(context, &self.refusal);
            match ready!(self.bounded(context, written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.refusal.advance(length),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What to write instead, if this ends with a refusal of hyper's own: no answer of ours is an error without a body.
fn replaced(written: &[u8]) -> Option<Bytes> {
    let head = written.strip_suffix(b"\r\n\r\n")?;
    let start = [&b"HTTP/1.1 4"[..], b"HTTP/1.0 4"]
        .into_iter()
        .filter_map(|line| head.windows(line.len()).rposition(|window| window == line))
        .max()?;
    let text = std::str::from_utf8(&head[start..]).ok()?;
    let mut lines = text.split("\r\n");
    let status: u16 = lines.next()?.get(9..12)?.parse().ok()?;
    let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).collect();
    let header =
        |wanted: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| *value);
    if header("content-length") != Some("0") || header("content-type").is_some() {
        return None;
    }
    let mut replacement = BytesMut::from(&written[..start]);
    replacement.extend_from_slice(&problem::refusal(status, header("date")?));
    Some(replacement.freeze())
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wire = self.get_mut();
        ready!(wire.write_refusal(context))?;
        if let Some(refusal) = replaced(bytes) {
            wire.refusal = refusal;
            // What could not be parsed may have more behind it.
            wire.unread.set();
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut wire.stream).poll_write(context, bytes);
        wire.bounded(context, written)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.write_refusal(context))?;
        Pin::new(&mut wire.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = self.get_mut();
        ready!(wire.write_refusal(context))?;
        if wire.lingering.is_none() {
            ready!(Pin::new(&mut wire.stream).poll_shutdown(context))?;
        }
        if wire.unread.is_set() {
            ready!(wire.hear_out(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::limiter::ConnectionLimiter;

    async fn wire<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Wire<S> {
        let slot = ConnectionLimiter::new(1, None).enter([127, 0, 0, 1].into()).await;
        Wire::new(stream, Unread::default(), slot)
    }

    const BARE: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
        date: Sun, 22 Nov 2026 08:31:12 GMT\r\n\r\n";

    #[tokio::test]
    async fn a_bare_refusal_becomes_a_problem_and_what_came_before_it_stays() {
        let earlier = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let (stream, mut client) = tokio::io::duplex(4096);
        let mut wire = wire(stream).await;
        wire.write_all(format!("{earlier}{BARE}").as_bytes()).await.expect("written");
        wire.shutdown().await.expect("closed");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        let refusal = answer.strip_prefix(earlier).expect("the earlier answer");
        let (head, body) = refusal.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 431 ") && head.contains("content-type: application/problem+json"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(head.contains("date: Sun, 22 Nov 2026 08:31:12 GMT"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!((&body["type"], &body["status"]), (&"/problems/headers-too-large".into(), &431.into()));
    }

    #[test]
    fn answers_of_ours_are_left_alone() {
        for answer in [
            "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\ncontent-type: application/problem+json\r\ncontent-length: 120\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "{\"name\":\"HTTP/1.1 4\"}\r\n\r\n",
        ] {
            assert_eq!(replaced(answer.as_bytes()), None, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up() {
        let (stream, _client) = tokio::io::duplex(16);
        let mut wire = wire(stream).await;
        let end = wire.write_all(&[b' '; 64]).await.expect_err("given up");
        assert_eq!(end.kind(), io::ErrorKind::TimedOut);
    }
}
