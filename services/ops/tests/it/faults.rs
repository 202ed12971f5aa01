//! Faults that are no outage: a database that refuses writes, sessions that are ended, settings that do not fit, slow clients.

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{System, Writers, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_refuses_writes_the_worker_pauses_and_takes_nothing_out_of_its_queues() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let mut connection = system.database().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut connection).await.unwrap();
    let read_only = async |on: &str| {
        let mut connection = system.database().await;
        for statement in [
            "SET default_transaction_read_only = off".to_owned(),
            format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}"),
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()".to_owned(),
        ] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        }
    };
    let writers = Writers::start(4, &[api.url("")]);
    writers.progress(50).await;

    read_only("on").await;
    let reason = eventually("the worker says why it cannot apply", async || {
        let answer = system.get(&worker, "/readyz").await;
        let problem: Value = answer.json().await.ok()?;
        let line = problem["checks"]["applying"].as_str()?;
        line.starts_with("failed: ").then(|| line.to_owned())
    })
    .await;
    assert!(reason.contains("cannot apply"), "{reason}");
    writers.progress(50).await;

    read_only("off").await;
    tokio::join!(api.ready(), worker.ready());
    writers.progress(20).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_survive_the_end_of_every_session() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "reader@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let warm = (0..20).map(|_| system.get(&api, "/v1/users"));
    futures_util::future::join_all(warm).await;
    let mut connection = system.database().await;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rollcall/%' AND datname = current_database()")
        .execute(&mut connection)
        .await
        .unwrap();
    for _ in 0..10 {
        assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);
        assert_eq!(system.get(&api, "/v1/users").await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_with_another_number_of_partitions_does_not_stay() {
    let mut system = System::prepare().await;
    let _worker = system.worker().await;
    system.set("PARTITIONS", "32");
    let mut misfit = system.api_unready();
    assert_eq!(misfit.ended().await.code(), Some(1));
    let output = misfit.output();
    assert!(output.contains("PARTITIONS is 32 here, but this deployment has 16"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_finishes_its_upload_does_not_spoil_the_stop() {
    let mut system = System::prepare().await;
    system.set("STOP_DEADLINE_MS", "5000");
    let mut api = system.api().await;
    let mut slow = TcpStream::connect(("127.0.0.1", api.port())).await.unwrap();
    let head = "POST /v1/users HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let body = json!({"email": "quick@example.org", "name": "Quick"});
    let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    api.signal(Signal::TERM);
    assert!(api.ended().await.success());
}
