//! A full listener: clients that hold connections without a purpose make room, and what a client reads arrives whole.

use std::net::SocketAddr;
use std::time::Duration;

use common::access::Scope;
use common::http::ConnectionLimits;
use rollcall_api::auth::settings::AuthSettings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::auth::inserted;
use crate::sockets::{Client, serve_app, server_within};
use crate::support::{App, Database};

const MOST: usize = 60;
const LIMITS: ConnectionLimits =
    ConnectionLimits { most: MOST, most_per_address: None, keep_alive: common::http::KEEP_ALIVE };
const PATIENCE: Duration = Duration::from_mins(2);

/// Holds more connections than there may be with requests whose bodies do not come, and asks for probes meanwhile.
async fn attack_with_bodies(address: SocketAddr, authorization: &str) {
    let head = "POST /v1/users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let mut attackers = Vec::new();
    for _ in 0..MOST + 10 {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("{head}{authorization}Content-Length: 100\r\n\r\n{{");
        stream.write_all(request.as_bytes()).await.expect("to write");
        attackers.push(stream);
    }
    for path in ["/healthz", "/readyz", "/healthz"] {
        let mut client = Client::connect(address).await;
        client.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let answer = client.answer(true).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") || path == "/readyz", "{answer}");
    }
    // The probes did not have to wait until the service had enough of a body.
    for stream in &attackers {
        let mut buffer = [0; 64];
        if let Ok(read) = stream.try_read(&mut buffer) {
            assert_eq!(read, 0, "{}", String::from_utf8_lossy(&buffer[..read]));
        }
    }
}

#[tokio::test]
async fn probes_are_answered_while_bodies_are_awaited() {
    let (address, _shutdown) = server_within(LIMITS).await;
    attack_with_bodies(address, "").await;
}

#[tokio::test]
async fn probes_are_answered_while_bodies_of_a_client_with_a_key_are_awaited() {
    let mut database = Database::create().await;
    let key = inserted(&mut database.conn, &[Scope::UsersWrite], [None, None]).await;
    let app = App::guarded(database.url(), AuthSettings { keys: true, tokens: None, local: None });
    let (address, _shutdown) = serve_app(app, LIMITS).await;
    attack_with_bodies(address, &format!("Authorization: Bearer {key}\r\n")).await;
}

#[tokio::test]
async fn one_address_does_not_keep_others_out() {
    let (address, _shutdown) = server_within(ConnectionLimits { most_per_address: Some(2), ..LIMITS }).await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(address).await;
        client.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        client.answer(true).await;
        idle.push(client);
    }
    let mut latest = idle.pop().expect("a connection");
    assert_eq!(idle.swap_remove(0).end().await, "", "the longest idle one of the address went");
    latest.write("GET /v1/users?limit=0 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(latest.answer(true).await.starts_with("HTTP/1.1 400 "));
}

/// Reads answers and drops them from the buffer; gives how many were whole, and what is left.
fn whole_answers(mut bytes: &[u8]) -> (usize, usize) {
    let mut whole = 0;
    while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length: usize =
            head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok()).expect("a length");
        let Some(rest) = bytes.get(end + 4 + length..) else { break };
        (bytes, whole) = (rest, whole + 1);
    }
    (whole, bytes.len())
}

#[tokio::test]
async fn answer_that_a_client_reads_arrives_whole_although_its_slot_is_needed() {
    const REQUESTS: usize = 10;
    let (address, _shutdown) = server_within(ConnectionLimits { most: 1, ..LIMITS }).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(128 * 1024).expect("a small buffer");
    let mut reader = socket.connect(address).await.expect("a connection");
    // More than the buffers between hold.
    let requests = "GET /docs HTTP/1.1\r\nHost: x\r\n\r\n".repeat(REQUESTS);
    reader.write_all(requests.as_bytes()).await.expect("to write");
    let mut read = vec![0; 64 * 1024];
    reader.read_exact(&mut read).await.expect("the first bytes");
    let newcomer = async {
        let mut answer = String::new();
        while !answer.starts_with("HTTP/1.1 400 ") {
            let mut newcomer = Client::connect(address).await;
            newcomer.write("GET /v1/users?limit=0 HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
            answer = newcomer.answer(true).await;
        }
    };
    let reading = async {
        // What the kernel has of it before a cut is no end either.
        while reader.read_buf(&mut read).await.expect("no reset") > 0 {}
    };
    let both = async { tokio::join!(newcomer, reading) };
    timeout(PATIENCE, both).await.expect("an end in time");
    let (whole, left) = whole_answers(&read);
    assert_eq!(left, 0, "a part of an answer after {whole} whole ones");
    assert!((1..REQUESTS).contains(&whole), "{whole}: it was evicted between two answers");
}
