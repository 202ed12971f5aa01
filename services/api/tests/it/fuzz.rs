//! Bytes that no client library would send: whatever comes back is an answer of ours, and every error a problem document.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rollcall_api::problem::ProblemKind;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::sockets::server;

const CASES: u64 = 3000;
const AT_ONCE: usize = 50;
/// Twice the time that a head may take.
const PATIENCE: Duration = Duration::from_mins(2);

const METHODS: &[&str] = &[
    "GET", "POST", "PATCH", "DELETE", "PUT", "OPTIONS", "TRACE", "CONNECT", "get", "G ET", "", "POST\t", "\u{e9}",
    "PRI", "X", "%47ET",
];
const TARGETS: &[&str] = &[
    "/",
    "/v1/users",
    "/v1/users/",
    "//v1//users",
    "/v1/users/%00",
    "/v1/users/%",
    "/v1/users/%zz",
    "/v1/users/%ff%fe",
    "/v1/users/..%2f..%2fetc",
    "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057",
    "/v1/users?limit=%",
    "/v1/users?limit=1&limit=x",
    "/v1/users?cursor=%00",
    "/v1/users?email=%ff",
    "/v1/commands/%20",
    "*",
    "http://other/v1/users",
    "other:443",
    "",
    "/\u{e9}",
    "/ /",
    "/v1/users#part",
    "/problems/%2e%2e",
    "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057/suspend/",
    "?",
    "/..",
];
const VERSIONS: &[&str] =
    &["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "http/1.1", ""];
const FIELDS: &[&str] = &[
    "Host: x",
    "Host: x",
    "Host: x",
    "Host: x\r\nHost: y",
    "",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Content-Type: application/json",
    "Content-Type: application/json; charset=utf-16",
    "Content-Type: \u{e9}",
    "Expect: 100-continue",
    "Expect: 200-ok",
    "Connection: close",
    "Connection: upgrade\r\nUpgrade: websocket",
    "Prefer: wait=x",
    "Prefer: wait=0",
    "If-Match: \"",
    "If-Match: \u{0}",
    "Idempotency-Key: \u{7f}",
    "Range: bytes=0-1",
    " folded: line",
    "no colon",
    ": no name",
    "Cookie: a=b",
    "Accept: application/xml",
    "Accept-Encoding: gzip",
];
const BODIES: &[&str] = &[
    "",
    "{}",
    "hello",
    "{\"email\":\"a@b.example\",\"name\":\"A\"}",
    "5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhel",
    "zz\r\n",
    "ffffffffffffffffff\r\n",
    "0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n",
    "\u{0}\u{1}\u{2}",
    "[",
    "\"\\ud800\"",
];

fn pick<'t>(random: &mut StdRng, among: &[&'t str]) -> &'t str {
    among.choose(random).copied().unwrap_or_default()
}

fn request(random: &mut StdRng) -> Vec<u8> {
    let mut text = format!("{} {} {}\r\n", pick(random, METHODS), pick(random, TARGETS), pick(random, VERSIONS));
    for _ in 0..random.random_range(0..5) {
        text.push_str(pick(random, FIELDS));
        text.push_str("\r\n");
    }
    if random.random_bool(0.02) {
        text.push_str("X: ");
        text.push_str(&"x".repeat(random.random_range(60_000..150_000)));
        text.push_str("\r\n");
    }
    if random.random_bool(0.02) {
        text.push_str(&"X: y\r\n".repeat(200));
    }
    text.push_str("\r\n");
    text.push_str(pick(random, BODIES));
    let mut bytes = text.into_bytes();
    if random.random_bool(0.3) {
        let position = random.random_range(0..bytes.len());
        bytes[position] = random.random();
    }
    if random.random_bool(0.1) {
        bytes.truncate(random.random_range(0..bytes.len()));
    }
    bytes
}

/// Several requests on one connection, and all bytes that came back.
async fn exchange(address: std::net::SocketAddr, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // The server may close while we write.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    let mut received = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut received)).await;
    assert!(ended.is_ok(), "the connection does not end after {:?}", String::from_utf8_lossy(sent));
    received
}

/// Reads every answer; `HEAD` is never asked, so each has the body that it announces.
fn check(sent: &[u8], received: &[u8]) {
    let context =
        || format!("sent {:?}\nreceived {:?}", String::from_utf8_lossy(sent), String::from_utf8_lossy(received));
    let mut rest = received;
    while !rest.is_empty() {
        let end = rest
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {}", context()));
        let head =
            std::str::from_utf8(&rest[..end]).unwrap_or_else(|_| panic!("a head that is no text: {}", context()));
        let status: u16 =
            head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{}", context()));
        let field = |name: &str| {
            head.lines()
                .find_map(|line| line.split_once(": ").filter(|(known, _)| known.eq_ignore_ascii_case(name)))
                .map(|(_, value)| value)
        };
        let length: usize = field("content-length").map_or(0, |length| length.parse().expect("a length"));
        let body = rest.get(end + 4..end + 4 + length).unwrap_or_else(|| panic!("a body that is cut: {}", context()));
        if status >= 400 {
            assert_eq!(field("content-type"), Some("application/problem+json"), "{}", context());
            let document: Value = serde_json::from_slice(body).unwrap_or_else(|_| panic!("{}", context()));
            let kind = ProblemKind::ALL.iter().find(|kind| document["type"] == kind.uri());
            let kind = kind.unwrap_or_else(|| panic!("a problem that is not listed: {}", context()));
            assert_eq!((kind.status(), document["status"].as_u64()), (status, Some(status.into())), "{}", context());
            assert!(status < 500 || status == 503, "a fault of the service: {}", context());
        }
        rest = &rest[end + 4 + length..];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_that_raw_bytes_can_cause_is_a_problem_document() {
    let (address, _shutdown) = server().await;
    let mut running = JoinSet::new();
    for seed in 0..CASES {
        running.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let sent: Vec<u8> = (0..random.random_range(1..4)).flat_map(|_| request(&mut random)).collect();
            check(&sent, &exchange(address, &sent).await);
        });
        if running.len() >= AT_ONCE {
            running.join_next().await.expect("a case").expect("no panic");
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no panic");
    }
}
