//! A stop, as clients on open connections see it.

use std::io::{Read, Write};
use std::net::{Shutdown as Half, TcpStream as BlockingStream};
use std::time::Duration;

use common::shutdown::{Graces, Phase};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sockets::{Client, server};

const PING: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const GRACES: Graces = Graces { drain: Duration::from_secs(5), finish: Duration::from_secs(30) };

fn says_close(answer: &str) -> bool {
    answer.to_lowercase().contains("\r\nconnection: close\r\n")
}

#[tokio::test]
async fn while_it_drains_everybody_is_served_and_asked_to_leave() {
    let (address, shutdown) = server().await;
    let mut known = Client::connect(address).await;
    known.write(PING).await;
    assert!(!says_close(&known.answer(true).await), "nobody leaves while it runs");
    let clients = async {
        shutdown.reached(Phase::Draining).await;
        known.write(PING).await;
        let mut fresh = Client::connect(address).await;
        fresh.write("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let (known_answer, fresh_answer) = (known.answer(true).await, fresh.answer(true).await);
        assert_eq!(shutdown.phase(), Phase::Draining, "both were served within the drain delay");
        assert!(known_answer.starts_with("HTTP/1.1 200 ") && says_close(&known_answer), "{known_answer}");
        assert!(fresh_answer.starts_with("HTTP/1.1 503 ") && says_close(&fresh_answer), "{fresh_answer}");
        assert_eq!((known.end().await, fresh.end().await), (String::new(), String::new()));
    };
    let (stopped, ()) = tokio::join!(shutdown.stop(GRACES), clients);
    stopped.expect("a clean stop");
}

#[tokio::test]
async fn a_request_in_flight_is_finished_although_the_listener_is_closed() {
    let (address, shutdown) = server().await;
    let body = r#"{"email":"ada@example.org","name":"Ada"}"#;
    let mut client = Client::connect(address).await;
    let head = "POST /v1/users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n";
    client.write(format!("{head}Content-Length: {}\r\n\r\n", body.len())).await;
    // The server asks for the body only from within the operation.
    assert!(client.answer(false).await.starts_with("HTTP/1.1 100 "));
    let finishing = async {
        shutdown.reached(Phase::Stopping).await;
        // The listener closes a moment after the phase begins.
        let refusing = async { while TcpStream::connect(address).await.is_ok() {} };
        timeout(GRACES.finish, refusing).await.expect("a closed listener");
        client.write(body).await;
        let answer = client.answer(true).await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("/problems/broker-unavailable"), "{answer}");
        assert!(says_close(&answer), "{answer}");
        assert_eq!(client.end().await, "");
    };
    let (stopped, ()) = tokio::join!(shutdown.stop(GRACES), finishing);
    stopped.expect("a clean stop");
}

#[tokio::test]
async fn connections_that_wait_for_nothing_are_closed() {
    let (address, shutdown) = server().await;
    let mut idle = Client::connect(address).await;
    idle.write(PING).await;
    idle.answer(true).await;
    let silent = Client::connect(address).await;
    // Served after it, so the silent one was accepted.
    let mut witness = Client::connect(address).await;
    witness.write(PING).await;
    witness.answer(true).await;
    let graces = Graces { drain: Duration::ZERO, finish: Duration::from_secs(30) };
    let ends = async { (idle.end().await, silent.end().await, witness.end().await) };
    let (stopped, ends) = tokio::join!(shutdown.stop(graces), ends);
    assert_eq!(ends, (String::new(), String::new(), String::new()));
    stopped.expect("a clean stop");
}

/// Nothing is accepted before the stop: the server's tasks have this thread only.
#[tokio::test]
async fn connections_in_the_listeners_queue_are_served() {
    let (address, shutdown) = server().await;
    let queued: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = BlockingStream::connect(address).expect("a connection");
            stream.write_all(PING.as_bytes()).expect("to write");
            stream
        })
        .collect();
    let graces = Graces { drain: Duration::ZERO, finish: Duration::from_secs(5) };
    shutdown.stop(graces).await.expect("a clean stop");
    for mut stream in queued {
        stream.shutdown(Half::Write).expect("to close one side");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && says_close(&answer), "{answer:?}");
    }
}
