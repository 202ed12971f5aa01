//! Free ports on the loopback address.
//!
//! Why not bind to port 0? That gives a port of the ephemeral range. While a server there is stopped, a client
//! that reconnects in a loop can be given the very same port as its own and connect to itself, and then the server
//! can never come back. So ports are drawn from below that range.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt;

const LOWEST: u16 = 16_000;
/// Where Linux begins to hand out ephemeral ports unless told otherwise; other systems begin higher.
const USUAL_EPHEMERAL: u16 = 32_768;
/// RabbitMQ's own distribution and rabbitmqctl's ports on a machine with an ordinary installation.
const AVOIDED: std::ops::RangeInclusive<u16> = 25_600..=25_700;

/// The wanted ports while they are free, else others; never one twice.
pub(crate) fn choose<const N: usize>(wanted: [Option<u16>; N]) -> [u16; N] {
    let mut chosen = [0; N];
    for (index, wish) in wanted.into_iter().enumerate() {
        chosen[index] = match wish {
            Some(port) if !chosen.contains(&port) && free(port) => port,
            _ => draw(&chosen),
        };
    }
    chosen
}

fn draw(taken: &[u16]) -> u16 {
    let highest = ephemeral_begin();
    for _ in 0..200 {
        if highest <= LOWEST + 1_000 {
            break;
        }
        let port = rand::rng().random_range(LOWEST..highest);
        if !AVOIDED.contains(&port) && !taken.contains(&port) && free(port) {
            return port;
        }
    }
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    any.map_or(LOWEST, |address| address.port())
}

fn free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn ephemeral_begin() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let begin = range.split_whitespace().next().and_then(|begin| begin.parse().ok());
    begin.unwrap_or(USUAL_EPHEMERAL).min(USUAL_EPHEMERAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_granted_while_the_port_is_free() {
        let [first, second] = choose([None, None]);
        assert_ne!(first, second);
        assert_eq!(choose([Some(first)]), [first]);
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
        let [other, another] = choose([Some(first), Some(first)]);
        assert!(other != first && another != first && other != another);
    }
}
