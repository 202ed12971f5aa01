//! Runtime of the client library: Tokio's, with the filtered stream as its socket type.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::AsyncTcpStream;
use tokio::net::TcpStream;

use super::FrameFilter;

/// Tokio, but for the type of a socket.
#[derive(Debug, Clone)]
pub(in crate::broker) struct Filtering(Tokio);

/// The runtime that belongs to the current one of Tokio.
pub(in crate::broker) fn runtime() -> Runtime<RuntimeParts<Tokio, Filtering>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Filtering(Tokio::current())))
}

impl Reactor for Filtering {
    type TcpStream = FrameFilter<AsyncTcpStream<Compat<TcpStream>>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    /// Never called: the library is given a socket that is connected.
    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}
