//! A policy of the broker lets accepted commands expire while no worker is there. What is left of one has to be said in the
//! end, by its status.

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::command::DEFAULT_PARTITIONS;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use super::drained;
use crate::torture::load::Load;
use crate::torture::schedule::{Expiry, Schedule};
use crate::torture::system::System;
use crate::torture::verdict::Broken;

/// Few enough that no worker takes their dead letters for a flood.
const COMMANDS: usize = 6;
const POLICY: &str = "torture";
const TTL: &str = r#"{"message-ttl":200}"#;
/// For everything that was sent before to be decided.
const DRAINED: Duration = Duration::from_mins(1);
/// For the broker to let them expire.
const EXPIRED: Duration = Duration::from_secs(20);
/// For the workers to collect them as dead letters.
const COLLECTED: Duration = Duration::from_secs(20);

impl Expiry {
    /// Queues that the policy is for. A subscriber's are the subscriber's affair.
    fn pattern(self) -> &'static str {
        match self {
            Self::Everywhere => "^(?!torture-subscriber)",
            Self::Partitions => r"^commands\.",
        }
    }
}

impl Schedule {
    pub(super) async fn expire(
        &mut self,
        system: &mut System,
        load: &Load,
        expiry: Expiry,
    ) -> anyhow::Result<&'static str> {
        system.heal().await?;
        let broker = Connection::connect(system.stack.rabbitmq.url(), ConnectionProperties::default()).await?;
        let channel = broker.create_channel().await?;
        let mut database = system.database().await?;
        let quiet = load.quiet().await;
        for partition in 0..DEFAULT_PARTITIONS {
            let promised = load.promised(partition);
            if !drained(&channel, &mut database, &queue(partition), &promised, DRAINED).await? {
                return Ok("nothing expired: a partition was not drained");
            }
        }
        let stack = Arc::clone(&system.stack);
        for worker in &mut system.workers {
            worker.terminate(&stack).await?;
        }
        control(system, &["-q", "set_policy", "--apply-to", "queues", POLICY, expiry.pattern(), TTL]).await?;
        let ids = create(&system.bases()).await?;
        // The workers would collect what is there.
        let also = (expiry == Expiry::Everywhere).then_some("dead-letters");
        empty(&channel, also).await?;
        control(system, &["-q", "clear_policy", POLICY]).await?;
        system.heal().await?;
        drop(quiet);
        broker.close(200, "expired".into()).await?;
        if expiry == Expiry::Partitions {
            let early = collected(&system.bases(), &ids).await?;
            self.findings.extend(early.map(|found| (Broken::Wrong, found)));
        }
        self.expired.extend(ids.into_iter().map(|id| (id, expiry)));
        Ok(match expiry {
            Expiry::Everywhere => "commands expired",
            Expiry::Partitions => "commands expired to dead letters",
        })
    }
}

fn queue(partition: u16) -> String {
    format!("commands.{partition}")
}

async fn control(system: &System, arguments: &[&'static str]) -> anyhow::Result<()> {
    let (stack, arguments) = (Arc::clone(&system.stack), arguments.to_vec());
    tokio::task::spawn_blocking(move || stack.rabbitmq.ctl(&arguments)).await??;
    Ok(())
}

/// Gives those that were accepted.
async fn create(bases: &[String]) -> anyhow::Result<Vec<Uuid>> {
    let http = Client::builder().no_proxy().build()?;
    let mut ids = Vec::with_capacity(COMMANDS);
    for base in bases.iter().cycle().take(COMMANDS) {
        let email = format!("expired-{}@torture.example", Uuid::now_v7());
        let create = http.post(format!("{base}/v1/users")).json(&json!({ "email": email, "name": "Expired" }));
        let answer = create.send().await?;
        if answer.status() == StatusCode::ACCEPTED {
            ids.extend(answer.json::<Value>().await?["id"].as_str().and_then(|id| id.parse::<Uuid>().ok()));
        }
    }
    Ok(ids)
}

/// Waits until nothing is in the partitions' queues and in another one; what stays there nevertheless is applied later.
async fn empty(channel: &Channel, also: Option<&str>) -> anyhow::Result<()> {
    let deadline = Instant::now() + EXPIRED;
    let mut left = 1;
    while left > 0 && Instant::now() < deadline {
        left = 0;
        for queue in (0..DEFAULT_PARTITIONS).map(queue).chain(also.map(str::to_owned)) {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            left += channel.queue_declare(queue.into(), options, FieldTable::default()).await?.message_count();
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Waits until each is a dead letter; until then, and from then on, nobody may say that it vanished.
async fn collected(bases: &[String], ids: &[Uuid]) -> anyhow::Result<Option<String>> {
    let http = Client::builder().no_proxy().build()?;
    let deadline = Instant::now() + COLLECTED;
    let mut left = ids.to_vec();
    while !left.is_empty() && Instant::now() < deadline {
        let mut waiting = Vec::new();
        for (id, base) in left.into_iter().zip(bases.iter().cycle()) {
            match status(&http, base, id).await.as_deref() {
                Some("unknown") => {
                    return Ok(Some(format!(
                        "command {id} became a dead letter, and its status says that it vanished"
                    )));
                }
                Some("pending") | None => waiting.push(id),
                Some(_) => {}
            }
        }
        left = waiting;
        sleep(Duration::from_millis(200)).await;
    }
    Ok(None)
}

/// As the API says it.
pub(in crate::torture) async fn status(http: &Client, base: &str, id: Uuid) -> Option<String> {
    let answer = http.get(format!("{base}/v1/commands/{id}")).send().await.ok()?;
    answer.json::<Value>().await.ok()?["status"].as_str().map(str::to_owned)
}
