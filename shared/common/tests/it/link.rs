//! The supervised connection.

use std::net::SocketAddr;
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use rollcall_common::broker::{BrokerUser, LinkState, supervise};
use rollcall_common::config::amqp_url;
use rollcall_common::health::{Health, ReadyWhen};
use rollcall_common::shutdown::Shutdown;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::{Deployment, GRACES, eventually, soon, stack};

fn up(state: &LinkState) -> bool {
    matches!(state, LinkState::Up { .. })
}

#[tokio::test]
async fn a_link_waits_for_the_topology_declares_nothing_and_closes_with_the_process() {
    let deployment = Deployment::new(2);
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings, (BrokerUser::Api, None));
    assert_eq!(health.report().checks["broker"], "failed: not checked yet");
    let exchange = deployment.topology.commands_exchange();
    let remedy = format!("the exchange {exchange:?} does not exist; run `rollcall broker apply`");
    let missing = |state: &LinkState| matches!(state, LinkState::Down(reason) if reason.contains(&remedy));
    soon("the remedy", link.wait_for(missing)).await.expect("a link");
    let deployment = deployment.declared().await;
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, generation, .. } = state else { panic!("{state:?}") };
    assert_eq!(generation, 1);
    assert!(connection.configuration().frame_max() < 32 * 1024, "the library's buffers grow with it");
    eventually("ready", async || health.report().ready).await;
    shutdown.stop(GRACES).await.expect("a good end");
    assert!(!connection.status().connected());
    drop(deployment);
}

#[tokio::test]
async fn a_connection_that_ends_is_replaced_by_one_of_the_next_generation() {
    let deployment = Deployment::new(1).declared().await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings, (BrokerUser::Api, None));
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, .. } = state else { panic!("{state:?}") };
    // What is under way on it can make the answer an error.
    let _ = connection.close(200, "on purpose".into()).await;
    let next = |state: &LinkState| matches!(state, LinkState::Up { generation: 2, .. });
    soon("another connection", link.wait_for(next)).await.expect("a link");
    eventually("ready again", async || health.report().ready).await;
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_is_down_without_its_password() {
    let deployment = Deployment::new(1);
    let mut settings = deployment.settings.clone();
    settings.url = amqp_url("amqp://u:hunter2@127.0.0.1:1/%2f").expect("a URL");
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
    let tried = |state: &LinkState| matches!(state, LinkState::Down(reason) if reason != "not connected yet");
    let state = soon("an attempt", link.wait_for(tried)).await.expect("a link").clone();
    let LinkState::Down(reason) = state else { panic!("{state:?}") };
    assert!(reason.starts_with("failed to connect to the broker at 127.0.0.1:1: "), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
    assert!(!health.report().ready);
    shutdown.stop(GRACES).await.expect("a stop does not wait for the next attempt");
}

#[tokio::test]
async fn a_channel_that_is_refused_leaves_the_connection_alone() {
    let deployment = Deployment::new(1).declared().await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings, (BrokerUser::Api, None));
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, reports, .. } = state else { panic!("{state:?}") };
    for _ in 0..3 {
        let channel = connection.create_channel().await.expect("a channel");
        let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = deployment.name("nowhere");
        channel.queue_declare(queue.into(), look, FieldTable::default()).await.expect_err("no such queue");
        let channel = connection.create_channel().await.expect("a channel");
        let queue = deployment.topology.partition_queue(0);
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect_err("other arguments");
    }
    // Shown only after the link has seen the errors.
    reports.auxiliary("a part", Some("does not work".into()));
    eventually("shown", async || health.report().checks["broker"] == "ok: connected; a part: does not work").await;
    assert!(health.report().ready);
    assert!(matches!(&*link.borrow(), LinkState::Up { generation: 1, .. }));
    assert!(connection.status().connected());
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn what_costs_a_part_only_is_named_until_it_is_declared_and_the_connection_stays() {
    let deployment = Deployment::new(2).declared().await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings, (BrokerUser::Api, None));
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, .. } = state else { panic!("{state:?}") };
    let beside = deployment.connect().await.create_channel().await.expect("a channel");
    let queue = deployment.topology.partition_queue(1);
    beside.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.expect("deleted");
    let channel = connection.create_channel().await.expect("a channel");
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), look, FieldTable::default()).await.expect_err("it is missing");
    let shown = || health.report().checks["broker"].clone();
    let named = format!("ok: connected; 1 partition(s) accept nothing: the queue {queue:?} does not exist");
    eventually("the queue is named", async || shown().starts_with(&named)).await;
    let exchange = deployment.topology.replies_exchange();
    beside.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.expect("deleted");
    let channel = connection.create_channel().await.expect("a channel");
    let look = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let looking = channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Direct, look, FieldTable::default());
    looking.await.expect_err("it is missing");
    let hints = format!("; replies: the exchange {exchange:?} does not exist");
    eventually("the exchange is named", async || shown().contains(&hints)).await;
    assert!(health.report().ready);

    // A connection that finds both missing is up, too.
    // What is under way on it can make the answer an error.
    let _ = connection.close(200, "on purpose".into()).await;
    let next = |state: &LinkState| matches!(state, LinkState::Up { generation: 2, .. });
    soon("another connection", link.wait_for(next)).await.expect("a link");
    eventually("both are named", async || shown().starts_with(&named) && shown().contains(&hints)).await;
    let deployment = deployment.declared().await;
    eventually("nothing is missing", async || shown() == "ok: connected").await;
    assert!(next(&link.borrow()), "over the same connection");
    shutdown.stop(GRACES).await.expect("a good end");
    drop(deployment);
}

/// A listener that accepts nobody: its queue is full, and further SYNs are dropped.
async fn silent(address: [u8; 4]) -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((address, 0).into()).expect("an address");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(stream);
    }
    (listener, queued, address)
}

#[tokio::test]
async fn a_host_that_never_answers_is_passed_over() {
    let deployment = Deployment::new(1).declared().await;
    let (_listener, _queued, silent) = silent([127, 0, 0, 9]).await;
    let url = stack().rabbitmq.url();
    let several = url.replacen("@127.0.0.1:", &format!("@{silent},127.0.0.1:1,127.0.0.1:"), 1);
    let mut settings = deployment.settings.clone();
    settings.url = amqp_url(&several).expect("a URL");
    // In random order: some of these have it first.
    for _ in 0..4 {
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::All, shutdown.clone());
        let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
        let tried = |state: &LinkState| !matches!(state, LinkState::Down(reason) if reason == "not connected yet");
        let state = soon("an attempt", link.wait_for(tried)).await.expect("a link").clone();
        assert!(up(&state), "with the first attempt: {state:?}");
        shutdown.stop(GRACES).await.expect("a good end");
    }
    let password = url::Url::parse(url).expect("a URL").password().expect("a password").to_owned();
    settings.url = amqp_url(&format!("amqp://rollcall:{password}@{silent},127.0.0.1:1/")).expect("a URL");
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
    let tried = |state: &LinkState| matches!(state, LinkState::Down(reason) if reason != "not connected yet");
    let state = soon("an attempt", link.wait_for(tried)).await.expect("a link").clone();
    let LinkState::Down(reason) = state else { panic!("{state:?}") };
    for part in [&format!("{silent}: no connection within 2s") as &str, "127.0.0.1:1: ", "efused"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert!(!reason.contains(&password), "{reason}");
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_broker_that_accepts_and_says_nothing_leaves_no_thread_behind() {
    let deployment = Deployment::new(1);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener");
    let mut settings = deployment.settings.clone();
    let address = listener.local_addr().expect("an address");
    settings.url = amqp_url(&format!("amqp://u:p@{address}/")).expect("a URL");
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let _link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Api, None));
    let (mut abandoned, _) = soon("an attempt", listener.accept()).await.expect("a connection");
    let mut greeting = [0; 8];
    soon("a greeting", abandoned.read_exact(&mut greeting)).await.expect("the protocol header");
    assert_eq!(&greeting, b"AMQP\x00\x00\x09\x01");
    shutdown.stop(GRACES).await.expect("a stop does not wait for the answer");
    // The library's thread holds the connection for as long as it lives.
    let rest = soon("the end of the connection", abandoned.read(&mut greeting)).await.expect("an end");
    assert_eq!(rest, 0);
}
