//! One server is away: the other half of the service goes on, and nothing that was promised is lost.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use local_stack::{Options, Postgres, RabbitMq, StopMode};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::harness::{System, Writers, eventually, problem, stack};

/// Far less than any hang, and far more than the services' own deadlines (under 2 seconds), for a busy machine.
const PROMPT: Duration = Duration::from_secs(30);

/// A server that only this test uses, in a folder that must outlive it.
pub(crate) async fn own<S: Send + 'static>(
    start: fn(Options) -> Result<S, local_stack::Error>,
) -> (S, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let server = tokio::task::spawn_blocking(move || start(options)).await.unwrap().unwrap();
    (server, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_is_away_writes_are_accepted_and_reads_fail_quickly() {
    let (postgres, _folder) = own(Postgres::start_alone).await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "before@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let writers = Writers::start(4, &[api.url("")]);
    writers.progress(50).await;

    postgres.stop(StopMode::Immediate).unwrap();
    for process in [&api, &worker] {
        let line = process.unready("database").await;
        assert!(line.starts_with("failed: "), "{line}");
    }
    for path in [path.as_str(), "/v1/users", "/v1/users?email=a@b.c"] {
        let answer = system.client.get(api.url(path)).timeout(PROMPT).send().await.unwrap();
        assert!(answer.headers().contains_key("retry-after"));
        problem(answer, 503, "database-unavailable").await;
    }
    writers.progress(50).await;
    let body = json!({"email": "during@example.org", "name": "During"});
    let waited = system.post(&api, "/v1/users", "wait=1", &body).await;
    assert_eq!(waited.status(), StatusCode::ACCEPTED, "an outcome that cannot be seen does not undo a promise");

    postgres.start().unwrap();
    tokio::join!(api.ready(), worker.ready());
    writers.progress(20).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "every write gets 202: {:?}", promises.others);
    promises.kept(&system).await;
    assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);
}

/// How many reads find the server away, how many at a time, and how often it may be dialled meanwhile: now and then by each
/// control connection, and not by each read.
const READS: usize = 1000;
const ABREAST: usize = 250;
const DIALS: usize = READS / 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_not_dialled_by_every_read() {
    let (postgres, _folder) = own(Postgres::start_alone).await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let api = system.api().await;
    postgres.stop(StopMode::Immediate).unwrap();

    // Somebody opens and says nothing, as a load balancer does that has no server left.
    let port = url::Url::parse(postgres.url()).unwrap().port().unwrap();
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let answering = tokio::spawn(async move {
        while door.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    api.unready("database").await;
    let before = dials.load(Ordering::SeqCst);
    for _ in 0..READS / ABREAST {
        let reads = (0..ABREAST).map(|_| system.client.get(api.url("/v1/users")).timeout(PROMPT).send());
        for answer in futures_util::future::join_all(reads).await {
            assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let dialled = dials.load(Ordering::SeqCst) - before;
    assert!(dialled <= DIALS, "dialled {dialled} times for {READS} reads");

    answering.abort();
    let _ = answering.await;
    postgres.start().unwrap();
    api.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_ready_when_it_can_do_anything_stays_ready_without_postgresql() {
    let (postgres, _folder) = own(Postgres::start_alone).await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let mut system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let strict = system.api().await;
    system.set("READY_WHEN", "any");
    let lenient = system.api().await;

    postgres.stop(StopMode::Fast).unwrap();
    strict.unready("database").await;
    eventually("the lenient instance knows too", async || {
        let answer = system.get(&lenient, "/readyz").await;
        assert_eq!(answer.status(), StatusCode::OK);
        let report: Value = answer.json().await.unwrap();
        report["checks"]["database"].as_str().unwrap().starts_with("failed: ").then_some(())
    })
    .await;
    postgres.start().unwrap();
    strict.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_rabbitmq_is_away_reads_go_on_and_writes_fail_quickly() {
    let (rabbitmq, _folder) = own(RabbitMq::start_alone).await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(shared.postgres.url(), rabbitmq.url()).await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "before@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let writers = Writers::start(4, &[api.url("")]);
    let rabbitmq = Arc::new(rabbitmq);
    // Stopped in order first, as for an upgrade. It must come first: a broker that is killed within seconds of the birth of
    // a quorum queue can come back with that queue for ever without a leader (seen with RabbitMQ 3.10.8).
    for end in [RabbitMq::stop, RabbitMq::kill] {
        writers.progress(50).await;
        let ending = Arc::clone(&rabbitmq);
        tokio::task::spawn_blocking(move || end(&ending)).await.unwrap().unwrap();
        let line = api.unready("broker").await;
        assert!(line.starts_with("failed: "), "{line}");
        worker.unready("broker, consuming").await;
        assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);
        assert_eq!(system.get(&api, "/v1/users").await.status(), StatusCode::OK);
        let body = json!({"email": "during@example.org", "name": "During"});
        let refused = system.client.post(api.url("/v1/users")).json(&body).timeout(PROMPT).send().await.unwrap();
        assert!(refused.headers().contains_key("retry-after"));
        problem(refused, 503, "broker-unavailable").await;

        let starting = Arc::clone(&rabbitmq);
        tokio::task::spawn_blocking(move || starting.start()).await.unwrap().unwrap();
        // No restart of either service.
        tokio::join!(api.ready(), worker.ready());
        writers.progress(20).await;
    }
    let promises = writers.finish().await;
    let expected = |answer: &String| matches!(answer.as_str(), "503" | "504");
    assert!(promises.others.keys().all(expected), "refused or unknown, nothing else: {:?}", promises.others);
    promises.kept(&system).await;
    drop((api, worker));
    drop(rabbitmq);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_rabbitmq_is_short_of_memory_writes_fail_quickly_and_recover_by_themselves() {
    let (rabbitmq, _folder) = own(RabbitMq::start_alone).await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(shared.postgres.url(), rabbitmq.url()).await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "before@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    let writers = Writers::start(4, &[api.url("")]);
    writers.progress(50).await;

    let rabbitmq = Arc::new(rabbitmq);
    let watermark = async |fraction: &'static str| {
        let rabbitmq = Arc::clone(&rabbitmq);
        let set = move || rabbitmq.ctl(&["set_vm_memory_high_watermark", fraction]);
        tokio::task::spawn_blocking(set).await.unwrap().unwrap();
    };
    watermark("0.00001").await;
    let line = api.unready("broker").await;
    assert!(line.contains("takes no messages for now"), "{line}");
    let body = json!({"email": "during@example.org", "name": "During"});
    let refused = system.client.post(api.url("/v1/users")).json(&body).timeout(PROMPT).send().await.unwrap();
    problem(refused, 503, "broker-unavailable").await;
    assert_eq!(system.get(&api, &path).await.status(), StatusCode::OK);

    watermark("0.9").await;
    tokio::join!(api.ready(), worker.ready());
    writers.progress(50).await;
    let promises = writers.finish().await;
    let expected = |answer: &String| matches!(answer.as_str(), "503" | "504");
    assert!(promises.others.keys().all(expected), "refused or unknown, nothing else: {:?}", promises.others);
    promises.kept(&system).await;
}
