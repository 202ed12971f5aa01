//! Opening a connection: to any of the hosts that the URL names, and to any of their addresses.
//!
//! # Why is the socket opened here and not by the client library?
//! The library resolves and connects in a thread of its own, one address after the other, each for as long as the kernel
//! tries. An attempt that is abandoned keeps that thread until then, and at the end of the process the thread panics when
//! the runtime that resolves names for it is gone. Here the library is given a socket that is connected, and the socket is
//! shut down when the attempt is abandoned, which ends the thread.

use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_compat::{Compat, CompatExt};
use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties, ErrorKind};
use rand::seq::SliceRandom;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::frames::{self, FrameFilter};
use crate::config::{BrokerSettings, Endpoint};
use crate::net;

/// How long one address may take from the first byte to an open connection, TLS and authentication included.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("AMQP_URL cannot be read: {0}")]
    Uri(String),
    #[error("failed to connect to the broker at {0}")]
    Connect(Failures),
}

/// Each address that was tried, and why it failed.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<(String, String)>);

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (address, reason)) in self.0.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; at " };
            write!(f, "{separator}{address}: {reason}")?;
        }
        Ok(())
    }
}

/// Connects to the first address that answers, in random order, so that many clients spread over the nodes of a cluster.
pub(crate) async fn dial(settings: &BrokerSettings, name: &str) -> Result<Connection, DialError> {
    let mut endpoints = settings.endpoints().map_err(DialError::Uri)?;
    endpoints.shuffle(&mut rand::rng());
    let mut failures = Failures::default();
    for endpoint in endpoints {
        let uri = &endpoint.uri;
        let host = format!("{}:{}", uri.authority.host, uri.authority.port);
        let addresses = match net::resolve(&uri.authority.host, uri.authority.port).await {
            Ok(addresses) => addresses,
            Err(fault) => {
                failures.0.push((host, fault.to_string()));
                continue;
            }
        };
        for address in addresses {
            match open(&endpoint, address, name).await {
                Ok(connection) => return Ok(connection),
                Err(fault) => {
                    let literal = host == address.to_string();
                    let tried = if literal { host.clone() } else { format!("{host} ({})", address.ip()) };
                    failures.0.push((tried, reason(&fault)));
                }
            }
        }
    }
    Err(DialError::Connect(failures))
}

/// What the library says, without its prefix and repetition where the cause is the system's.
fn reason(fault: &lapin::Error) -> String {
    match fault.kind() {
        ErrorKind::IOError(cause) => cause.to_string(),
        _ => fault.to_string(),
    }
}

/// A connected stream on which AMQP can be spoken, with TLS where the endpoint has it.
pub(crate) type Stream = AsyncTcpStream<Compat<TcpStream>>;

/// Makes a connected socket a stream to the endpoint: its certificate is verified before anything is said.
pub(crate) async fn secured(endpoint: &Endpoint, socket: TcpStream) -> io::Result<Stream> {
    let stream = AsyncTcpStream::Plain(socket.compat());
    match endpoint.uri.scheme {
        AMQPScheme::AMQP => Ok(stream),
        AMQPScheme::AMQPS => {
            let connector = RustlsConnector::from(endpoint.authorities.client_config()?);
            stream.into_rustls(&connector, &endpoint.uri.authority.host).await
        }
    }
}

async fn open(endpoint: &Endpoint, address: SocketAddr, name: &str) -> lapin::Result<Connection> {
    let stream = net::connect(address).await?;
    stream.set_nodelay(true)?;
    let (stream, attempt) = Attempt::over(stream)?;
    let stream = Mutex::new(Some(stream));
    let uri = endpoint.uri.clone();
    let endpoint = endpoint.clone();
    // Called once: the library is not asked to connect again.
    let hand_over = async move |_: AMQPUri, _| {
        let taken = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let socket = taken.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?;
        Ok(AsyncTcpStream::Plain(FrameFilter::over(secured(&endpoint, socket).await?)))
    };
    let properties = ConnectionProperties::default().with_connection_name(format!("rollcall {name}").into());
    let connecting = Connection::connector(uri, frames::runtime(), hand_over, properties);
    let connected = timeout(HANDSHAKE_DEADLINE, connecting).await;
    let connection = connected.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("the broker did not answer within {HANDSHAKE_DEADLINE:?}"))
    })??;
    attempt.succeeded();
    Ok(connection)
}

/// An attempt to connect over a socket, which is shut down when the attempt is dropped before it succeeded.
struct Attempt(Option<std::net::TcpStream>);

impl Attempt {
    fn over(stream: TcpStream) -> io::Result<(TcpStream, Self)> {
        let stream = stream.into_std()?;
        let same = stream.try_clone()?;
        Ok((TcpStream::from_std(stream)?, Self(Some(same))))
    }

    fn succeeded(mut self) {
        self.0 = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
