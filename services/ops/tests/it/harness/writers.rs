//! A stream of writes that remembers every promise, and the check that all of them were kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{System, eventually};

/// Each writer creates a user and then renames it, one command after the other.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Promises>>,
}

/// What the writers were told.
#[derive(Default)]
pub(crate) struct Promises {
    /// Commands that got 202, in order.
    pub(crate) accepted: Vec<Uuid>,
    /// The last accepted name of each user, unless a later command's fate is unknown.
    names: BTreeMap<Uuid, Option<String>>,
    /// Answers other than 202, and `gone` for those that never came.
    pub(crate) others: BTreeMap<String, usize>,
}

impl Writers {
    /// Starts `count` writers; `bases` are the APIs to use in turn.
    pub(crate) fn start(count: usize, bases: &[String]) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..count)
            .map(|number| {
                let writer = Writer {
                    client: Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().unwrap(),
                    bases: bases.to_vec(),
                    number,
                    stop: Arc::clone(&stop),
                    accepted: Arc::clone(&accepted),
                };
                tokio::spawn(writer.run())
            })
            .collect();
        Self { stop, accepted, tasks }
    }

    /// Waits until this many more commands were accepted.
    pub(crate) async fn progress(&self, more: usize) {
        let goal = self.accepted.load(Ordering::Relaxed) + more;
        let what = format!("{more} more commands are accepted");
        eventually(&what, async || (self.accepted.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// Ends the stream and gives what was promised.
    pub(crate) async fn finish(self) -> Promises {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Promises::default();
        for task in self.tasks {
            let one = task.await.unwrap();
            all.accepted.extend(one.accepted);
            all.names.extend(one.names);
            for (answer, count) in one.others {
                *all.others.entry(answer).or_default() += count;
            }
        }
        all
    }
}

struct Writer {
    client: Client,
    bases: Vec<String>,
    number: usize,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
}

impl Writer {
    async fn run(self) -> Promises {
        let mut promises = Promises::default();
        let mut user = None;
        let mut step = 0;
        while !self.stop.load(Ordering::Relaxed) {
            step += 1;
            let base = &self.bases[step % self.bases.len()];
            let name = format!("writer {} step {step}", self.number);
            let request = match user {
                None => self.client.post(format!("{base}/v1/users")).json(&json!({
                    "email": format!("writer-{}-{step}@example.org", self.number), "name": name,
                })),
                Some(id) => self.client.patch(format!("{base}/v1/users/{id}")).json(&json!({ "name": name })),
            };
            match request.send().await {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => {
                    let command: Value = answer.json().await.unwrap();
                    promises.accepted.push(command["id"].as_str().unwrap().parse().unwrap());
                    let id = command["user_id"].as_str().unwrap().parse().unwrap();
                    promises.names.insert(id, Some(name));
                    user = Some(id);
                    self.accepted.fetch_add(1, Ordering::Relaxed);
                }
                answer => {
                    let refused = matches!(&answer, Ok(answer) if answer.status() == StatusCode::SERVICE_UNAVAILABLE);
                    let label =
                        answer.map_or_else(|_| "gone".to_owned(), |answer| answer.status().as_u16().to_string());
                    *promises.others.entry(label).or_default() += 1;
                    if let (false, Some(id)) = (refused, user) {
                        promises.names.insert(id, None);
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        promises
    }
}

impl Promises {
    /// Waits until every accepted command succeeded, then checks that each was applied once and in order.
    pub(crate) async fn kept(&self, system: &System) {
        assert!(!self.accepted.is_empty(), "nothing was accepted: {:?}", self.others);
        let mut connection = system.database().await;
        eventually("every accepted command is decided", async || {
            let decided: i64 = sqlx::query_scalar("SELECT count(*) FROM commands WHERE id = ANY($1)")
                .bind(&self.accepted)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            (usize::try_from(decided).unwrap() == self.accepted.len()).then_some(())
        })
        .await;
        let unhappy: i64 = sqlx::query_scalar("SELECT count(*) FROM commands WHERE status <> 'succeeded'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(unhappy, 0, "commands that did not succeed");
        // A version counts the changes: one that was applied twice, or not at all, shows here.
        let wrong: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM users
             WHERE version <> (SELECT count(*) FROM commands WHERE commands.user_id = users.id)",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(wrong, 0, "users whose version is not the number of their commands");
        for (id, name) in &self.names {
            let row = sqlx::query("SELECT name FROM users WHERE id = $1").bind(id).fetch_one(&mut connection).await;
            let stored: String = row.unwrap().get("name");
            // The name of the last accepted command, when nothing of unknown fate came after it.
            if let Some(name) = name {
                assert_eq!(&stored, name);
            }
        }
    }
}
