//! Listener of a service: the address is bound before anything else starts, connections are accepted once the instance is
//! ready, and a stop serves what the kernel has accepted.
//!
//! # Why not listen at once?
//! A load balancer sends a refused connection to another instance, and hands a 503 to the client.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use poem::endpoint::BoxEndpoint;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::{info, warn};

use super::{ConnectionLimits, Server};
use crate::health::Health;
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier};

/// Connections that wait to be accepted; the library's 128 overflow when many clients reconnect at once.
const BACKLOG: u32 = 1024;
/// After a failed accept, such as for want of file descriptors: trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes the address of a service without listening yet.
///
/// # Errors
/// Names the address, so that the message alone is enough to correct it.
pub fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let bound = || {
        let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    bound().map_err(|error| failed_to_listen(address, &error))
}

/// Makes a bound socket accept connections.
///
/// # Errors
/// Another process listens on the address since.
pub fn listen(socket: TcpSocket) -> io::Result<TcpListener> {
    let address = socket.local_addr()?;
    // Two sockets that do not listen may have the same address.
    socket.listen(BACKLOG).map_err(|error| failed_to_listen(address, &error))
}

fn failed_to_listen(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to listen on {address}: {error}"))
}

/// Serves `endpoint` until the process stops: accepts while it drains, then closes the listener and finishes what is in
/// flight.
pub fn serve(
    shutdown: &Shutdown,
    name: &'static str,
    listener: TcpListener,
    limits: ConnectionLimits,
    endpoint: BoxEndpoint<'static>,
) {
    let server = Server::new(shutdown.clone(), limits, endpoint);
    shutdown.supervise(name, Tier::Front, accept(server, name, listener));
}

/// The same, but connections are refused until the instance is ready, or until `delay` has passed: then `/readyz` must be
/// able to say why it is not.
pub fn serve_when_ready(
    shutdown: &Shutdown,
    name: &'static str,
    socket: TcpSocket,
    limits: ConnectionLimits,
    endpoint: BoxEndpoint<'static>,
    (health, delay): (&Health, Duration),
) {
    let (health, stopping) = (health.clone(), shutdown.clone());
    let server = Server::new(shutdown.clone(), limits, endpoint);
    shutdown.supervise(name, Tier::Front, async move {
        tokio::select! {
            () = stopping.reached(Phase::Stopping) => return Ok(()),
            () = health.ready() => {}
            () = tokio::time::sleep(delay) => {}
        }
        accept(server, name, listen(socket)?).await
    });
}

async fn accept(server: Server, name: &'static str, listener: TcpListener) -> TaskResult {
    info!(server = name, address = %listener.local_addr()?, "listening");
    loop {
        let accepted = tokio::select! {
            () = server.shutdown.reached(Phase::Stopping) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => server.admit(stream, remote).await,
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the listener resets the connections in its queue, whose clients may have sent their requests already.
    let listener = listener.into_std()?;
    while let Ok((stream, remote)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok()
            && let Ok(stream) = TcpStream::from_std(stream)
        {
            server.admit(stream, remote).await;
        }
    }
    drop(listener);
    info!(server = name, "listener closed; finishing requests in flight");
    Ok(())
}
