//! Processes whose wall clock is not the database's. The clock is that of libfaketime, which the dynamic linker puts in front.

use std::path::Path;

use local_stack::{Options, Postgres, StopMode};
use serde_json::json;

use crate::harness::{Process, System, problem, stack};

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
];

/// The library, or a line that says what is not tested.
fn library() -> Option<&'static str> {
    let found = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        eprintln!("skipped: libfaketime is not installed (apt-get install libfaketime)");
    }
    found
}

/// Sets the clock of processes that are started from now on.
fn set_clock(system: &mut System, library: &str, offset: &str) {
    system.set("LD_PRELOAD", library);
    system.set("FAKETIME", offset);
    system.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// A write is refused by name, and the client knows when to come again.
async fn accepts_nothing(system: &System, api: &Process) {
    let body = json!({"email": "early@example.org", "name": "Early"});
    let refused = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    let refused = problem(refused, 503, "not-ready").await;
    assert!(refused["detail"].as_str().unwrap().contains("correct the clock"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_a_wrong_clock_is_not_ready_and_says_why() {
    let Some(library) = library() else { return };
    let mut system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    for offset in ["-2d", "+26h", "+7"] {
        set_clock(&mut system, library, offset);
        let (early, late) = (system.api_unready(), system.worker_unready());
        for process in [&early, &late] {
            let line = process.unready("clock").await;
            assert!(line.contains("they may differ by 5 s"), "{line}");
        }
        accepts_nothing(&system, &early).await;
    }
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "ada@example.org").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_without_the_database_is_noticed() {
    let Some(library) = library() else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let postgres = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let mut system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let offset = folder.path().join("offset");
    std::fs::write(&offset, "+0").unwrap();
    set_clock(&mut system, library, "+0");
    system.environment.retain(|(name, _)| name != "FAKETIME");
    system.set("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap());
    system.set("FAKETIME_NO_CACHE", "1");
    let api = system.api().await;
    postgres.stop(StopMode::Fast).unwrap();
    api.unready("database").await;
    let body = json!({"email": "before@example.org", "name": "Before"});
    let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
    assert_eq!(accepted.status(), 202);

    std::fs::write(&offset, "-2d").unwrap();
    accepts_nothing(&system, &api).await;
    api.unready("clock").await;
    std::fs::write(&offset, "+0").unwrap();
    postgres.start().unwrap();
    api.ready().await;
}
