//! kill -9 of either service, again and again, under a stream of writes.

use crate::harness::{Process, System, Writers};

const KILLS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_loses_nothing_and_repeats_nothing() {
    let system = System::prepare().await;
    let api = system.api().await;
    let writers = Writers::start(8, &[api.url("")]);
    for _ in 0..KILLS {
        let worker = system.worker_unready();
        // In the middle of its work.
        let applied = system.count("SELECT count(*) FROM commands").await;
        crate::harness::eventually("the worker applies", async || {
            (system.count("SELECT count(*) FROM commands").await > applied).then_some(())
        })
        .await;
        writers.progress(20).await;
        worker.kill();
    }
    let _worker = system.worker().await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "the API was never away: {:?}", promises.others);
    promises.kept(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_is_killed_keeps_every_promise_that_it_gave() {
    let system = System::prepare().await;
    let _worker = system.worker().await;
    let mut api = system.api().await;
    let port = api.port();
    let writers = Writers::start(8, &[api.url("")]);
    for _ in 0..KILLS {
        writers.progress(40).await;
        api.kill();
        api = Process::start_on(port, "api", "PORT", |port| port.to_string(), &system.environment);
    }
    writers.progress(40).await;
    let promises = writers.finish().await;
    promises.kept(&system).await;
}
