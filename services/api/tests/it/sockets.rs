//! What only shows in the bytes: oversize bodies, HEAD, and requests that are not HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use common::http::{ConnectionLimits, serve};
use common::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::App;

/// More than a head may take.
const PATIENCE: Duration = Duration::from_mins(2);
const TWO_MEGABYTES: usize = 2_000_000;

/// Serves an API without servers behind it on a free port.
pub(crate) async fn server() -> (SocketAddr, Shutdown) {
    server_within(ConnectionLimits::default()).await
}

/// The same within these limits.
pub(crate) async fn server_within(limits: ConnectionLimits) -> (SocketAddr, Shutdown) {
    serve_app(App::unconnected(), limits).await
}

pub(crate) async fn serve_app(app: App, limits: ConnectionLimits) -> (SocketAddr, Shutdown) {
    let shutdown = app.shutdown.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    serve(&shutdown, "http", listener, limits, app.into_endpoint());
    (address, shutdown)
}

/// One connection, read as text.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("a connection"), buffer: Vec::new() }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("to write");
    }

    /// Reads one head, and the body when its length is given.
    pub(crate) async fn answer(&mut self, with_body: bool) -> String {
        let reading = async {
            loop {
                let text = String::from_utf8_lossy(&self.buffer).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = |line: &str| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok();
                    let length: usize = head.lines().find_map(length).filter(|_| with_body).unwrap_or_default();
                    if body.len() >= length {
                        let end = head.len() + 4 + length;
                        self.buffer.drain(..end);
                        return text[..end].to_owned();
                    }
                }
                let read = self.stream.read_buf(&mut self.buffer).await.expect("to read");
                assert!(read > 0, "the connection ended after {text:?}");
            }
        };
        timeout(PATIENCE, reading).await.expect("an answer in time")
    }

    /// Waits for the end of the connection; gives what came before it.
    pub(crate) async fn end(mut self) -> String {
        // A reset is an end too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut self.buffer)).await.expect("an end in time");
        String::from_utf8_lossy(&self.buffer).into_owned()
    }
}

const HEAD: &str = "POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";

fn assert_too_large(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("application/problem+json") && answer.contains("/problems/body-too-large"), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Content-Length: {TWO_MEGABYTES}\r\nExpect: 100-continue\r\n\r\n")).await;
    let answer = client.answer(true).await;
    assert_too_large(&answer);
    assert_eq!(client.end().await, "", "no 100, and the connection is not used for what nobody sends");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_although_the_client_sends_it_all() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Content-Length: {TWO_MEGABYTES}\r\n\r\n")).await;
    // The server may close while we write.
    let _ = client.stream.write_all(&vec![b' '; TWO_MEGABYTES]).await;
    assert_too_large(&client.end().await);
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_ends_the_connection_but_hears_the_client_out() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Content-Length: {TWO_MEGABYTES}\r\n\r\n")).await;
    let answer = client.answer(true).await;
    assert_too_large(&answer);
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // A reset would fail these.
    for _ in 0..20 {
        client.write([b' '; 0x1000]).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(client.end().await, "");
}

#[tokio::test]
async fn a_small_body_of_a_refused_request_leaves_the_connection_open() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    // The second is refused before anybody looks at its body.
    for (head, status) in [(HEAD, 400), ("PUT /v1/users HTTP/1.1\r\nHost: x\r\n", 405)] {
        for framing in ["Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"] {
            client.write(format!("{head}{framing}")).await;
            let answer = client.answer(true).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(!answer.contains("connection: close"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let (address, _shutdown) = server().await;
    let [mut half, mut second] = [Client::connect(address).await, Client::connect(address).await];
    half.write("GET /healthz HTTP/1.1\r\nHost").await;
    second.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(second.answer(true).await.starts_with("HTTP/1.1 200 "));
    second.write("GET").await;
    let (half, second) = tokio::join!(half.end(), second.end());
    assert_eq!([half, second], ["", ""]);
}

/// The clock jumps whenever every task waits.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_as_long_as_it_was_announced() {
    let (address, _shutdown) = server().await;
    let [mut fresh, mut used, mut old] =
        [Client::connect(address).await, Client::connect(address).await, Client::connect(address).await];
    used.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let answer = used.answer(true).await;
    assert!(answer.contains("\r\nconnection: keep-alive\r\nkeep-alive: timeout=620\r\n"), "{answer}");
    old.write("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = old.answer(true).await;
    assert!(answer.contains("\r\nconnection: keep-alive\r\nkeep-alive: timeout=620\r\n"), "{answer}");
    sleep(Duration::from_secs(620)).await;
    for (client, version) in [(&mut fresh, "1.1"), (&mut used, "1.1"), (&mut old, "1.0")] {
        client.write(format!("GET /healthz HTTP/{version}\r\nHost: x\r\n\r\n")).await;
        assert!(client.answer(true).await.starts_with(&format!("HTTP/{version} 200 ")));
    }
    // Not announced, and closed with the answer.
    assert_eq!(old.end().await, "");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let limits = ConnectionLimits { keep_alive: Duration::from_secs(1), ..ConnectionLimits::default() };
    let (address, _shutdown) = server_within(limits).await;
    let [silent, mut used] = [Client::connect(address).await, Client::connect(address).await];
    used.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(used.answer(true).await.contains("\r\nkeep-alive: timeout=1\r\n"));
    assert_eq!((silent.end().await, used.end().await), (String::new(), String::new()));
}

#[tokio::test]
async fn a_connection_that_the_client_closes_is_not_announced_as_kept() {
    let (address, _shutdown) = server().await;
    for head in ["GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET /healthz HTTP/1.0\r\n\r\n"] {
        let mut client = Client::connect(address).await;
        client.write(head).await;
        let answer = client.end().await.to_lowercase();
        assert!(answer.contains(" 200 ") && !answer.contains("keep-alive"), "{answer}");
    }
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer() {
    let (address, _shutdown) = server().await;
    let body = r#"{"email":"ada@example.org","name":"Ada"}"#;
    let whole = format!("{HEAD}Prefer: wait=5\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let cut = format!("{HEAD}Content-Length: 50\r\n\r\n{body}");
    for (request, status) in [("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 200), (&whole, 503), (&cut, 400)] {
        for _ in 0..20 {
            let mut client = Client::connect(address).await;
            client.write(request).await;
            client.stream.shutdown().await.expect("to close one side");
            let answer = client.end().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer:?}");
        }
    }
}

/// From the method to the empty line.
#[tokio::test]
async fn a_head_has_as_many_bytes_as_are_documented() {
    const LIMIT: usize = 128 * 1024;
    let (address, _shutdown) = server().await;
    for (length, status) in [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 431), (140_000, 431), (200_000, 431)] {
        let start = "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
        let value = "x".repeat(length / 10);
        let mut head = (0..9).fold(start.to_owned(), |head, number| format!("{head}X-{number}: {value}\r\n"));
        head.push_str("X: ");
        head.push_str(&"x".repeat(length - head.len() - "\r\n\r\n".len()));
        head.push_str("\r\n\r\n");
        assert_eq!(head.len(), length);
        let mut client = Client::connect(address).await;
        // The server may close while we write.
        let _ = client.stream.write_all(head.as_bytes()).await;
        let answer = client.end().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{length}: {answer}");
        assert!(status == 200 || answer.contains("/problems/headers-too-large"), "{length}: {answer}");
    }
}

#[tokio::test]
async fn every_answer_says_what_browsers_must_not_do_with_it() {
    let (address, _shutdown) = server().await;
    let requests = [
        ("GET /healthz", "Host: x\r\n"),
        ("GET /readyz", "Host: x\r\n"),
        ("GET /metrics", "Host: x\r\n"),
        ("GET /", "Host: x\r\n"),
        ("GET /docs", "Host: x\r\n"),
        ("GET /openapi.json", "Host: x\r\n"),
        ("GET /problems", "Host: x\r\n"),
        ("GET /v1/users", "Host: x\r\n"),
        ("GET /nothing", "Host: x\r\n"),
        ("BREW /v1/users", "Host: x\r\n"),
        ("GET /healthz", ""),
        ("GET /healthz", "Host: x\r\nbroken\r\n"),
    ];
    for (start, fields) in requests {
        let mut client = Client::connect(address).await;
        client.write(format!("{start} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n")).await;
        let answer = client.end().await;
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert_eq!(field("x-content-type-options"), Some("nosniff"), "{start} {fields}: {head}");
        assert_eq!(field("cross-origin-resource-policy"), Some("same-origin"), "{start} {fields}: {head}");
        let policy = field("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'; "), "{start} {fields}: {head}");
        assert!(policy.contains("frame-ancestors 'none'"), "{start} {fields}: {head}");
        let page = matches!(start, "GET /" | "GET /docs");
        assert_eq!(page, policy.contains("script-src"), "{start} {fields}: {policy}");
    }
}

#[tokio::test]
async fn a_transfer_coding_that_is_not_taken_is_refused_by_name() {
    let (address, _shutdown) = server().await;
    for coding in
        ["gzip", "gzip, chunked", "identity, chunked", "chunked, chunked", "chunked\r\nTransfer-Encoding: chunked"]
    {
        let mut client = Client::connect(address).await;
        client.write(format!("{HEAD}Transfer-Encoding: {coding}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")).await;
        let answer = client.end().await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.contains("application/problem+json"),
            "{coding}: {answer}"
        );
        assert!(answer.contains("Transfer-Encoding") && answer.contains("chunked"), "{coding}: {answer}");
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{coding}: {answer}");
    }
}

#[tokio::test]
async fn content_is_refused_where_none_is_taken() {
    let (address, _shutdown) = server().await;
    let user = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";
    let suspend = format!("POST {user}/suspend");
    let none = ["", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"];
    let some =
        ["Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 2\r\nExpect: 100-continue\r\n"];
    for start in [format!("GET {user}"), "GET /v1/users".to_owned(), format!("DELETE {user}"), suspend] {
        let head = |framing: &str| format!("{start} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{framing}\r\n");
        for framing in none {
            let mut client = Client::connect(address).await;
            client.write(head(framing) + if framing.contains("chunked") { "0\r\n\r\n" } else { "" }).await;
            let answer = client.end().await;
            assert!(answer.starts_with("HTTP/1.1 503 "), "{start} {framing}: {answer}");
        }
        for framing in some {
            let mut client = Client::connect(address).await;
            client.write(head(framing) + if framing.contains("chunked") { "2\r\n{}\r\n0\r\n\r\n" } else { "{}" }).await;
            let answer = client.end().await;
            assert!(
                answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"field\":\"body\""),
                "{start} {framing}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn a_chunked_body_is_refused_as_soon_as_it_grows_too_large() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n")).await;
    let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
    for _ in 0..TWO_MEGABYTES / 0x1000 {
        if client.stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    assert_too_large(&client.end().await);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing_behind() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Content-Length: 50\r\n\r\n{{\"email\"")).await;
    client.stream.shutdown().await.expect("to close one side");
    let answer = client.end().await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let mut client = Client::connect(address).await;
    client.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(client.answer(true).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    for path in ["/healthz", "/docs", "/openapi.json", "/nothing", "/v1/users?limit=0"] {
        client.write(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let get = client.answer(true).await;
        client.write(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        let head = client.answer(false).await;
        let headers = |answer: &str| -> Vec<String> {
            let lines = answer.split("\r\n\r\n").next().unwrap_or_default().lines();
            lines.filter(|line| !line.starts_with("date:")).map(str::to_owned).collect()
        };
        assert_eq!(headers(&get), headers(&head), "{path}");
        assert!(client.buffer.is_empty(), "{path}: a body behind HEAD");
    }
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection_and_not_the_server() {
    let (address, _shutdown) = server().await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ] {
        let mut client = Client::connect(address).await;
        client.write(garbage).await;
        client.stream.shutdown().await.expect("to close one side");
        let answer = client.end().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{garbage:?}: {answer}");
    }
    let mut client = Client::connect(address).await;
    client.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(client.answer(true).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_body_in_many_small_pieces_is_one_body() {
    let (address, _shutdown) = server().await;
    let mut client = Client::connect(address).await;
    client.write(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n")).await;
    for byte in br#"{"email":"ada@example.org","name":"Ada"}"# {
        client.write([b"1\r\n".as_slice(), &[*byte], b"\r\n"].concat()).await;
    }
    client.write("0\r\n\r\n").await;
    let answer = client.answer(true).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("/problems/broker-unavailable"), "{answer}");
}

#[tokio::test]
async fn a_request_without_a_host_or_with_two_is_refused() {
    let (address, _shutdown) = server().await;
    for head in ["GET /healthz HTTP/1.1\r\n\r\n", "GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"] {
        let mut client = Client::connect(address).await;
        client.write(head).await;
        let answer = client.answer(true).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains("Host"), "{answer}");
    }
    let mut client = Client::connect(address).await;
    client.write("GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(client.answer(true).await.starts_with("HTTP/1.0 200 "));
}

#[tokio::test]
async fn a_crowd_that_never_finishes_its_requests_keeps_nobody_out() {
    const MOST: usize = 20;
    let (address, _shutdown) = server_within(ConnectionLimits { most: MOST, ..ConnectionLimits::default() }).await;
    let mut crowd = Vec::new();
    for number in 0..5 * MOST {
        let mut idler = Client::connect(address).await;
        // Every other one sends half a head.
        if number % 2 == 0 {
            idler.write("GET /healthz HTTP/1.1\r\nHost").await;
        }
        crowd.push(idler);
    }
    for _ in 0..3 {
        let mut client = Client::connect(address).await;
        client.write("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        // Far sooner than the deadline for a head.
        let answer = timeout(Duration::from_secs(9), client.answer(true)).await.expect("an answer in time");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    drop(crowd);
}
