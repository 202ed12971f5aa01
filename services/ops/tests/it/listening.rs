//! When an instance accepts connections, how long it keeps them, and what it does for a client that has said all it has to.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Process, System, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

async fn connected(api: &Process) -> std::io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, api.port())).await
}

/// Everything up to the end of the connection.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_api_refuses_connections_until_it_is_ready() {
    let mut system = System::prepare().await;
    let mut connection = system.database().await;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&mut connection).await.unwrap();
    system.set("LISTEN_DELAY_MS", "300000");
    let api = system.api_silent();
    eventually("it waits for the schema", async || api.output().contains("version 0 is older than").then_some(()))
        .await;
    let refused = connected(&api).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    let url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let migrated = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["migrate", "run"])
        .env("DATABASE_URL", url)
        .output()
        .await
        .unwrap();
    assert!(migrated.status.success());
    // The first connection that is accepted is served.
    let mut stream = eventually("it listens", async || connected(&api).await.ok()).await;
    stream.write_all(b"GET /v1/users HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_become_ready_listens_to_say_why() {
    let mut system = System::prepare().await;
    system.set("LISTEN_DELAY_MS", "100");
    system.set("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    let api = system.api_silent();
    let line = api.unready("database").await;
    assert!(line.contains("cannot be reached") && !line.contains("127.0.0.1"), "{line}");
    assert!(api.output().contains("127.0.0.1:1"), "the log has the address: {}", api.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_all_that_a_failed_start_reports() {
    let system = System::prepare().await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    for _ in 0..5 {
        for (role, listen, host) in [("api", "PORT", ""), ("worker", "WORKER_LISTEN", "127.0.0.1:")] {
            let address = |port: u16| format!("{host}{port}");
            let mut process = Process::start_on(port, role, listen, address, &system.environment);
            assert_eq!(process.ended().await.code(), Some(1));
            let output = process.output();
            assert!(output.contains(&format!("failed to listen on 127.0.0.1:{port}")), "{output}");
            assert_eq!(output.lines().count(), 1, "{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_an_idle_connection_is_kept_is_a_setting() {
    let mut system = System::prepare().await;
    let api = system.api().await;
    let announced = |answer: reqwest::Response| answer.headers()["keep-alive"].to_str().unwrap().to_owned();
    assert_eq!(announced(system.get(&api, "/v1/users").await), "timeout=620");
    system.set("KEEP_ALIVE_SECONDS", "1");
    let api = system.api().await;
    let mut stream = connected(&api).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nkeep-alive: timeout=1\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_sending_side_learns_what_became_of_its_write() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let created = join_all((0..20).map(async |number| {
        let body = json!({ "email": format!("half{number}@example.org"), "name": "Half" }).to_string();
        let head =
            "POST /v1/users HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=20\r\nContent-Type: application/json\r\n";
        let mut stream = connected(&api).await.unwrap();
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        rest(stream).await
    }));
    for answer in created.await {
        assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    }
    assert_eq!(system.count("SELECT count(*) FROM users").await, 20);
    assert_eq!(system.get(&api, "/readyz").await.status(), StatusCode::OK);
}
