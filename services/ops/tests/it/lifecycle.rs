//! What a client does with users, over the real executables.

use std::collections::HashSet;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Process, System, problem};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_created_read_changed_suspended_reactivated_and_deleted() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());

    let created = system.post(&api, "/v1/users", "wait=20", &json!({"email": "Ada@Example.org", "name": "Ada"})).await;
    assert_eq!(created.status(), StatusCode::CREATED);
    assert_eq!(created.headers()["etag"], "\"1\"");
    assert_eq!(created.headers()["preference-applied"], "wait=20");
    let path = created.headers()["location"].to_str().unwrap().to_owned();
    let user: Value = created.json().await.unwrap();
    assert_eq!(path, format!("/v1/users/{}", user["id"].as_str().unwrap()));
    assert_eq!((&user["status"], &user["version"]), (&json!("active"), &json!(1)));

    let read = system.get(&api, &path).await;
    assert_eq!(read.headers()["etag"], "\"1\"");
    assert_eq!(read.json::<Value>().await.unwrap(), user);
    let unchanged = system.client.get(api.url(&path)).header("if-none-match", "\"1\"").send().await.unwrap();
    assert_eq!(unchanged.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(unchanged.bytes().await.unwrap().len(), 0);

    let renamed = change(&system, &api, Method::PATCH, &path, Some("\"1\""), json!({"name": "Ada Lovelace"})).await;
    assert_eq!(renamed.status(), StatusCode::OK);
    assert_eq!(renamed.headers()["etag"], "\"2\"");
    assert_eq!(renamed.json::<Value>().await.unwrap()["name"], "Ada Lovelace");
    let lost = change(&system, &api, Method::PATCH, &path, Some("\"1\""), json!({"name": "Too late"})).await;
    problem(lost, 412, "version-lost").await;

    let suspended = change(&system, &api, Method::POST, &format!("{path}/suspend"), None, Value::Null).await;
    assert_eq!(suspended.json::<Value>().await.unwrap()["status"], "suspended");
    let again = change(&system, &api, Method::POST, &format!("{path}/suspend"), None, Value::Null).await;
    problem(again, 409, "already-suspended").await;
    let active = change(&system, &api, Method::POST, &format!("{path}/reactivate"), None, Value::Null).await;
    assert_eq!(active.json::<Value>().await.unwrap()["version"], 4);
    let again = change(&system, &api, Method::POST, &format!("{path}/reactivate"), None, Value::Null).await;
    problem(again, 409, "not-suspended").await;

    let deleted = change(&system, &api, Method::DELETE, &path, Some("\"4\""), Value::Null).await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    problem(system.get(&api, &path).await, 404, "user-not-found").await;
    let gone = change(&system, &api, Method::DELETE, &path, None, Value::Null).await;
    problem(gone, 404, "user-not-found").await;
}

async fn change(
    system: &System,
    api: &Process,
    method: Method,
    path: &str,
    if_match: Option<&str>,
    body: Value,
) -> Response {
    let mut request = system.client.request(method, api.url(path)).header("prefer", "wait=20");
    if let Some(tag) = if_match {
        request = request.header("if-match", tag);
    }
    if !body.is_null() {
        request = request.header("content-type", "application/merge-patch+json").body(body.to_string());
    }
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_without_a_wait_is_accepted_and_its_outcome_can_be_asked_for() {
    let system = System::prepare().await;
    let api = system.api().await;
    let body = json!({"email": "bob@example.org", "name": "Bob"});

    // Nothing applies commands yet.
    let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    assert_eq!(accepted.headers()["retry-after"], "1");
    let location = accepted.headers()["location"].to_str().unwrap().to_owned();
    let command: Value = accepted.json().await.unwrap();
    assert_eq!((&command["status"], &command["type"]), (&json!("pending"), &json!("users.create")));
    let pending: Value = system.get(&api, &location).await.json().await.unwrap();
    assert_eq!((&pending["status"], &pending["id"]), (&json!("pending"), &command["id"]));
    let waited = system.post(&api, "/v1/users", "wait=1", &json!({"email": "eve@example.org", "name": "Eve"})).await;
    assert_eq!(waited.status(), StatusCode::ACCEPTED, "the wait ran out");

    let _worker = system.worker().await;
    let decided = system.outcome(&api, command["id"].as_str().unwrap()).await;
    assert_eq!((&decided["status"], &decided["user_version"]), (&json!("succeeded"), &json!(1)));
    assert_eq!(decided["user_id"], command["user_id"]);
    let user = system.get(&api, decided["links"]["user"].as_str().unwrap()).await;
    assert_eq!(user.json::<Value>().await.unwrap()["email"], "bob@example.org");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_other_letter_case_is_taken() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "carol@example.org").await;

    let body = json!({"email": "CAROL@Example.ORG", "name": "Other"});
    problem(system.post(&api, "/v1/users", "wait=20", &body).await, 409, "email-taken").await;
    let accepted: Value =
        system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap().json().await.unwrap();
    let decided = system.outcome(&api, accepted["id"].as_str().unwrap()).await;
    assert_eq!((&decided["status"], &decided["reason"]), (&json!("rejected"), &json!("email-taken")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_no_command_is_not_found() {
    let system = System::prepare().await;
    let api = system.api().await;
    for made_up in ["f47ac10b-58cc-4372-a567-0e02b2c3d479".to_owned(), Uuid::now_v7().to_string()] {
        problem(system.get(&api, &format!("/v1/commands/{made_up}")).await, 404, "command-not-found").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_over_several_pages_has_every_user_once() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let mut created = HashSet::new();
    for number in 0..7 {
        let user = system.create(&api, &format!("page-{number}@example.org")).await;
        created.insert(user["id"].as_str().unwrap().to_owned());
    }
    let mut listed = Vec::new();
    let mut path = Some("/v1/users?limit=3".to_owned());
    let mut pages = 0;
    while let Some(next) = path.take() {
        let page = system.get(&api, &next).await;
        pages += 1;
        let links = page.headers().get("link").map_or("", |links| links.to_str().unwrap());
        let next = links.split(", ").find_map(|link| link.strip_prefix('<')?.strip_suffix(">; rel=\"next\""));
        path = next.map(str::to_owned);
        let page: Value = page.json().await.unwrap();
        listed.extend(page["items"].as_array().unwrap().iter().map(|user| user["id"].as_str().unwrap().to_owned()));
    }
    assert_eq!((pages, listed.len()), (3, 7));
    assert_eq!(listed.into_iter().collect::<HashSet<_>>(), created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_an_old_schema_stays_unready_until_it_is_migrated() {
    let mut system = System::prepare().await;
    let mut connection = system.database().await;
    sqlx::query("DROP SCHEMA public CASCADE").execute(&mut connection).await.unwrap();
    sqlx::query("CREATE SCHEMA public").execute(&mut connection).await.unwrap();
    system.set("STOP_DEADLINE_MS", "2000");
    let (api, worker) = (system.api_unready(), system.worker_unready());
    for process in [&api, &worker] {
        let line = process.unready("schema").await;
        assert!(line.contains("version 0 is older than") && line.contains("rollcall migrate run"), "{line}");
    }

    let url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let migrated = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["migrate", "run"])
        .env("DATABASE_URL", url)
        .output()
        .await
        .unwrap();
    assert!(migrated.status.success());
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "late@example.org").await;
}
