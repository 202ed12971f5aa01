//! From HTTP to the problem: every kind is reached by a request to the real executables, or its row says why not here.

use std::collections::BTreeSet;

use api::problem::ProblemKind::{self, *};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Process, System, with_content};

/// Kinds that no request of this test can cause, and the tests that do.
const ELSEWHERE: [(ProblemKind, &str); 6] = [
    (Internal, "a fault of the service: edge::tests of the API"),
    (Forbidden, "takes a key: auth"),
    (CommandExpired, "takes a command as old as the retention: commands of the API"),
    (UserExists, "takes a publisher that mints its own ids: users of the worker"),
    (OutcomeUnknown, "takes a broker that does not confirm: unroutable"),
    (Overloaded, "takes a backlog: limits"),
];

const NOBODY: &str = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";

/// Raises for one name, like a constraint that nobody thought of.
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'no user of this name' USING ERRCODE = '22023'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON users
        FOR EACH ROW WHEN (NEW.name = 'Poison') EXECUTE FUNCTION refuse();
";

/// What was reached, each checked as a whole.
struct Reached {
    client: Client,
    kinds: BTreeSet<&'static str>,
}

impl Reached {
    /// Type, status and headers; the rest of the document is the contract's, which other tests look at.
    fn check(&mut self, kind: ProblemKind, status: u16, header: impl Fn(&str) -> Option<String>, document: &Value) {
        assert_eq!((status, &document["type"]), (kind.status(), &json!(kind.uri())), "{document}");
        assert_eq!((&document["status"], &document["title"]), (&json!(kind.status()), &json!(kind.title())));
        assert_eq!(document["trace_id"].as_str().map(str::len), Some(32), "{document}");
        assert_eq!(header("content-type").as_deref(), Some("application/problem+json"), "{kind:?}");
        let expected = match kind.status() {
            401 => Some("www-authenticate"),
            405 => Some("allow"),
            429 | 503 => Some("retry-after"),
            _ => None,
        };
        assert!(expected.is_none_or(|name| header(name).is_some()), "{kind:?} without {expected:?}");
        self.kinds.insert(kind.name());
    }

    async fn answer(&mut self, kind: ProblemKind, answer: Response) {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let document = answer.json().await.unwrap();
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        self.check(kind, status, header, &document);
    }

    async fn get(&mut self, kind: ProblemKind, api: &Process, path: &str) {
        let answer = self.client.get(api.url(path)).send().await.unwrap();
        self.answer(kind, answer).await;
    }

    /// A request with these fields and this body, that waits for its outcome.
    async fn send(
        &mut self,
        kind: ProblemKind,
        api: &Process,
        request: (Method, &str),
        fields: &[(&str, &str)],
        body: &Value,
    ) {
        let (method, path) = request;
        let mut asked = self.client.request(method, api.url(path)).header("prefer", "wait=20");
        for (name, value) in fields {
            asked = asked.header(*name, *value);
        }
        let answer = with_content(asked, body).send().await.unwrap();
        self.answer(kind, answer).await;
    }

    /// Bytes that no client library would send.
    async fn raw(&mut self, kind: ProblemKind, api: &Process, bytes: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", api.port())).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let header = |name: &str| {
            let fields = head.lines().filter_map(|line| line.split_once(": "));
            fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let status = head.get(9..12).unwrap().parse().unwrap();
        self.check(kind, status, header, &serde_json::from_str(body).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_problem_is_reached_from_outside() {
    let mut system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    sqlx::raw_sql(TRIGGER).execute(&mut system.database().await).await.unwrap();
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let (suspend, reactivate) = (format!("{path}/suspend"), format!("{path}/reactivate"));
    let new = |email: &str, name: &str| json!({ "email": email, "name": name });
    let users = || (Method::POST, "/v1/users");
    let mut reached = Reached { client: system.client.clone(), kinds: BTreeSet::new() };

    reached.get(InvalidRequest, &api, "/v1/users?limit=0").await;
    let foreign = [("origin", "http://elsewhere.example")];
    reached.send(CrossSite, &api, users(), &foreign, &new("a@example.org", "A")).await;
    reached.get(NoSuchRoute, &api, "/v1/teams").await;
    reached.get(UserNotFound, &api, NOBODY).await;
    reached.get(CommandNotFound, &api, "/v1/commands/01890a5d-ac96-774b-bcce-b302099a8057").await;
    reached.send(MethodNotAllowed, &api, (Method::DELETE, "/v1/users"), &[], &json!({})).await;
    reached.send(EmailTaken, &api, users(), &[], &new("ADA@example.org", "Ada")).await;
    reached.send(CommandParked, &api, users(), &[], &new("poison@example.org", "Poison")).await;
    reached.send(NotSuspended, &api, (Method::POST, &reactivate), &[], &json!({})).await;
    let suspended = system.post(&api, &suspend, "wait=20", &json!({})).await;
    assert_eq!(suspended.status(), 200);
    reached.send(AlreadySuspended, &api, (Method::POST, &suspend), &[], &json!({})).await;
    reached.send(VersionLost, &api, (Method::PATCH, &path), &[("if-match", "\"1\"")], &json!({ "name": "B" })).await;
    reached.send(BodyTooLarge, &api, users(), &[], &new("a@example.org", &"x".repeat(70_000))).await;
    let text = system.client.post(api.url("/v1/users")).header("content-type", "text/plain").body("{}");
    reached.answer(UnsupportedMediaType, text.send().await.unwrap()).await;
    let keyed = system.client.post(api.url("/v1/users")).header("idempotency-key", "once").header("prefer", "wait=20");
    assert_eq!(keyed.json(&new("b@example.org", "B")).send().await.unwrap().status(), 201);
    reached.send(IdempotencyKeyReused, &api, users(), &[("idempotency-key", "once")], &new("c@example.org", "C")).await;

    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(66_000));
    reached.raw(UriTooLong, &api, long.as_bytes()).await;
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(200));
    reached.raw(HeadersTooLarge, &api, many.as_bytes()).await;
    let slow = "POST /v1/users HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    reached.raw(RequestTimeout, &api, slow.as_bytes()).await;

    let (database, broker) = ("postgres://nobody@127.0.0.1:1/nothing", "amqp://nobody:none@127.0.0.1:1/");
    system.set("RATE_LIMIT_PER_MINUTE", "1");
    let limited = system.api().await;
    assert_eq!(system.get(&limited, "/v1/users").await.status(), 200);
    reached.get(TooManyRequests, &limited, "/v1/users").await;
    system.environment.retain(|(name, _)| name != "RATE_LIMIT_PER_MINUTE");
    system.set("DATABASE_URL", database);
    system.set("AMQP_URL", broker);
    let alone = system.api_unready();
    alone.unready("database").await;
    reached.get(NotReady, &alone, "/readyz").await;
    reached.get(DatabaseUnavailable, &alone, NOBODY).await;
    reached.send(BrokerUnavailable, &alone, users(), &[], &new("d@example.org", "D")).await;
    system.set("AUTH", "keys");
    let guarded = system.api_unready();
    guarded.unready("database").await;
    reached.get(Unauthenticated, &guarded, "/v1/users").await;
    let key = common::access::ApiKey::mint().expose().to_owned();
    let asked = system.client.get(guarded.url("/v1/users")).bearer_auth(key);
    reached.answer(AuthenticationUnavailable, asked.send().await.unwrap()).await;

    let here = ProblemKind::ALL.iter().filter(|kind| ELSEWHERE.iter().all(|(other, _)| other != *kind));
    let missing: Vec<_> = here.filter(|kind| !reached.kinds.contains(kind.name())).collect();
    assert!(missing.is_empty(), "neither reached here nor elsewhere: {missing:?}");
}
