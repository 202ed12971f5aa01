//! TCP connections where a name has several addresses: each address gets a deadline of its own, in random order, so that
//! one that never answers delays a connection and cannot prevent it (RFC 8305 is about the same fault).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rand::seq::SliceRandom;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// How long one address may take to accept: the first SYN may be lost, and is sent again after a second.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(2);
/// How long the resolver may take for one name.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(2);

/// The addresses of a host, in random order.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = timeout(RESOLVE_DEADLINE, lookup_host((host, port))).await;
    let found = found.map_err(|_| late("the name was not resolved", RESOLVE_DEADLINE))??;
    let mut addresses: Vec<_> = found.collect();
    // The same address can come once for each line of the hosts file.
    addresses.sort_unstable();
    addresses.dedup();
    addresses.shuffle(&mut rand::rng());
    Ok(addresses)
}

/// A connection to this address.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = timeout(ACCEPT_DEADLINE, TcpStream::connect(address)).await;
    connected.map_err(|_| late("no connection", ACCEPT_DEADLINE))?
}

/// The first of these addresses that accepts a connection; the connection is closed again.
pub(crate) async fn first_to_accept(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    for address in addresses {
        if connect(*address).await.is_ok() {
            return Some(*address);
        }
    }
    None
}

fn late(what: &str, deadline: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {deadline:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// A listener that accepts nobody: its queue is full, so that further SYNs are dropped.
    async fn black_hole() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).expect("an address");
        let listener = socket.listen(1).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            queued.push(stream);
        }
        (listener, queued, address)
    }

    #[tokio::test]
    async fn an_address_that_never_answers_is_passed_over() {
        let (_listener, _queued, silent) = black_hole().await;
        let answering = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
        let answering = answering.local_addr().expect("an address");
        assert_eq!(first_to_accept(&[silent, answering]).await, Some(answering));
        assert_eq!(first_to_accept(&[silent]).await, None);
        let error = connect(silent).await.expect_err("no connection");
        assert_eq!(error.to_string(), "no connection within 2s");
    }

    #[tokio::test]
    async fn a_host_has_each_of_its_addresses_once() {
        let mut addresses = resolve("localhost", 1).await.expect("addresses");
        let found = addresses.len();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), found);
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 1), "{addresses:?}");
    }
}
