//! Exchanges and queues: declared again, and in the way.

use std::net::SocketAddr;

use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use rollcall_common::broker::{BrokerUser, TopologyError, set_up};
use rollcall_common::config::amqp_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Deployment, soon, stack};

#[tokio::test]
async fn declaring_again_changes_nothing_and_says_so() {
    let deployment = Deployment::new(2);
    let first = set_up(&deployment.settings).await.expect("a topology");
    assert!(first.iter().all(|object| object.created), "{first:?}");
    let names: Vec<_> = first.iter().map(|object| (object.kind, object.name.clone())).collect();
    let expected = [
        ("exchange", "commands"),
        ("exchange", "events"),
        ("exchange", "replies"),
        ("exchange", "dead-letters"),
        ("queue", "dead-letters"),
        ("queue", "commands.0"),
        ("queue", "commands.1"),
    ];
    assert_eq!(names, expected.map(|(kind, name)| (kind, deployment.name(name))));
    let second = set_up(&deployment.settings).await.expect("a topology");
    assert!(second.iter().all(|object| !object.created), "{second:?}");
    let connection = deployment.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    channel.queue_delete(deployment.name("commands.1").into(), QueueDeleteOptions::default()).await.expect("deleted");
    let third = set_up(&deployment.settings).await.expect("a topology");
    let created: Vec<_> = third.iter().filter(|object| object.created).map(|object| object.name.clone()).collect();
    assert_eq!(created, [deployment.name("commands.1")]);
    for user in BrokerUser::ALL {
        deployment.topology.check(&connection, user).await.expect("everything is there");
    }
}

/// Forwards connections to a broker; of the first one the answers end with that to the declaration of an exchange.
async fn forgetful(broker: String) -> SocketAddr {
    const DECLARED: &[u8] = &[0, 40, 0, 11];
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut forgets = true;
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&broker).await.expect("a broker");
            let forgetful = std::mem::take(&mut forgets);
            tokio::spawn(async move {
                let (mut asked, mut answers) = client.split();
                let (mut answering, mut asking) = server.split();
                let answer = async {
                    let mut octets = [0; 4096];
                    while let Ok(count @ 1..) = answering.read(&mut octets).await {
                        if forgetful && octets[..count].windows(DECLARED.len()).any(|part| part == DECLARED) {
                            return std::future::pending().await;
                        }
                        answers.write_all(&octets[..count]).await.expect("a client");
                    }
                };
                tokio::select! {
                    () = answer => {}
                    _ = tokio::io::copy(&mut asked, &mut asking) => {}
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_is_never_answered_costs_an_attempt_and_not_the_setup() {
    let deployment = Deployment::new(1);
    let mut settings = deployment.settings.clone();
    let mut url = url::Url::parse(stack().rabbitmq.url()).expect("a URL");
    let broker = format!("127.0.0.1:{}", url.port().expect("a port"));
    url.set_port(Some(forgetful(broker).await.port())).expect("a port");
    settings.url = amqp_url(url.as_str()).expect("a URL");
    let declared = soon("the second attempt", set_up(&settings)).await.expect("a topology");
    assert_eq!(declared.len(), 6, "{declared:?}");
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let deployment = Deployment::new(2);
    let connection = deployment.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    let queue = deployment.name("commands.1");
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.expect("a classic queue");

    let fault = deployment.topology.declare(&connection).await.expect_err("a mismatch");
    assert!(matches!(&fault, TopologyError::Mismatch { kind: "queue", name, .. } if *name == queue), "{fault}");
    let text = fault.to_string();
    for part in [&format!("rabbitmqctl delete_queue {queue}"), "BROKER_PREFIX", "inequivalent arg"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[tokio::test]
async fn an_exchange_of_another_kind_is_named() {
    let deployment = Deployment::new(1);
    let connection = deployment.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    let exchange = deployment.name("commands");
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        channel.exchange_declare(exchange.as_str().into(), ExchangeKind::Topic, options, FieldTable::default());
    declared.await.expect("a topic exchange");

    let fault = deployment.topology.declare(&connection).await.expect_err("a mismatch");
    assert!(matches!(&fault, TopologyError::Mismatch { kind: "exchange", name, .. } if *name == exchange), "{fault}");
    assert!(!fault.to_string().contains("delete_queue"), "the mend of a queue: {fault}");
}

#[tokio::test]
async fn a_connection_that_is_closed_is_no_mismatch() {
    let deployment = Deployment::new(1);
    let connection = deployment.connect().await;
    connection.close(200, "done".into()).await.expect("an end");
    let fault = deployment.topology.declare(&connection).await.expect_err("no connection");
    assert!(matches!(fault, TopologyError::Broker { .. }), "{fault}");
}

#[tokio::test]
async fn every_argument_of_a_partition_is_in_force() {
    let deployment = Deployment::new(1);
    deployment.topology.declare(&deployment.connect().await).await.expect("a topology");
    let listing = stack().rabbitmq.ctl(&["-q", "list_queues", "name", "durable", "arguments"]).expect("a listing");
    let queue = deployment.name("commands.0");
    let line = listing.lines().find(|line| line.starts_with(&queue)).expect("the queue").to_owned();
    let dead_letters = deployment.name("dead-letters");
    let collected = listing.lines().find(|line| line.starts_with(&dead_letters)).expect("the queue").to_owned();
    assert!(collected.contains(r#""x-queue-leader-locator","balanced""#), "{collected}");
    for part in [
        "true",
        r#""x-queue-type","quorum""#,
        r#""x-single-active-consumer",true"#,
        r#""x-delivery-limit",1000"#,
        &format!(r#""x-dead-letter-exchange","{dead_letters}""#),
        r#""x-dead-letter-strategy","at-least-once""#,
        r#""x-overflow","reject-publish""#,
        r#""x-max-length",100000"#,
        r#""x-queue-leader-locator","balanced""#,
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}
