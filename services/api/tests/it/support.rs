//! The API under test, and what every problem document must look like.

use std::sync::OnceLock;
use std::time::Duration;

use common::broker::{BrokerUser, Link, LinkState, supervise};
use common::command::CommandIdKey;
use common::config::{BrokerSettings, DatabaseSettings, Retention, database_url};
use common::db::{DatabaseClock, Pool};
use common::health::{Health, ReadyWhen};
use common::shutdown::Shutdown;
use common::transport::PlaintextHosts;
use local_stack::Stack;
use local_stack::testing::{TestDatabase, shared_stack};
use poem::endpoint::BoxEndpoint;
use poem::http::{HeaderMap, Method, StatusCode, Uri};
use poem::{Body, Endpoint, EndpointExt, Request, Response};
use rollcall_api::app::{Api, routes};
use rollcall_api::auth::Guard;
use rollcall_api::auth::settings::AuthSettings;
use rollcall_api::limits::Limits;
use rollcall_api::problem::ProblemKind;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;

pub(crate) const RETENTION: Duration = Duration::from_hours(720);

/// An API and the handle that ends it.
pub(crate) struct App {
    pub(crate) shutdown: Shutdown,
    pub(crate) health: Health,
    endpoint: BoxEndpoint<'static, Response>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl App {
    /// Without any server behind it.
    pub(crate) fn unconnected() -> Self {
        let shutdown = Shutdown::default();
        let api = Api::unconnected(&shutdown).expect("an API without servers");
        Self::of(api, &nowhere(), shutdown, AuthSettings::default(), Limits::default())
    }

    /// The same within these limits.
    pub(crate) fn limited(limits: Limits) -> Self {
        let shutdown = Shutdown::default();
        let api = Api::unconnected(&shutdown).expect("an API without servers");
        Self::of(api, &nowhere(), shutdown, AuthSettings::default(), limits)
    }

    /// Over the database at `url`, for everybody; the broker is away.
    pub(crate) fn over(url: &str) -> Self {
        Self::guarded(url, AuthSettings::default())
    }

    /// The same for those who prove who they are.
    pub(crate) fn guarded(url: &str, auth: AuthSettings) -> Self {
        let (_, link) = watch::channel(LinkState::Down("not connected".to_owned()));
        let broker = BrokerSettings {
            url: "amqp://127.0.0.1:1".into(),
            file: None,
            prefix: String::new(),
            partitions: 16,
            plaintext_hosts: PlaintextHosts::default(),
        };
        Self::between(url, auth, &broker, |_, _| link)
    }

    /// Over the database at `url` and this broker, for everybody.
    pub(crate) async fn accepting(url: &str, broker: &BrokerSettings) -> Self {
        let mut connected = None;
        let app = Self::between(url, AuthSettings::default(), broker, |shutdown, health| {
            let link = supervise(shutdown, health, "broker", broker, (BrokerUser::Api, None));
            connected = Some(link.clone());
            link
        });
        let mut link = connected.expect("a link");
        link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.expect("a broker");
        app
    }

    fn between(
        url: &str,
        auth: AuthSettings,
        broker: &BrokerSettings,
        link: impl FnOnce(&Shutdown, &Health) -> Link,
    ) -> Self {
        let shutdown = Shutdown::default();
        let url = database_url(url).expect("a database URL");
        let pool = Pool::new(
            &DatabaseSettings { url, connections: 3 },
            "rollcall-api-test",
            &[("default_transaction_read_only", "on")],
        );
        let pool = pool.expect("a pool");
        let (health, clock) = (Health::new(ReadyWhen::All, shutdown.clone()), DatabaseClock::default());
        let (retention, limits) = (Retention(RETENTION), Limits::default());
        let (_, command_ids) = watch::channel(Some(command_id_key()));
        let link = link(&shutdown, &health);
        let api = Api::over(&shutdown, &health, pool.clone(), broker, link, clock, command_ids, retention, &limits);
        Self::of(api, &pool, shutdown, auth, Limits::default())
    }

    fn of(api: Api, pool: &Pool, shutdown: Shutdown, auth: AuthSettings, limits: Limits) -> Self {
        let health = Health::new(ReadyWhen::All, shutdown.clone());
        let guard = Guard::start(&shutdown, &health, pool, auth, limits.rate).expect("a guard");
        let endpoint = routes(api, guard, &health, limits.origins).boxed();
        Self { shutdown, health, endpoint }
    }

    pub(crate) async fn send(&self, request: Request) -> Answer {
        let response = self.endpoint.get_response(request).await;
        let (parts, body) = response.into_parts();
        let body = body.into_vec().await.expect("a body");
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(request::<&str>("GET", path, &[], Body::empty())).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(request("GET", path, headers, Body::empty())).await
    }

    /// The endpoint, for a server.
    pub(crate) fn into_endpoint(self) -> BoxEndpoint<'static, Response> {
        self.endpoint
    }
}

/// That of the deployment under test.
pub(crate) fn command_id_key() -> CommandIdKey {
    CommandIdKey::of_deployment(uuid::Uuid::from_u128(7))
}

fn nowhere() -> Pool {
    let url = database_url("postgres://nobody@127.0.0.1:1/nothing").expect("a database URL");
    Pool::new(&DatabaseSettings { url, connections: 1 }, "rollcall-api-test", &[]).expect("a pool")
}

/// Header values may hold any byte that HTTP allows, so they are not strings.
pub(crate) fn request<V: AsRef<[u8]>>(
    method: &str,
    path: &str,
    headers: &[(&str, V)],
    body: impl Into<Body>,
) -> Request {
    let method: Method = method.parse().expect("a method");
    let uri: Uri = path.parse().expect("a path");
    let mut request = Request::builder().method(method).uri(uri).body(body);
    for (name, value) in headers {
        let name: poem::http::HeaderName = name.parse().expect("a header name");
        let value = poem::http::HeaderValue::from_bytes(value.as_ref()).expect("a header value");
        request.headers_mut().append(name, value);
    }
    request
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header value in ASCII"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json; charset=utf-8"), "{}", self.text());
        serde_json::from_slice(&self.body).expect("a body in JSON")
    }

    /// Checks the whole problem document; `fields` are those that `errors` must name, in their order.
    #[track_caller]
    pub(crate) fn assert_problem(&self, kind: ProblemKind, fields: &[&str], reason: &str) -> Value {
        let document: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        assert_eq!(self.status.as_u16(), kind.status(), "{reason}: {}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{reason}");
        assert_eq!(document["type"], kind.uri(), "{reason}: {document}");
        assert_eq!(document["title"], kind.title(), "{reason}");
        assert_eq!(document["status"], kind.status(), "{reason}");
        let trace_id = document["trace_id"].as_str().unwrap_or_default();
        let fits =
            trace_id.len() == 32 && trace_id.chars().all(|c| c.is_ascii_hexdigit()) && trace_id.contains(|c| c != '0');
        assert!(fits, "{reason}: trace id {trace_id:?}");
        let known = ["type", "title", "status", "detail", "trace_id", "errors", "command_id"];
        for name in document.as_object().expect("an object").keys() {
            assert!(known.contains(&name.as_str()), "{reason}: unknown member {name}");
        }
        let errors = document["errors"].as_array().cloned().unwrap_or_default();
        let named: Vec<_> = errors.iter().map(|error| error["field"].as_str().unwrap_or_default()).collect();
        assert_eq!(named, fields, "{reason}: {document}");
        for error in &errors {
            let detail = error["detail"].as_str().unwrap_or_default();
            assert!(detail.contains("; "), "{reason}: {detail:?} says no mend after a semicolon");
        }
        // What the libraries inside say of their failures.
        for inner in ["serde", "sqlx", "lapin", "poem", "panicked", "failed to parse", "expected", "Error", ".rs"] {
            assert!(!self.text().contains(inner), "{reason}: {inner:?} leaks from {document}");
        }
        assert_eq!(self.header("retry-after").is_some(), matches!(kind.status(), 429 | 503), "{reason}");
        document
    }
}

/// The shared servers.
pub(crate) fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| {
        // On a thread of its own, because it blocks.
        std::thread::spawn(|| shared_stack().expect("the shared stack")).join().expect("a start without panic")
    })
}

/// A migrated database with one connection to fill it by.
pub(crate) struct Database {
    // Declared before the database: the session ends first.
    pub(crate) conn: PgConnection,
    database: TestDatabase,
}

impl Database {
    pub(crate) async fn create() -> Self {
        Self::create_at(stack().postgres.url()).await
    }

    /// On the server of this URL.
    pub(crate) async fn create_at(server: &str) -> Self {
        let database = TestDatabase::create(server).await.expect("a database");
        let conn = PgConnection::connect(database.url()).await.expect("a connection");
        Self { conn, database }
    }

    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }
}
