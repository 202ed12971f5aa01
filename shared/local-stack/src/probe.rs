//! Whether a server answers in its own protocol: a listening port alone proves nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(2);

/// A start-up packet is answered with a request for a password; while starting up, with an error instead.
pub(crate) fn postgres(port: u16) -> bool {
    const PROTOCOL_3_0: u32 = 196_608;
    let parameters = b"user\0rollcall\0database\0rollcall\0\0";
    let length = u32::try_from(parameters.len() + 8).unwrap_or_default();
    let packet = [&length.to_be_bytes(), &PROTOCOL_3_0.to_be_bytes(), &parameters[..]].concat();
    exchange(port, &packet).is_some_and(|[kind]| kind == b'R')
}

/// The protocol header is answered with a `Connection.Start` method frame (AMQP 0-9-1, §4.2.2).
pub(crate) fn amqp(port: u16) -> bool {
    let answer: Option<[u8; 11]> = exchange(port, b"AMQP\x00\x00\x09\x01");
    answer.is_some_and(|frame| frame[0] == 1 && frame[7..] == [0, 10, 0, 10])
}

pub(crate) fn listening(port: u16) -> bool {
    connect(port).is_some()
}

fn connect(port: u16) -> Option<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

fn exchange<const N: usize>(port: u16, question: &[u8]) -> Option<[u8; N]> {
    let mut stream = connect(port)?;
    stream.write_all(question).ok()?;
    // All that comes is read: closing a connection with unread bytes is a reset, which servers log.
    let mut answer = [0; 4096];
    let mut filled = 0;
    while filled < N {
        match stream.read(&mut answer[filled..]).ok()? {
            0 => return None,
            more => filled += more,
        }
    }
    answer.first_chunk().copied()
}
