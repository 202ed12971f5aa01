//! The supervised connection.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use rollcall_common::broker::{LinkState, supervise};
use rollcall_common::config::amqp_url;
use rollcall_common::health::{Health, ReadyWhen};
use rollcall_common::shutdown::{Shutdown, StopError};

use crate::support::{Deployment, GRACES, eventually, soon};

fn up(state: &LinkState) -> bool {
    matches!(state, LinkState::Up { .. })
}

#[tokio::test]
async fn a_link_declares_the_topology_and_closes_with_the_process() {
    let deployment = Deployment::new(2);
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings);
    assert_eq!(health.report().checks["broker"], "failed: not checked yet");
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, generation } = state else { panic!("{state:?}") };
    assert_eq!(generation, 1);
    eventually("ready", async || health.report().ready).await;

    let channel = connection.create_channel().await.expect("a channel");
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = deployment.topology.partition_queue(1);
    channel.queue_declare(queue.into(), look, FieldTable::default()).await.expect("a queue");
    shutdown.stop(GRACES).await.expect("a good end");
    assert!(!connection.status().connected());
}

#[tokio::test]
async fn a_connection_that_ends_is_replaced_by_one_of_the_next_generation() {
    let deployment = Deployment::new(1);
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &deployment.settings);
    let state = soon("a connection", link.wait_for(up)).await.expect("a link").clone();
    let LinkState::Up { connection, .. } = state else { panic!("{state:?}") };
    connection.close(200, "on purpose".into()).await.expect("an end");
    let next = |state: &LinkState| matches!(state, LinkState::Up { generation: 2, .. });
    soon("another connection", link.wait_for(next)).await.expect("a link");
    eventually("ready again", async || health.report().ready).await;
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_queue_with_other_arguments_takes_the_process_down_with_its_name() {
    let deployment = Deployment::new(1);
    let connection = deployment.connect().await;
    let channel = connection.create_channel().await.expect("a channel");
    let queue = deployment.topology.partition_queue(0);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.expect("a classic queue");

    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let _link = supervise(&shutdown, &health, "broker", &deployment.settings);
    let end = soon("an end by itself", shutdown.run(GRACES)).await.expect_err("a failure");
    assert!(matches!(end, StopError::TaskFailed(_)));
    assert!(end.to_string().contains(&queue), "{end}");
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_is_down_without_its_password() {
    let deployment = Deployment::new(1);
    let mut settings = deployment.settings.clone();
    settings.url = amqp_url("amqp://u:hunter2@127.0.0.1:1/%2f").expect("a URL");
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &settings);
    let tried = |state: &LinkState| matches!(state, LinkState::Down(reason) if reason != "not connected yet");
    let state = soon("an attempt", link.wait_for(tried)).await.expect("a link").clone();
    let LinkState::Down(reason) = state else { panic!("{state:?}") };
    assert!(reason.starts_with("failed to connect to the broker at 127.0.0.1:1: "), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
    assert!(!health.report().ready);
    shutdown.stop(GRACES).await.expect("a stop does not wait for the next attempt");
}
