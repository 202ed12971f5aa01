//! Retried requests over several instances: they take effect once.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Process, System, problem};

const RETRIES: usize = 50;

impl System {
    /// A write under a key.
    fn keyed(&self, api: &Process, method: Method, path: &str, key: &str, body: &Value) -> RequestBuilder {
        let request = self.client.request(method, api.url(path)).header("idempotency-key", key);
        if body.is_null() { request } else { request.json(body) }
    }

    async fn waited(&self, api: &Process, method: Method, path: &str, key: &str, body: &Value) -> Response {
        self.keyed(api, method, path, key, body).header("prefer", "wait=20").send().await.unwrap()
    }
}

async fn json_of(response: Response, status: StatusCode) -> Value {
    assert_eq!(response.status(), status);
    response.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_sent_fifty_times_at_once_over_three_instances_makes_one_user() {
    let system = System::prepare().await;
    let (one, two, three, _worker) = tokio::join!(system.api(), system.api(), system.api(), system.worker());
    let apis = [&one, &two, &three];
    let (key, body) = (Uuid::now_v7().to_string(), json!({"email": "ada@example.org", "name": "Ada"}));

    let requests = (0..RETRIES).map(|n| system.waited(apis[n % 3], Method::POST, "/v1/users", &key, &body));
    let mut users = BTreeSet::new();
    for answer in join_all(requests).await {
        assert_eq!(answer.headers()["etag"], "\"1\"");
        users.insert(json_of(answer, StatusCode::CREATED).await.to_string());
    }
    assert_eq!(users.len(), 1, "all answers are the same: {users:?}");
    let user: Value = serde_json::from_str(users.first().unwrap()).unwrap();
    assert_eq!(system.count("SELECT count(*) FROM users WHERE version = 1").await, 1);
    let commands = "SELECT count(*) FROM commands WHERE status = 'succeeded' AND user_version = 1";
    assert_eq!(usize::try_from(system.count(commands).await).unwrap(), RETRIES, "each retry has its outcome");

    // Without a wait, too, each 202 names the same user; quotes around the key make no difference.
    for (api, key) in apis.into_iter().zip([key.clone(), format!("\"{key}\""), key.clone()]) {
        let accepted = system.keyed(api, Method::POST, "/v1/users", &key, &body).send().await.unwrap();
        let accepted = json_of(accepted, StatusCode::ACCEPTED).await;
        assert_eq!(accepted["user_id"], user["id"]);
        let decided = system.outcome(api, accepted["id"].as_str().unwrap()).await;
        assert_eq!((&decided["status"], &decided["user_version"]), (&json!("succeeded"), &json!(1)));
    }

    let other = json!({"email": "ada@example.org", "name": "Eve"});
    let reused = system.waited(&two, Method::POST, "/v1/users", &key, &other).await;
    let reused = problem(reused, 422, "idempotency-key-reused").await;
    let decided = system.outcome(&one, reused["command_id"].as_str().unwrap()).await;
    assert_eq!((&decided["status"], &decided["reason"]), (&json!("rejected"), &json!("idempotency-key-reused")));
    assert_eq!(system.get(&one, &format!("/v1/users/{}", user["id"].as_str().unwrap())).await.status(), StatusCode::OK);
    let listed: Value = system.get(&three, "/v1/users").await.json().await.unwrap();
    assert_eq!(listed["items"], json!([user]));

    let another = json!({"email": "bob@example.org", "name": "Bob"});
    let another = system.waited(&one, Method::POST, "/v1/users", &Uuid::now_v7().to_string(), &another).await;
    assert_ne!(json_of(another, StatusCode::CREATED).await["id"], user["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_api_was_killed_gets_the_first_outcome() {
    let mut system = System::prepare().await;
    // More than the requests below need, so that each kill finds commands that wait in their queue.
    system.set("PARTITIONS", "4");
    let mut api = system.api().await;
    let bodies: Vec<_> = (0..20).map(|n| json!({"email": format!("u{n}@example.org"), "name": "User"})).collect();
    let keys: Vec<_> = bodies.iter().map(|_| Uuid::now_v7().to_string()).collect();
    let mut promised = Vec::new();
    for (key, body) in keys.iter().zip(&bodies) {
        let accepted = system.keyed(&api, Method::POST, "/v1/users", key, body).send().await.unwrap();
        promised.push(json_of(accepted, StatusCode::ACCEPTED).await["user_id"].clone());
    }
    // Nothing is applied yet; what was sent is in the broker, and nobody is left who knows of it.
    api.kill();
    api = system.api().await;
    let (again, _worker) = tokio::join!(
        join_all(keys.iter().zip(&bodies).map(|(key, body)| system.waited(&api, Method::POST, "/v1/users", key, body))),
        system.worker(),
    );
    for (answer, user_id) in again.into_iter().zip(&promised) {
        let user = json_of(answer, StatusCode::CREATED).await;
        assert_eq!((&user["id"], &user["version"]), (user_id, &json!(1)));
    }
    assert_eq!(system.count("SELECT count(*) FROM users").await, 20);
    assert_eq!(system.count("SELECT count(*) FROM commands").await, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_under_a_key_takes_effect_once() {
    let system = System::prepare().await;
    let (one, two, _worker) = tokio::join!(system.api(), system.api(), system.worker());
    let ada = system.create(&one, "ada@example.org").await;
    let path = format!("/v1/users/{}", ada["id"].as_str().unwrap());
    let suspend = format!("{path}/suspend");
    let rename = json!({"name": "Ada King"});

    for api in [&one, &two, &one] {
        let renamed = system.waited(api, Method::PATCH, &path, "rename", &rename).await;
        assert_eq!(json_of(renamed, StatusCode::OK).await["version"], 2);
    }
    // Without a key the second would be 409.
    for api in [&one, &two] {
        let suspended = system.waited(api, Method::POST, &suspend, "suspend", &Value::Null).await;
        assert_eq!(json_of(suspended, StatusCode::OK).await["version"], 3);
    }
    problem(system.waited(&one, Method::POST, &suspend, "again", &Value::Null).await, 409, "already-suspended").await;
    let active = system.waited(&one, Method::POST, &format!("{path}/reactivate"), "reactivate", &Value::Null).await;
    assert_eq!(json_of(active, StatusCode::OK).await["version"], 4);
    // Both outcomes are the first ones', although either would be another by now.
    let suspended = system.waited(&two, Method::POST, &suspend, "suspend", &Value::Null).await;
    assert_eq!(json_of(suspended, StatusCode::OK).await["status"], "active", "the user as it is now");
    problem(system.waited(&two, Method::POST, &suspend, "again", &Value::Null).await, 409, "already-suspended").await;

    problem(system.waited(&two, Method::DELETE, &path, "rename", &Value::Null).await, 422, "idempotency-key-reused")
        .await;
    for api in [&one, &two] {
        let deleted = system.waited(api, Method::DELETE, &path, "delete", &Value::Null).await;
        assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    }
    problem(system.waited(&one, Method::DELETE, &path, "other", &Value::Null).await, 404, "user-not-found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_versions_is_a_condition_and_part_of_the_request() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let rename = async |condition: &str, key: &str, name: &str| {
        let request = system.keyed(&api, Method::PATCH, &path, key, &json!({ "name": name }));
        request.header("prefer", "wait=20").header("if-match", condition).send().await.unwrap()
    };
    let first = json_of(rename("\"7\", \"1\"", "first", "Lovelace").await, StatusCode::OK).await;
    assert_eq!((&first["version"], &first["name"]), (&json!(2), &json!("Lovelace")));
    // None of them is current any more, but the request took effect before.
    let retried = json_of(rename("\"1\",\"7\"", "first", "Lovelace").await, StatusCode::OK).await;
    assert_eq!(retried["version"], 2);
    problem(rename("\"1\"", "first", "Lovelace").await, 422, "idempotency-key-reused").await;
    problem(rename("\"1\", \"7\"", "late", "King").await, 412, "version-lost").await;
    let weak = problem(rename("W/\"2\"", "weak", "King").await, 412, "version-lost").await;
    assert!(weak["detail"].as_str().unwrap().contains("weak tag"), "{weak}");
    let second = json_of(rename("W/\"1\", \"2\", \"3\"", "second", "King").await, StatusCode::OK).await;
    assert_eq!((&second["version"], &second["name"]), (&json!(3), &json!("King")));
}
