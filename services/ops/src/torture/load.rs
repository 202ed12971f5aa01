//! Clients that remember what they were promised.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::command::{DEFAULT_PARTITIONS, UserId};
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Commands that can be sent once more; the oldest fall out.
const REMEMBERED: usize = 2000;
/// Users of a client; when one is through its life, the next one begins.
const LIFE: u32 = 40;

/// A command that got 202, or was decided while the client waited.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) id: Uuid,
    /// The version that the command was conditional on.
    pub(crate) if_match: Option<i64>,
}

/// One user's promises, in the order in which they were given: each was asked for after the one before was accepted.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) user: Uuid,
    pub(crate) promises: Vec<Promise>,
}

/// What all clients were told.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    pub(crate) lives: Vec<Life>,
    /// Answers that no fault explains.
    pub(crate) wrong: Vec<String>,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
}

/// The clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<Promises>,
}

struct Shared {
    client: Client,
    bases: Vec<String>,
    over: AtomicBool,
    accepted: AtomicU64,
    sent: Mutex<VecDeque<Sent>>,
}

/// A message as the API published it.
#[derive(Clone)]
struct Sent {
    partition: u16,
    body: Vec<u8>,
}

impl Load {
    pub(crate) fn start(bases: Vec<String>, clients: usize, seed: u64) -> anyhow::Result<Self> {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(20)).build()?;
        let (over, accepted) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { client, bases, over, accepted, sent: Mutex::default() });
        let mut tasks = JoinSet::new();
        for number in 0..clients.max(1) {
            let random = StdRng::seed_from_u64(seed ^ (number as u64).rotate_left(32));
            let worker = Worker { shared: Arc::clone(&shared), random, number, told: Promises::default() };
            tasks.spawn(worker.run());
        }
        Ok(Self { shared, tasks })
    }

    /// How many commands were accepted so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Publishes some messages of commands that were accepted once more, old and young ones, as a publisher does that
    /// repeats what it was not sure of.
    pub(crate) async fn repeat_some(&self, amqp_url: &str) -> lapin::Result<()> {
        let some: Vec<_> = self.shared.lock().iter().rev().step_by(37).take(30).cloned().collect();
        let broker = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = broker.create_channel().await?;
        for Sent { partition, body } in some {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let key = partition.to_string();
            channel.basic_publish("commands".into(), key.into(), options, &body, properties).await?;
        }
        broker.close(200, "repeated".into()).await
    }

    /// Lets every client finish what it began.
    pub(crate) async fn finish(mut self) -> Promises {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut all = Promises::default();
        while let Some(ended) = self.tasks.join_next().await {
            let Ok(one) = ended else {
                all.wrong.push("a client of the torture itself failed".to_owned());
                continue;
            };
            all.lives.extend(one.lives);
            all.wrong.extend(one.wrong);
            all.refused += one.refused;
            all.unknown += one.unknown;
        }
        all
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Worker {
    shared: Arc<Shared>,
    random: StdRng,
    number: usize,
    told: Promises,
}

impl Worker {
    async fn run(mut self) -> Promises {
        let mut lives = 0_u32;
        while !self.shared.over.load(Ordering::Relaxed) {
            lives += 1;
            if let Some(life) = self.live(lives).await {
                self.told.lives.push(life);
            }
        }
        self.told
    }

    /// Creates a user and changes it until its life is through.
    async fn live(&mut self, number: u32) -> Option<Life> {
        let email = format!("client-{}-life-{number}@torture.example", self.number);
        let body = json!({ "email": email, "name": "created" });
        let command = self.accept(Method::POST, "/v1/users".to_owned(), Some(body), None).await?;
        let user: Uuid = command["user_id"].as_str()?.parse().ok()?;
        let mut life = Life { user, promises: vec![promise(&command, None)?] };
        let mut suspended = false;
        for step in 0..LIFE {
            if self.shared.over.load(Ordering::Relaxed) {
                break;
            }
            let path = format!("/v1/users/{user}");
            let (method, path, body, if_match) = match self.random.random_range(0..10) {
                0 => {
                    suspended = !suspended;
                    let verb = if suspended { "suspend" } else { "reactivate" };
                    (Method::POST, format!("{path}/{verb}"), None, None)
                }
                // Often lost, because commands are in flight: that must be said, and nothing changed.
                1 => (
                    Method::PATCH,
                    path,
                    Some(json!({ "name": format!("conditional {step}") })),
                    self.version(user).await,
                ),
                _ => (Method::PATCH, path, Some(json!({ "name": format!("step {step}") })), None),
            };
            if let Some(command) = self.accept(method, path, body, if_match).await {
                life.promises.extend(promise(&command, if_match));
            }
        }
        Some(life)
    }

    async fn version(&mut self, user: Uuid) -> Option<i64> {
        let url = format!("{}/v1/users/{user}", self.base());
        let answer = self.shared.client.get(url).send().await.ok()?;
        answer.json::<Value>().await.ok()?["version"].as_i64()
    }

    fn base(&mut self) -> String {
        let number = self.random.random_range(0..self.shared.bases.len());
        self.shared.bases[number].clone()
    }

    /// Sends one command, to any instance; gives it when it was accepted. It is never sent again: what became of one whose
    /// fate is unknown shows in the database.
    async fn accept(
        &mut self,
        method: Method,
        path: String,
        body: Option<Value>,
        if_match: Option<i64>,
    ) -> Option<Value> {
        let url = format!("{}{path}", self.base());
        let mut request: RequestBuilder = self.shared.client.request(method, url);
        if let Some(body) = &body {
            request = request.json(body);
        }
        if let Some(version) = if_match {
            request = request.header("if-match", format!("\"{version}\""));
        }
        match request.send().await {
            Ok(answer) if answer.status() == StatusCode::ACCEPTED => self.accepted(answer, body, if_match).await,
            Ok(answer) => {
                match answer.status() {
                    StatusCode::SERVICE_UNAVAILABLE => self.told.refused += 1,
                    StatusCode::GATEWAY_TIMEOUT => self.told.unknown += 1,
                    other => self.told.wrong.push(format!("{path} was answered with {other}")),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
            Err(_) => {
                self.told.unknown += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }

    async fn accepted(&mut self, answer: Response, body: Option<Value>, if_match: Option<i64>) -> Option<Value> {
        // An answer that was cut off after its head is a promise of which nothing is known.
        let Ok(command) = answer.json::<Value>().await else {
            self.told.unknown += 1;
            return None;
        };
        self.shared.accepted.fetch_add(1, Ordering::Relaxed);
        let sent = message(&command, body, if_match)?;
        let mut remembered = self.shared.lock();
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.push_back(sent);
        drop(remembered);
        Some(command)
    }
}

/// The message behind a command, made again from what the client knows.
fn message(command: &Value, body: Option<Value>, if_match: Option<i64>) -> Option<Sent> {
    let user: UserId = command["user_id"].as_str()?.parse().ok()?;
    let mut data = body.unwrap_or_else(|| json!({}));
    data["user_id"] = json!(user);
    let mut message = json!({
        "id": command["id"],
        "accepted_at": command["accepted_at"],
        "principal": "anonymous",
        "command": { "type": command["type"], "data": data },
    });
    if let Some(version) = if_match {
        message["if_match"] = json!(version);
    }
    Some(Sent { partition: user.partition(DEFAULT_PARTITIONS), body: message.to_string().into_bytes() })
}

fn promise(command: &Value, if_match: Option<i64>) -> Option<Promise> {
    Some(Promise { id: command["id"].as_str()?.parse().ok()?, if_match })
}
