//! One client: it leads users through their lives, each with several commands in flight.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::sleep;
use uuid::Uuid;

use super::Shared;
use super::exchange::{Answer, send};
use super::message::Sent;
use crate::torture::illness::INDIGESTIBLE;
use crate::torture::promises::{Kind, Life, Operation, Promise, Request, Shown};

/// Steps in the life of a user; then the next one is created.
const LIFE: u32 = 20;
/// Commands in flight at most.
const ABREAST: usize = 4;
/// How often a request with a key is sent before the client gives up.
const TRIES: u32 = 5;
/// One name in so many is one that the database does not always take.
const ILL: u32 = 300;

struct Client {
    shared: Arc<Shared>,
    random: StdRng,
    number: usize,
}

/// Goes on until the load is over; gives what it was told.
pub(super) async fn run(shared: Arc<Shared>, random: StdRng, number: usize) -> Vec<Life> {
    let mut client = Client { shared, random, number };
    let (mut lives, mut count) = (Vec::new(), 0);
    while !client.over() {
        count += 1;
        lives.extend(client.live(count).await);
    }
    lives
}

impl Client {
    fn over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// Creates a user and changes it until its life is through.
    async fn live(&mut self, number: u32) -> Option<Life> {
        let email = Some(format!("client-{}-life-{number}@torture.example", self.number));
        let create = Request { email, ..self.request(Kind::Create, Some("created".to_owned())) };
        let (create, user) = perform(&self.shared, create, None, self.random.random()).await;
        let mut life = Life { user: user?, operations: vec![create] };
        for step in 0..LIFE {
            if self.over() {
                return Some(life);
            }
            let abreast = self.random.random_range(1..=ABREAST);
            let mut requests = Vec::with_capacity(abreast);
            for place in 0..abreast {
                let name = self.name(step, place);
                requests.push(self.change(&life, name).await);
            }
            self.step(&mut life, requests).await;
        }
        if self.random.random_bool(0.3) {
            let delete = self.request(Kind::Delete, None);
            self.step(&mut life, vec![delete]).await;
        }
        Some(life)
    }

    /// Sends requests all at once, waits for their answers, and sometimes reads what was written.
    async fn step(&mut self, life: &mut Life, requests: Vec<Request>) {
        let (shared, user) = (&self.shared, life.user);
        let seeds: Vec<u64> = requests.iter().map(|_| self.random.random()).collect();
        let all = requests.into_iter().zip(seeds).map(|(request, seed)| perform(shared, request, Some(user), seed));
        let done: Vec<_> = join_all(all).await.into_iter().map(|(operation, _)| operation).collect();
        let reads = done.iter().any(|operation| matches!(operation.shown, Some(Shown::Version(_))));
        life.operations.extend(done);
        if reads {
            self.version(life).await;
        }
    }

    fn request(&mut self, kind: Kind, name: Option<String>) -> Request {
        let key = self.random.random_bool(0.4).then(|| Uuid::from_u128(self.random.random()).to_string());
        let wait = self.random.random_bool(0.1);
        Request { kind, email: None, name, if_match: None, key, reused: false, wait }
    }

    /// Not to be had while the database is ill, so rarely that no worker takes it for a flood of dead letters.
    fn name(&mut self, step: u32, place: usize) -> String {
        let ill = self.random.random_ratio(1, ILL);
        if ill { format!("step {step}, {place}, {INDIGESTIBLE}") } else { format!("step {step}, {place}") }
    }

    async fn change(&mut self, life: &Life, name: String) -> Request {
        match self.random.random_range(0..20) {
            0 | 1 => self.request(Kind::Suspend, None),
            2 | 3 => self.request(Kind::Reactivate, None),
            // Often lost, because commands are in flight: that must be said, and nothing changed.
            4..8 => {
                let if_match = self.version(life).await;
                Request { if_match, ..self.request(Kind::Update, Some(name)) }
            }
            8 => {
                // Only of a request that was promised: of another nobody knows whether it ever came.
                let owed = life.operations.iter().filter(|operation| operation.accepted.is_some());
                let key = owed.filter_map(|operation| operation.request.key.clone()).next_back();
                let fresh = self.request(Kind::Update, Some(name));
                if key.is_some() { Request { key, reused: true, ..fresh } } else { fresh }
            }
            _ => self.request(Kind::Update, Some(name)),
        }
    }

    /// Reads the version. Whoever was shown one reads at least that one, through whatever instance.
    async fn version(&mut self, life: &Life) -> Option<i64> {
        let base = &self.shared.bases[self.random.random_range(0..self.shared.bases.len())];
        let answer = self.shared.http.get(format!("{base}/v1/users/{}", life.user)).send().await.ok()?;
        let status = answer.status();
        let version = answer.json::<Value>().await.ok()?["version"].as_i64();
        if let Some(least) = life.shown()
            && (status == StatusCode::NOT_FOUND || version.is_some_and(|version| version < least))
        {
            let user = life.user;
            self.shared
                .wrong(format!("user {user} was read as {version:?} ({status}) after version {least} was shown"));
        }
        version
    }
}

/// Sends a request until it is owed, if it has a key; and then sometimes once more. Gives the user, too.
async fn perform(shared: &Shared, request: Request, user: Option<Uuid>, seed: u64) -> (Operation, Option<Uuid>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut operation = Operation::of(request);
    let mut known = user;
    for _ in 0..TRIES {
        let base = &shared.bases[random.random_range(0..shared.bases.len())];
        let answer = send(shared, base, &operation.request, user).await;
        let found = note(shared, &mut operation, &answer);
        if let (Some(known), Some(found)) = (known, found)
            && known != found
        {
            shared.wrong(format!("one request was promised for user {known} and for user {found}"));
        }
        known = known.or(found);
        if operation.accepted.is_none() {
            sleep(Duration::from_millis(random.random_range(20..100))).await;
        }
        let again = operation.accepted.is_none() || random.random_bool(0.15);
        if operation.request.key.is_none() || !again {
            break;
        }
    }
    (operation, known)
}

/// Notes an answer; gives the user that it names.
fn note(shared: &Shared, operation: &mut Operation, answer: &Answer) -> Option<Uuid> {
    let (id, field) = match answer {
        Answer::Refused => {
            shared.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Answer::Unknown => {
            shared.unknown.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Answer::Promised(command) => {
            shared.promised(Sent::of(&operation.request, command));
            let id = command["id"].as_str().and_then(|id| id.parse().ok());
            operation.promises.extend(id.map(|id| Promise { id, rejected: None, parked: false }));
            (id, &command["user_id"])
        }
        Answer::Rejected { id, reason } => {
            shared.promised(None);
            operation.promises.push(Promise { id: *id, rejected: Some(reason.clone()), parked: false });
            (Some(*id), &Value::Null)
        }
        Answer::Parked(id) => {
            shared.promised(None);
            operation.promises.push(Promise { id: *id, rejected: None, parked: true });
            (Some(*id), &Value::Null)
        }
        Answer::Succeeded(Some(user)) => {
            shared.promised(None);
            operation.shown = user["version"].as_i64().map(Shown::Version);
            (None, &user["id"])
        }
        Answer::Succeeded(None) => {
            shared.promised(None);
            operation.shown = Some(Shown::Gone);
            (None, &Value::Null)
        }
    };
    if id.is_none() && operation.shown.is_none() {
        shared.wrong("an answer names neither a command nor a user's version".to_owned());
        return None;
    }
    operation.accept();
    field.as_str().and_then(|user| user.parse().ok())
}
