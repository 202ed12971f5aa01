//! Keys and tokens over the real executables: made, used, changed, revoked, and what goes on when something is away.

mod issuer;

use std::process::Output;
use std::time::{Duration, Instant};

use local_stack::{Options, Postgres, StopMode};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::Row;

use crate::harness::{Process, System, eventually, problem, stack};
use issuer::{Issuer, Key};

/// What the documents promise is 2 s; the rest is for a busy machine.
const REVOKED_WITHIN: Duration = Duration::from_secs(30);

async fn keys(system: &System, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("keys")
        .args(arguments)
        .env_clear()
        .envs(system.environment.iter().filter(|(name, _)| name == "DATABASE_URL").cloned())
        .output()
        .await
        .unwrap()
}

async fn said(system: &System, arguments: &[&str]) -> String {
    let output = keys(system, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn refused(system: &System, arguments: &[&str]) -> String {
    let output = keys(system, arguments).await;
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A fresh key of this client.
pub(crate) async fn key(system: &System, client: &str, scopes: &str) -> String {
    let said = said(system, &["create", "--client", client, "--scope", scopes]).await;
    let key = said.strip_suffix('\n').unwrap();
    assert!(key.starts_with("rollcall_") && !key.contains('\n'), "the key and nothing else");
    key.to_owned()
}

/// The public part.
fn id(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

/// A client that sends this bearer with every request.
pub(crate) fn bearing(bearer: &str) -> Client {
    let mut value = HeaderValue::from_str(&format!("Bearer {bearer}")).unwrap();
    value.set_sensitive(true);
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    Client::builder().no_proxy().default_headers(headers).build().unwrap()
}

async fn create(client: &Client, api: &Process, email: &str, idempotency_key: &str) -> Response {
    let request =
        client.post(api.url("/v1/users")).header("prefer", "wait=20").header("idempotency-key", idempotency_key);
    request.json(&json!({"email": email, "name": "Test"})).send().await.unwrap()
}

async fn created(client: &Client, api: &Process, email: &str, idempotency_key: &str) -> Value {
    let answer = create(client, api, email, idempotency_key).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    answer.json().await.unwrap()
}

async fn list(client: &Client, api: &Process) -> StatusCode {
    client.get(api.url("/v1/users")).send().await.unwrap().status()
}

/// Under whom the commands are recorded, oldest first.
async fn principals(system: &System) -> Vec<String> {
    let query = "SELECT principal FROM commands ORDER BY position";
    sqlx::query_scalar(query).fetch_all(&mut system.database().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_used_changed_and_revoked() {
    let mut system = System::prepare().await;
    system.set("AUTH", "keys");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let nobody = create(&system.client, &api, "ada@example.org", "1").await;
    assert_eq!(nobody.headers()["www-authenticate"], "Bearer realm=\"rollcall\"");
    problem(nobody, 401, "unauthenticated").await;

    let first = key(&system, "billing", "users:read,users:write").await;
    let billing = bearing(&first);
    let user = created(&billing, &api, "ada@example.org", "1").await;
    let reader = bearing(&key(&system, "report", "users:read").await);
    assert_eq!(list(&reader, &api).await, StatusCode::OK);
    let forbidden = create(&reader, &api, "eve@example.org", "2").await;
    assert_eq!(
        forbidden.headers()["www-authenticate"],
        "Bearer realm=\"rollcall\", error=\"insufficient_scope\", scope=\"users:write\""
    );
    problem(forbidden, 403, "forbidden").await;

    // The client's next key is the same client: a retry is told as one. Another client's idempotency keys are its own.
    let second = key(&system, "billing", "users:read,users:write").await;
    assert_eq!(created(&bearing(&second), &api, "ada@example.org", "1").await["id"], user["id"]);
    let other = bearing(&key(&system, "import", "users:read,users:write").await);
    problem(create(&other, &api, "ada@example.org", "1").await, 409, "email-taken").await;
    assert_ne!(created(&other, &api, "bob@example.org", "3").await["id"], user["id"]);
    assert_eq!(principals(&system).await, ["key:billing", "key:billing", "key:import", "key:import"]);

    let revoked = said(&system, &["revoke", id(&first)]).await;
    assert!(revoked.starts_with(&format!("revoked {} of billing", id(&first))), "{revoked}");
    let revoked_at = Instant::now();
    eventually("the revoked key is refused", async || {
        (list(&billing, &api).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert!(revoked_at.elapsed() < REVOKED_WITHIN, "{:?}", revoked_at.elapsed());
    let dead = create(&billing, &api, "late@example.org", "4").await;
    assert_eq!(dead.headers()["www-authenticate"], "Bearer realm=\"rollcall\", error=\"invalid_token\"");
    problem(dead, 401, "unauthenticated").await;
    assert_eq!(create(&bearing(&second), &api, "ada@example.org", "1").await.status(), StatusCode::CREATED);

    let metrics = system.client.get(api.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("reason=\"revoked_key\""), "{metrics}");
    let log = api.output();
    assert!(log.contains("a request was refused") && log.contains(id(&first)), "refusals are logged with the known id");
    for key in [&first, &second] {
        assert!(!log.contains(&key[20..]), "no part of a secret is logged");
    }
}

/// The attack: a key that may only write had every user shown that it changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_only_write_is_shown_no_user() {
    let mut system = System::prepare().await;
    system.set("AUTH", "keys");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let reader = bearing(&key(&system, "desk", "users:read,users:write").await);
    let writer = bearing(&key(&system, "sync", "users:write").await);
    let user = created(&reader, &api, "hidden@example.org", "1").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let change = json!({"name": "Hidden Too"});
    let rename = || writer.patch(api.url(&path)).json(&change);
    let post = |verb: &str| writer.post(api.url(&format!("{path}/{verb}")));
    let mut waited = vec![(rename(), 2), (post("suspend"), 3), (post("reactivate"), 4)];
    // The same for what changes nothing, and for what is sent again.
    waited.extend([(rename(), 4), (post("suspend").header("idempotency-key", "again"), 5)]);
    waited.push((post("suspend").header("idempotency-key", "again"), 5));
    let body = json!({"email": "other@example.org", "name": "Other"});
    waited.push((writer.post(api.url("/v1/users")).json(&body), 1));
    for (request, version) in waited {
        let answer = request.header("prefer", "wait=20").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["etag"], format!("\"{version}\""));
        assert_eq!(answer.headers()["preference-applied"], "wait=20");
        let text = answer.text().await.unwrap();
        for member in ["example.org", "Hidden", "Other", "created_at"] {
            assert!(!text.contains(member), "{text}");
        }
        let command: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&command["status"], &command["user_version"]), (&json!("succeeded"), &json!(version)));
    }
    problem(writer.get(api.url(&path)).send().await.unwrap(), 403, "forbidden").await;
    let taken = create(&writer, &api, "hidden@example.org", "2").await;
    let taken: Value = taken.json().await.unwrap();
    assert_eq!(taken["type"], "/problems/email-taken");
    assert!(taken.get("id").is_none() && !taken.to_string().contains("example.org"), "{taken}");
    // With the scope the same write shows the user.
    let renamed = reader.patch(api.url(&path)).json(&change).header("prefer", "wait=20").send().await.unwrap();
    assert_eq!(renamed.json::<Value>().await.unwrap()["email"], "hidden@example.org");
}

/// The attack: with the outcome of one command of its own, a client found those of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_on_its_way_is_shown_to_its_principal_alone() {
    let mut system = System::prepare().await;
    system.set("AUTH", "keys");
    let api = system.api().await;
    let alice = bearing(&key(&system, "alice", "users:write").await);
    let bob = bearing(&key(&system, "bob", "users:write").await);
    let carol = bearing(&key(&system, "carol", "users:read").await);
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let accepted = alice.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    let path = accepted.headers()["location"].to_str().unwrap().to_owned();
    let look = async |client: &Client| client.get(api.url(&path)).send().await.unwrap();
    problem(look(&bob).await, 404, "command-not-found").await;
    for client in [&alice, &carol] {
        assert_eq!(look(client).await.json::<Value>().await.unwrap()["status"], "pending");
    }
    // Through another instance, which knows the tags, too.
    let (other, _worker) = tokio::join!(system.api(), system.worker());
    let waited = alice.get(other.url(&path)).header("prefer", "wait=30").send().await.unwrap();
    assert_eq!(waited.json::<Value>().await.unwrap()["status"], "succeeded");
    problem(look(&bob).await, 404, "command-not-found").await;
    assert_eq!(look(&carol).await.json::<Value>().await.unwrap()["type"], "users.create");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_logged_with_where_it_was_and_not_more_than_once_a_second() {
    let issuer = Issuer::start();
    let signer = Key::mint("one");
    issuer.publish(&[&signer]);
    let mut system = System::prepare().await;
    system.set("AUTH", "keys,jwt");
    system.set("AUTH_JWT_ISSUER", &issuer.url());
    system.set("AUTH_JWT_AUDIENCE", "rollcall");
    system.set("AUTH_JWKS", &issuer.key_set_url());
    system.set("TRUSTED_PROXIES", "1");
    let api = system.api().await;
    let started = Instant::now();
    let ask = || system.client.get(api.url("/v1/users")).header("x-forwarded-for", "198.51.100.1, 192.0.2.7").send();
    let first: Value = ask().await.unwrap().json().await.unwrap();
    for _ in 0..200 {
        assert_eq!(ask().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    }
    let ada = bearing(&issuer.token(&signer, "ada@example.org"));
    let history = api.url("/v1/users/01890a5d-ac96-774b-bcce-b302099a8057/history");
    problem(ada.get(history).send().await.unwrap(), 403, "forbidden").await;
    let seconds = usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    let log = api.output();
    let lines: Vec<Value> = log
        .lines()
        .filter(|line| line.contains("a request was refused"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let missing: Vec<_> = lines.iter().filter(|line| line["reason"] == "missing").collect();
    assert!((1..=seconds + 1).contains(&missing.len()), "{} lines in {seconds} s", missing.len());
    assert_eq!(missing[0]["trace_id"], first["trace_id"]);
    assert_eq!(
        (&missing[0]["operation"], &missing[0]["address"]),
        (&json!("GET /v1/users"), &json!("address:192.0.2.7"))
    );
    let forbidden = lines.iter().find(|line| line["reason"] == "insufficient_scope").unwrap();
    assert_eq!(forbidden["operation"], "GET /v1/users/{id}/history");
    assert!(forbidden["who"].as_str().unwrap().starts_with("oidc:sha256:"), "{forbidden}");
    assert!(!log.contains("ada@example.org"), "no address is logged");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_listed_without_their_secrets_and_a_client_has_two_at_most() {
    let system = System::prepare().await;
    assert_eq!(said(&system, &["list"]).await, "no active keys\n");
    let first = key(&system, "billing", "users:read,history:read").await;
    let forever =
        said(&system, &["create", "--client", "billing", "--scope", "users:write", "--never", "--json"]).await;
    let forever: Value = serde_json::from_str(&forever).unwrap();
    assert_eq!((&forever["expires_at"], &forever["scopes"]), (&Value::Null, &json!(["users:write"])));
    let second = forever["key"].as_str().unwrap();

    let third = ["create", "--client", "billing", "--scope", "users:read"];
    let fault = refused(&system, &third).await;
    assert!(
        fault.contains("2 active keys") && fault.contains(&format!("rollcall keys revoke {}", id(&first))),
        "{fault}"
    );
    said(&system, &["revoke", id(&first)]).await;
    let again = said(&system, &["revoke", id(&first)]).await;
    assert!(again.starts_with("revoked "), "twice is once: {again}");
    said(&system, &third).await;
    let brief = said(&system, &["create", "--client", "report", "--scope", "users:read", "--expires-in", "1s"]).await;
    eventually("the brief key has expired", async || {
        let active = said(&system, &["list"]).await;
        (!active.contains(id(&brief))).then_some(())
    })
    .await;

    let active = said(&system, &["list", "--client", "billing"]).await;
    assert_eq!(active.lines().count(), 3, "a heading and two keys: {active}");
    let all = said(&system, &["list", "--all"]).await;
    for (key, state) in [(first.as_str(), "revoked"), (second, "active"), (brief.trim(), "expired")] {
        let line = all.lines().find(|line| line.starts_with(id(key))).unwrap();
        assert!(line.ends_with(state), "{line}");
        assert!(!all.contains(&key[20..]), "{all}");
    }
    let lines = said(&system, &["list", "--all", "--json"]).await;
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let members: Vec<_> = row.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(members, ["client", "created_at", "expires_at", "id", "revoked_at", "scopes", "state"]);
    }
    let stored =
        sqlx::query("SELECT hash, to_json(api_keys)::text AS row FROM api_keys WHERE id = $1").bind(id(second));
    let stored = stored.fetch_one(&mut system.database().await).await.unwrap();
    assert_eq!(stored.get::<Vec<u8>, _>("hash").len(), 32);
    assert!(!stored.get::<String, _>("row").contains(&second[20..]), "only a hash is stored");
    let ends = "SELECT count(*) FROM api_keys WHERE expires_at BETWEEN created_at + interval '89 days' AND created_at + interval '91 days'";
    assert_eq!(system.count(ends).await, 2, "ninety days unless told otherwise");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_with_a_fault_makes_and_revokes_nothing() {
    let system = System::prepare().await;
    let kept = key(&system, "billing", "users:read").await;
    let rows: &[(&[&str], &str)] = &[
        (&["create", "--client", "billing"], "--scope"),
        (&["create", "--scope", "users:read"], "--client"),
        (&["create", "--client", "Billing", "--scope", "users:read"], "a-z"),
        (&["create", "--client", "billing", "--scope", "users"], "history:read"),
        (&["create", "--client", "billing", "--scope", "users:read", "--expires-in", "1y"], "--never"),
        (
            &["create", "--client", "billing", "--scope", "users:read", "--expires-in", "1d", "--never"],
            "cannot be used",
        ),
        (&["revoke"], "ID"),
        (&["revoke", id(&kept), "0000000000"], "number 2"),
    ];
    for (arguments, mend) in rows {
        let fault = refused(&system, arguments).await;
        assert!(fault.contains(mend), "{arguments:?}: {fault}");
    }
    // Somebody pastes the whole key: it is not repeated.
    let fault = refused(&system, &["revoke", &kept]).await;
    assert!(fault.contains("rollcall keys list") && !fault.contains(&kept[20..]), "{fault}");
    assert_eq!(system.count("SELECT count(*) FROM api_keys WHERE revoked_at IS NULL").await, 1);
    assert_eq!(system.count("SELECT count(*) FROM api_keys").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_key_is_served_while_postgresql_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let postgres = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let mut system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    system.set("AUTH", "keys");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let known = bearing(&key(&system, "billing", "users:read,users:write").await);
    created(&known, &api, "before@example.org", "before").await;
    let late = key(&system, "late", "users:read,users:write").await;

    postgres.stop(StopMode::Immediate).unwrap();
    api.unready("database").await;
    // Longer than several loads of the keys.
    let until = Instant::now() + Duration::from_secs(6);
    let mut accepted = 0;
    while Instant::now() < until || accepted < 20 {
        let body = json!({"email": format!("during-{accepted}@example.org"), "name": "During"});
        let answer = known.post(api.url("/v1/users")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        accepted += 1;
    }
    // One that was never seen can be valid or not.
    let unknown = bearing(&late).get(api.url("/v1/users")).send().await.unwrap();
    problem(unknown, 503, "authentication-unavailable").await;
    problem(system.get(&api, "/v1/users").await, 401, "unauthenticated").await;
    let report: Value = system.get(&api, "/readyz").await.json().await.unwrap();
    let line = report["checks"]["keys"].as_str().unwrap();
    assert!(
        line.starts_with("ok: 1 active, from before: ") && line.ends_with("; it counts for an hour at most"),
        "{line}"
    );

    postgres.start().unwrap();
    tokio::join!(api.ready(), worker.ready());
    created(&bearing(&late), &api, "late@example.org", "late").await;
    eventually("everything is applied", async || {
        (system.count("SELECT count(*) FROM users").await == accepted + 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_accepted_through_a_change_of_the_issuers_keys() {
    let issuer = Issuer::start();
    let mut system = System::prepare().await;
    system.set("AUTH", "keys,jwt");
    system.set("AUTH_JWT_ISSUER", &issuer.url());
    system.set("AUTH_JWT_AUDIENCE", "rollcall");
    system.set("AUTH_JWKS", &issuer.key_set_url());
    issuer.away(true);
    let api = system.api_unready();
    let line = api.unready("token-keys").await;
    assert!(line.contains("AUTH_JWKS: the issuer answered 500"), "{line}");
    let (old, next) = (Key::mint("old"), Key::mint("next"));
    issuer.publish(&[&old]);
    let by_old = bearing(&issuer.token(&old, "ada"));
    problem(by_old.get(api.url("/v1/users")).send().await.unwrap(), 503, "authentication-unavailable").await;
    issuer.away(false);
    api.ready().await;
    let _worker = system.worker().await;
    created(&by_old, &api, "ada@example.org", "1").await;

    // The issuer signs with a key that it has only just announced.
    issuer.publish(&[&next]);
    let by_next = bearing(&issuer.token(&next, "bob"));
    eventually("the new key is known", async || (list(&by_next, &api).await == StatusCode::OK).then_some(())).await;
    created(&by_next, &api, "bob@example.org", "1").await;
    assert_eq!(list(&by_old, &api).await, StatusCode::UNAUTHORIZED, "what the issuer took back");
    assert_eq!(principals(&system).await, ["oidc:ada", "oidc:bob"]);

    // It goes away: its keys stay, and an unknown one makes the API ask in vain.
    issuer.away(true);
    let unknown = bearing(&issuer.token(&Key::mint("unheard-of"), "eve"));
    eventually("the issuer was asked again", async || {
        let report: Value = system.get(&api, "/readyz").await.json().await.ok()?;
        let _ = list(&unknown, &api).await;
        report["checks"]["token-keys"].as_str()?.contains("from before").then_some(())
    })
    .await;
    assert_eq!(list(&by_next, &api).await, StatusCode::OK);
    api.ready().await;
    assert_eq!(list(&unknown, &api).await, StatusCode::SERVICE_UNAVAILABLE);
    // Keys work beside tokens.
    assert_eq!(list(&bearing(&key(&system, "billing", "users:read").await), &api).await, StatusCode::OK);
    let log = api.output();
    assert!(!log.contains("eyJ"), "no part of a token is logged");
}
