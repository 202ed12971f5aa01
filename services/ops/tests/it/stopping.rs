//! SIGTERM under load: in time, exit 0, and no request failed by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use reqwest::{Client, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{System, Writers, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_terminated_under_load_fails_no_request() {
    let mut system = System::prepare().await;
    let _worker = system.worker().await;
    system.set("DRAIN_DELAY_MS", "1000");
    let (mut leaving, staying) = tokio::join!(system.api(), system.api());
    let user = system.create(&staying, "reader@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let (balanced, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let served_by_leaving = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let (balanced, stop, served) = (Arc::clone(&balanced), Arc::clone(&stop), Arc::clone(&served_by_leaving));
            let (leaving, staying, path) = (leaving.url(""), staying.url(""), path.clone());
            tokio::spawn(async move {
                let client = Client::builder().no_proxy().build().unwrap();
                let mut round = 0;
                while !stop.load(Ordering::SeqCst) {
                    round += 1;
                    // As a load balancer does that watches readiness.
                    let to_leaving = balanced.load(Ordering::SeqCst) && round % 2 == 0;
                    let base = if to_leaving { &leaving } else { &staying };
                    let email = format!("load-{number}-{round}@example.org");
                    let wait = if round % 4 == 0 { "wait=10" } else { "handling=strict" };
                    let request = match number % 2 {
                        0 => client.get(format!("{base}{path}")),
                        _ => client
                            .post(format!("{base}/v1/users"))
                            .header("prefer", wait)
                            .json(&json!({"email": email, "name": "Load"})),
                    };
                    let answer = request.send().await.unwrap();
                    assert!(answer.status().is_success(), "{}", answer.status());
                    answer.bytes().await.unwrap();
                    served.fetch_add(usize::from(to_leaving), Ordering::SeqCst);
                }
            })
        })
        .collect();
    eventually("the load runs", async || (served_by_leaving.load(Ordering::SeqCst) > 200).then_some(())).await;

    leaving.signal(Signal::TERM);
    let line = leaving.unready("instance").await;
    assert_eq!(line, "failed: stopping");
    balanced.store(false, Ordering::SeqCst);
    assert!(leaving.ended().await.success());
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_gets_its_202_when_the_api_stops() {
    let system = System::prepare().await;
    // No worker: the outcome cannot come.
    let mut api = system.api().await;
    let (client, url) = (system.client.clone(), api.url("/v1/users"));
    let waiting = tokio::spawn(async move {
        let body = json!({"email": "patient@example.org", "name": "Patient"});
        client.post(url).header("prefer", "wait=30").json(&body).send().await.unwrap()
    });
    let broker = lapin::Connection::connect(&system.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    eventually("the command is published", async || {
        for partition in 0..16 {
            let queue = format!("{}commands.{partition}", system.prefix);
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap();
            if queue.message_count() > 0 {
                return Some(());
            }
        }
        None
    })
    .await;

    api.signal(Signal::TERM);
    let answer = waiting.await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let command: Value = answer.json().await.unwrap();
    assert_eq!(command["status"], "pending");
    assert!(api.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_terminated_under_load_leaves_nothing_half_done() {
    let system = System::prepare().await;
    let api = system.api().await;
    let writers = Writers::start(8, &[api.url("")]);
    for _ in 0..3 {
        let worker = system.worker().await;
        writers.progress(100).await;
        assert!(worker.terminate().await.success());
    }
    let _worker = system.worker().await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_loses_no_broker_before_it_is_done() {
    let system = System::prepare().await;
    let (mut api, mut worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
    for service in [&mut api, &mut worker] {
        service.signal(Signal::TERM);
        assert!(service.ended().await.success());
        let log = service.output();
        assert!(!log.contains("no connection to the broker"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_aborts() {
    let mut system = System::prepare().await;
    system.set("DRAIN_DELAY_MS", "60000");
    let mut api = system.api().await;
    api.signal(Signal::TERM);
    api.unready("instance").await;
    api.signal(Signal::INT);
    // After the whole drain delay it would be 0.
    assert_eq!(api.ended().await.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_batch_hangs_still_stops_in_time_and_loses_nothing() {
    let mut system = System::prepare().await;
    system.set("STOP_DEADLINE_MS", "10000");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let mut lock = system.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE users").execute(&mut lock).await.unwrap();
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let accepted = system.post(&api, "/v1/users", "respond-async", &body).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    let command: Value = accepted.json().await.unwrap();
    eventually("the batch hangs", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'users'::regclass
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (system.count(waiting).await == 1).then_some(())
    })
    .await;
    assert!(worker.terminate().await.success());
    sqlx::raw_sql("COMMIT").execute(&mut lock).await.unwrap();
    let _next = system.worker().await;
    assert_eq!(system.outcome(&api, command["id"].as_str().unwrap()).await["status"], "succeeded");
}
