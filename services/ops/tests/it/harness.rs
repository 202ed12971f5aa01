//! A system of its own for each test: a database and a broker prefix on the shared stack, and the real executables.

pub(crate) mod frames;
mod process;
mod writers;

use std::collections::HashSet;
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use local_stack::Stack;
use local_stack::testing::{TestDatabase, broker_prefix, shared_stack};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

pub(crate) use process::{Process, free_port};
pub(crate) use writers::Writers;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// The shared stack of all tests.
pub(crate) fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _turn = STARTING.lock().unwrap();
    STACK.get_or_init(|| shared_stack().unwrap())
}

/// The API and the worker with their servers.
pub(crate) struct System {
    pub(crate) client: Client,
    pub(crate) environment: Vec<(String, String)>,
    database_url: String,
    pub(crate) prefix: String,
    pub(crate) amqp_url: String,
    /// The prefixes and numbers of partitions whose exchanges and queues were declared.
    declared: Mutex<HashSet<Vec<(String, String)>>>,
    // Last: the processes that tests hold end before their database is dropped.
    _database: Option<TestDatabase>,
}

impl System {
    /// A migrated database and a prefix on the shared stack; nothing runs yet.
    pub(crate) async fn prepare() -> Self {
        let stack = tokio::task::spawn_blocking(stack).await.unwrap();
        Self::on(stack.postgres.url(), stack.rabbitmq.url()).await
    }

    /// The same on the given servers.
    pub(crate) async fn on(postgres: &str, amqp: &str) -> Self {
        let database = TestDatabase::create(postgres).await.unwrap();
        let prefix = broker_prefix();
        let environment = [
            ("DATABASE_URL", database.url()),
            ("AMQP_URL", amqp),
            ("BROKER_PREFIX", &prefix),
            ("DRAIN_DELAY_MS", "0"),
            ("LOG", "info"),
        ];
        Self {
            client: Client::builder().no_proxy().build().unwrap(),
            environment: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            database_url: database.url().to_owned(),
            prefix,
            amqp_url: amqp.to_owned(),
            declared: Mutex::default(),
            _database: Some(database),
        }
    }

    /// Sets a variable for processes that are started from now on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Runs `rollcall broker apply` as the broker's administrator, as a deployment does before its services start.
    pub(crate) fn declare(&self) -> bool {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args(["broker", "apply"]).env_clear().envs(self.names()).env("AMQP_URL", &self.amqp_url);
        command.output().unwrap().status.success()
    }

    /// The same before the first service of an environment. Where the broker is away, the test declares later.
    fn declare_once(&self) {
        let mut declared = self.declared.lock().unwrap();
        let names = self.names();
        if !declared.contains(&names) && self.declare() {
            declared.insert(names);
        }
    }

    /// The variables that name exchanges and queues.
    fn names(&self) -> Vec<(String, String)> {
        let named = |name: &str| ["BROKER_PREFIX", "PARTITIONS"].contains(&name);
        self.environment.iter().filter(|(name, _)| named(name)).cloned().collect()
    }

    /// Starts an API and waits until it is ready.
    pub(crate) async fn api(&self) -> Process {
        let process = self.api_silent();
        process.ready().await;
        process
    }

    /// Starts an API that says at once why it is not ready.
    pub(crate) fn api_unready(&self) -> Process {
        self.declare_once();
        let at_once = ("LISTEN_DELAY_MS".to_owned(), "0".to_owned());
        Process::start("api", "PORT", |port| port.to_string(), &[&self.environment[..], &[at_once]].concat())
    }

    /// Starts an API, which refuses connections until it is ready.
    pub(crate) fn api_silent(&self) -> Process {
        self.declare_once();
        Process::start("api", "PORT", |port| port.to_string(), &self.environment)
    }

    /// Starts a worker and waits until it is ready.
    pub(crate) async fn worker(&self) -> Process {
        let process = self.worker_unready();
        process.ready().await;
        process
    }

    pub(crate) fn worker_unready(&self) -> Process {
        self.declare_once();
        Process::start("worker", "WORKER_LISTEN", |port| format!("127.0.0.1:{port}"), &self.environment)
    }

    /// A connection to the test's database.
    pub(crate) async fn database(&self) -> PgConnection {
        PgConnection::connect(&self.database_url).await.unwrap()
    }

    /// One number from the database.
    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        let mut connection = self.database().await;
        sqlx::query_scalar(query).fetch_one(&mut connection).await.unwrap()
    }

    /// Creates a user and waits for the outcome.
    pub(crate) async fn create(&self, api: &Process, email: &str) -> Value {
        let response = self.post(api, "/v1/users", "wait=20", &json!({ "email": email, "name": "Test" })).await;
        let (status, answer) = (response.status(), response.json().await.unwrap());
        if status == StatusCode::CREATED {
            return answer;
        }
        // On a busy machine the wait may end before the command is applied.
        let answer: Value = answer;
        assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
        assert_eq!(self.outcome(api, answer["id"].as_str().unwrap()).await["status"], "succeeded");
        let user = self.get(api, &format!("/v1/users/{}", answer["user_id"].as_str().unwrap())).await;
        user.json().await.unwrap()
    }

    pub(crate) async fn post(&self, api: &Process, path: &str, prefer: &str, body: &Value) -> Response {
        with_content(self.client.post(api.url(path)), body).header("prefer", prefer).send().await.unwrap()
    }

    pub(crate) async fn get(&self, api: &Process, path: &str) -> Response {
        self.client.get(api.url(path)).send().await.unwrap()
    }

    /// Waits until a command is decided.
    pub(crate) async fn outcome(&self, api: &Process, id: &str) -> Value {
        eventually("the command is decided", async || {
            let answer =
                self.client.get(api.url(&format!("/v1/commands/{id}"))).header("prefer", "wait=5").send().await;
            let command: Value = answer.ok()?.json().await.ok()?;
            (command["status"].is_string() && command["status"] != "pending").then_some(command)
        })
        .await
    }
}

/// With a body, unless it has no members: suspending and reactivating take none.
pub(crate) fn with_content(request: RequestBuilder, body: &Value) -> RequestBuilder {
    if body.as_object().is_some_and(|members| !members.is_empty()) { request.json(body) } else { request }
}

/// Tries until there is a value, within the patience of a test.
pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// Asserts that an answer is a problem of the given type, and gives it.
pub(crate) async fn problem(response: Response, status: u16, kind: &str) -> Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.status().as_u16(), status);
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["type"], format!("/problems/{kind}"));
    assert_eq!(problem["status"], status);
    problem
}
