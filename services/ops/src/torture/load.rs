//! The load: clients that remember what they were promised.

mod client;
mod exchange;
mod message;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rand::SeedableRng;
use rand::rngs::StdRng;
use reqwest::Client;
use tokio::sync::{RwLock, RwLockWriteGuard};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::promises::{Life, Promises};
use message::Sent;

/// Commands that can be sent once more; the oldest fall out.
const REMEMBERED: usize = 20_000;
/// For an answer; longer than a client waits for an outcome.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// The clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<Vec<Life>>,
}

/// What the clients have in common.
struct Shared {
    http: Client,
    bases: Vec<String>,
    over: AtomicBool,
    accepted: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    wrong: Mutex<Vec<String>>,
    sent: Mutex<VecDeque<Sent>>,
    /// Read by every request while it is under way.
    gate: RwLock<()>,
}

impl Load {
    pub(crate) fn start(bases: Vec<String>, clients: usize, seed: u64) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            http: Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?,
            bases,
            over: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            wrong: Mutex::default(),
            sent: Mutex::default(),
            gate: RwLock::default(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let random = StdRng::seed_from_u64(seed ^ (number as u64).rotate_left(32));
            tasks.spawn(client::run(Arc::clone(&shared), random, number));
        }
        Ok(Self { shared, tasks })
    }

    /// How many promises there are so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Publishes some messages of commands that were accepted once more, old and young ones, as a publisher does that
    /// repeats what it was not sure of.
    pub(crate) async fn repeat_some(&self, amqp_url: &str) -> lapin::Result<()> {
        let some: Vec<_> = lock(&self.shared.sent).iter().rev().step_by(37).take(30).cloned().collect();
        let broker = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
        let channel = broker.create_channel().await?;
        for Sent { partition, body, .. } in some {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            let key = partition.to_string();
            channel.basic_publish("commands".into(), key.into(), options, &body, properties).await?;
        }
        broker.close(200, "repeated".into()).await
    }

    /// Waits until no request is under way; none begins until the guard is dropped.
    pub(crate) async fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        self.shared.gate.write().await
    }

    /// The latest promises in a partition.
    pub(crate) fn promised(&self, partition: u16) -> Vec<Uuid> {
        lock(&self.shared.sent).iter().filter(|sent| sent.partition == partition).map(|sent| sent.id).collect()
    }

    /// Lets every client finish what it began.
    pub(crate) async fn finish(mut self) -> Promises {
        self.shared.over.store(true, Ordering::Relaxed);
        let mut lives = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(some) => lives.extend(some),
                Err(_) => self.shared.wrong("a client of the torture itself failed".to_owned()),
            }
        }
        Promises {
            lives,
            wrong: std::mem::take(&mut *lock(&self.shared.wrong)),
            refused: self.shared.refused.load(Ordering::Relaxed),
            unknown: self.shared.unknown.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn wrong(&self, what: String) {
        lock(&self.wrong).push(what);
    }

    /// Remembers a promise, to be able to repeat its message.
    fn promised(&self, sent: Option<Sent>) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let mut remembered = lock(&self.sent);
        if remembered.len() == REMEMBERED {
            remembered.pop_front();
        }
        remembered.extend(sent);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
