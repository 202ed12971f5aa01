//! Queues go away while commands are published at full speed: what no queue takes is never promised.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use common::command::UserId;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Process, System, eventually, problem};

const PARTITIONS: u16 = 4;
const UNBOUND: u16 = 1;
const DELETED: u16 = 2;

/// What has been done to the queues; requests note it when they begin and when they end.
#[derive(Default)]
struct Load {
    phase: AtomicU8,
    accepted: AtomicUsize,
    refused: AtomicUsize,
    unknown: AtomicUsize,
}

const AFTER_UNBIND: u8 = 1;
const AFTER_DELETE: u8 = 2;
const OVER: u8 = 3;

/// A command that got 202.
struct Promise {
    partition: u16,
    phases: (u8, u8),
}

impl Load {
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::SeqCst)
    }

    async fn reach(&self, counter: &AtomicUsize, more: usize) {
        let goal = counter.load(Ordering::SeqCst) + more;
        eventually("the load goes on", async || (counter.load(Ordering::SeqCst) >= goal).then_some(())).await;
    }

    async fn run(self: Arc<Self>, client: Client, url: String, number: usize) -> Vec<Promise> {
        let mut promises = Vec::new();
        let mut round = 0;
        while self.phase() != OVER {
            round += 1;
            let begun = self.phase();
            let body = json!({"email": format!("u{number}-{round}@example.org"), "name": "Unroutable"});
            let answer = client.post(&url).json(&body).send().await.unwrap();
            let phases = (begun, self.phase());
            match answer.status() {
                StatusCode::ACCEPTED => {
                    let command: Value = answer.json().await.unwrap();
                    let user: UserId = command["user_id"].as_str().unwrap().parse().unwrap();
                    promises.push(Promise { partition: user.partition(PARTITIONS), phases });
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                }
                // RabbitMQ 3.10 ends a connection whose channel meets a queue in the middle of its deletion.
                StatusCode::GATEWAY_TIMEOUT => {
                    problem(answer, 504, "outcome-unknown").await;
                    self.unknown.fetch_add(1, Ordering::SeqCst);
                }
                _ => {
                    problem(answer, 503, "broker-unavailable").await;
                    self.refused.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        promises
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_queue_takes_is_never_accepted() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", &PARTITIONS.to_string());
    // No worker: the messages stay where they are and can be counted.
    let api = system.api().await;
    let load = Arc::new(Load::default());
    let tasks: Vec<_> = (0..64)
        .map(|number| tokio::spawn(Arc::clone(&load).run(system.client.clone(), api.url("/v1/users"), number)))
        .collect();
    load.reach(&load.accepted, 500).await;

    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let queue = |partition: u16| format!("{}commands.{partition}", system.prefix);
    let (exchange, key) = (format!("{}commands", system.prefix), UNBOUND.to_string());
    channel.queue_unbind(queue(UNBOUND).into(), exchange.into(), key.into(), FieldTable::default()).await.unwrap();
    load.phase.store(AFTER_UNBIND, Ordering::SeqCst);
    load.reach(&load.refused, 200).await;
    load.reach(&load.accepted, 500).await;

    channel.queue_delete(queue(DELETED).into(), QueueDeleteOptions::default()).await.unwrap();
    load.phase.store(AFTER_DELETE, Ordering::SeqCst);
    assert!(system.declare());
    load.reach(&load.accepted, 1000).await;
    load.phase.store(OVER, Ordering::SeqCst);

    let mut promised: HashMap<u16, usize> = HashMap::new();
    for task in tasks {
        for Promise { partition, phases } in task.await.unwrap() {
            assert!(
                partition != UNBOUND || phases != (AFTER_UNBIND, AFTER_UNBIND),
                "a command was accepted that no queue took"
            );
            // What was in the queue when it was deleted went with it.
            if partition != DELETED || phases.0 == AFTER_DELETE {
                *promised.entry(partition).or_default() += 1;
            }
        }
    }
    let mut surplus = 0;
    for partition in 0..PARTITIONS {
        let promised = promised.get(&partition).copied().unwrap_or_default();
        let held = eventually("everything promised is in its queue", async || {
            let held = depth(&broker, &queue(partition)).await;
            (held >= promised).then_some(held)
        })
        .await;
        surplus += if partition == DELETED { 0 } else { held - promised };
    }
    let unknown = load.unknown.load(Ordering::SeqCst);
    assert!(surplus <= unknown, "{surplus} messages more than promised, {unknown} of unknown fate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_interrupts_its_partition_alone_until_it_is_declared() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", &PARTITIONS.to_string());
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let queue = format!("{}commands.{DELETED}", system.prefix);
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();

    let (mut applied, mut refused, mut number) = (0, 0, 0);
    while applied < 20 || refused < 5 {
        number += 1;
        let body = json!({"email": format!("u{number}@example.org"), "name": "Missing"});
        let answer = system.post(&api, "/v1/users", "wait=20", &body).await;
        match answer.status() {
            StatusCode::CREATED => applied += 1,
            StatusCode::ACCEPTED => {
                let command: Value = answer.json().await.unwrap();
                let user: UserId = command["user_id"].as_str().unwrap().parse().unwrap();
                assert_ne!(user.partition(PARTITIONS), DELETED, "accepted without a queue");
                applied += 1;
            }
            _ => {
                problem(answer, 503, "broker-unavailable").await;
                refused += 1;
            }
        }
    }
    let line = async |process: &Process, check: &str| {
        let report: Value = system.get(process, "/readyz").await.json().await.unwrap();
        report["checks"][check].as_str().unwrap().to_owned()
    };
    for (process, check, begin) in
        [(&api, "broker", "ok: connected; "), (&worker, "partitions", "failed: consuming 3 of 4 owned; partition 2: ")]
    {
        eventually("the queue is named with the remedy", async || {
            let line = line(process, check).await;
            let named =
                line.contains(&format!("{queue:?} does not exist")) && line.contains("run `rollcall broker apply`");
            (line.starts_with(begin) && named).then_some(())
        })
        .await;
    }
    assert_eq!(system.get(&api, "/readyz").await.status(), StatusCode::OK, "for the other partitions");

    assert!(system.declare());
    eventually("the API is content", async || (line(&api, "broker").await == "ok: connected").then_some(())).await;
    worker.ready().await;
    for number in 0..20 {
        system.create(&api, &format!("after{number}@example.org")).await;
    }
    let connected = [&api, &worker].map(|process| process.output().matches("connected to the broker").count());
    assert_eq!(connected, [1, 2], "no connection was lost");
}

/// How many messages a queue holds; none when there is no such queue.
async fn depth(broker: &Connection, queue: &str) -> usize {
    // Of its own, because asking for a queue that does not exist ends the channel.
    let channel: Channel = broker.create_channel().await.unwrap();
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
        Ok(queue) => queue.message_count().try_into().unwrap(),
        Err(_) => 0,
    }
}
