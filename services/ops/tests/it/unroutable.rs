//! A queue is deleted while commands are published at full speed: what no queue takes is never promised.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::command::UserId;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{System, eventually, problem};

const PARTITIONS: u16 = 4;
const DELETED: u16 = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_no_queue_takes_is_never_accepted() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", &PARTITIONS.to_string());
    // No worker: the messages stay where they are and can be counted, and nobody declares the queue again.
    let api = system.api().await;
    let (deleted, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let refused = Arc::new(AtomicUsize::new(0));
    let (accepted, unknown) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..64)
        .map(|number| {
            let (client, url) = (system.client.clone(), api.url("/v1/users"));
            let (deleted, stop) = (Arc::clone(&deleted), Arc::clone(&stop));
            let (refused, accepted) = (Arc::clone(&refused), Arc::clone(&accepted));
            let unknown = Arc::clone(&unknown);
            tokio::spawn(async move {
                let mut promised = Vec::new();
                let mut round = 0;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    let too_late = deleted.load(Ordering::SeqCst);
                    let body = json!({"email": format!("u{number}-{round}@example.org"), "name": "Unroutable"});
                    let answer = client.post(&url).json(&body).send().await.unwrap();
                    if answer.status() == StatusCode::ACCEPTED {
                        let command: Value = answer.json().await.unwrap();
                        let user: UserId = command["user_id"].as_str().unwrap().parse().unwrap();
                        promised.push((user.partition(PARTITIONS), too_late));
                        accepted.fetch_add(1, Ordering::SeqCst);
                    } else if answer.status() == StatusCode::GATEWAY_TIMEOUT {
                        // RabbitMQ 3.10 ends a connection whose channel meets the queue in the middle of its deletion.
                        problem(answer, 504, "outcome-unknown").await;
                        unknown.fetch_add(1, Ordering::SeqCst);
                    } else {
                        problem(answer, 503, "broker-unavailable").await;
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                }
                promised
            })
        })
        .collect();
    let reach = async |counter: &AtomicUsize, more: usize| {
        let goal = counter.load(Ordering::SeqCst) + more;
        eventually("the load goes on", async || (counter.load(Ordering::SeqCst) >= goal).then_some(())).await;
    };
    reach(&accepted, 500).await;

    let broker = lapin::Connection::connect(&system.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let queue = |partition: u16| format!("{}commands.{partition}", system.prefix);
    channel.queue_delete(queue(DELETED).into(), QueueDeleteOptions::default()).await.unwrap();
    deleted.store(true, Ordering::SeqCst);
    reach(&refused, 200).await;
    reach(&accepted, 500).await;
    stop.store(true, Ordering::SeqCst);

    let mut promised: HashMap<u16, usize> = HashMap::new();
    for task in tasks {
        for (partition, too_late) in task.await.unwrap() {
            assert!(!(too_late && partition == DELETED), "a command was accepted that no queue took");
            *promised.entry(partition).or_default() += 1;
        }
    }
    let mut surplus = 0;
    for partition in (0..PARTITIONS).filter(|partition| *partition != DELETED) {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let held = eventually("the count settles", async || {
            let held = channel.queue_declare(queue(partition).into(), options, FieldTable::default()).await.unwrap();
            let held = usize::try_from(held.message_count()).unwrap();
            (held >= promised[&partition]).then_some(held)
        })
        .await;
        surplus += held - promised[&partition];
    }
    let unknown = unknown.load(Ordering::SeqCst);
    assert!(surplus <= unknown, "{surplus} messages more than promised, {unknown} of unknown fate");
}
