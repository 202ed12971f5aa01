//! Servers of a redundant set-up: a synchronous standby that is lost, and a URL that leads to a standby.

use local_stack::{Options, Postgres, StopMode};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::Executor;

use crate::harness::{System, eventually, stack};

/// A system on a server of its own, in a folder that must outlive it.
async fn system() -> (System, Postgres, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let postgres = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    (System::on(postgres.url(), shared.rabbitmq.url()).await, postgres, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_a_synchronous_standby_stops_no_reads() {
    let (system, _postgres, _folder) = system().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "before@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let mut admin = system.database().await;
    admin.execute("CREATE TABLE probe ()").await.unwrap();
    // None is there, so every commit that waits for one waits until this is undone.
    admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("a commit waits", async || {
        let mut waiting = system.database().await;
        let commit = waiting.execute("INSERT INTO probe DEFAULT VALUES");
        tokio::time::timeout(std::time::Duration::from_millis(500), commit).await.is_err().then_some(())
    })
    .await;
    let body = json!({"email": "during@example.org", "name": "During"});
    let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    let now: String = sqlx::query_scalar("SELECT clock_timestamp()::text").fetch_one(&mut admin).await.unwrap();
    eventually("heartbeats go on for longer than a lease", async || {
        let late = "SELECT count(*) FROM members WHERE beat_at > $1::timestamptz + interval '6 seconds'";
        let late: i64 = sqlx::query_scalar(late).bind(&now).fetch_one(&mut admin).await.unwrap();
        (late == 2).then_some(())
    })
    .await;
    assert_eq!(system.get(&api, "/readyz").await.status(), StatusCode::OK);
    assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);
    let id = accepted.json::<serde_json::Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    let pending: serde_json::Value = system.get(&api, &format!("/v1/commands/{id}")).await.json().await.unwrap();
    assert_eq!(pending["status"], "pending", "a change that a failover could undo is reported to nobody");

    admin.execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();
    assert_eq!(system.outcome(&api, &id).await["status"], "succeeded");
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_named_until_it_is_promoted() {
    let (system, postgres, _folder) = system().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "before@example.org").await;
    // In its data folder, as its own account: the server comes back as a standby of nobody.
    system.database().await.execute("COPY (SELECT 1) TO PROGRAM 'cat > standby.signal'").await.unwrap();
    postgres.stop(StopMode::Fast).unwrap();
    postgres.start().unwrap();
    for process in [&api, &worker] {
        eventually("it says what the server is", async || {
            let line = process.unready("database").await;
            line.contains("is a read-only standby; the URL must lead to the primary").then_some(())
        })
        .await;
    }
    system.database().await.execute("SELECT pg_promote()").await.unwrap();
    tokio::join!(api.ready(), worker.ready());
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);
    system.create(&api, "after@example.org").await;
}
