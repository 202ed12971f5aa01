//! Workers share the partitions: fairly, stickily, one at a time, and past no freeze.

use std::collections::BTreeMap;

use rustix::process::Signal;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::harness::{Process, System, Writers, eventually};
use crate::proxy::Proxy;

const PARTITIONS: i64 = 16;

/// How many partitions each living worker owns, once nothing is on its way.
async fn settled(connection: &mut PgConnection, workers: usize) -> BTreeMap<Uuid, i64> {
    eventually(&format!("{workers} workers have their share"), async || {
        let shares: Vec<(Option<Uuid>, i64)> = sqlx::query_as(
            "SELECT owner, count(*) FROM partitions WHERE heir IS NULL AND owner IS NOT NULL GROUP BY owner",
        )
        .fetch_all(&mut *connection)
        .await
        .unwrap();
        let shares: BTreeMap<Uuid, i64> = shares.into_iter().filter_map(|(owner, n)| Some((owner?, n))).collect();
        let fair = shares.values().max()? - shares.values().min()? <= 1;
        (shares.len() == workers && shares.values().sum::<i64>() == PARTITIONS && fair).then_some(shares)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_partitions_while_they_join_leave_and_die_under_load() {
    let system = System::prepare().await;
    let api = system.api().await;
    let mut connection = system.database().await;
    let writers = Writers::start(8, &[api.url("")]);

    let first = system.worker().await;
    let alone = settled(&mut connection, 1).await;
    let second = system.worker().await;
    let third = system.worker().await;
    let three = settled(&mut connection, 3).await;
    assert!(three.contains_key(alone.keys().next().unwrap()), "the first keeps a share");
    writers.progress(50).await;

    assert!(second.terminate().await.success());
    settled(&mut connection, 2).await;
    writers.progress(50).await;
    third.kill();
    settled(&mut connection, 1).await;
    writers.progress(50).await;

    let fourth = system.worker().await;
    settled(&mut connection, 2).await;
    first.kill();
    settled(&mut connection, 1).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&system).await;
    drop(fourth);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_reach_the_broker_leaves_the_partitions_to_those_who_do() {
    let mut system = System::prepare().await;
    let api = system.api().await;
    let near = system.worker().await;
    let broker = system.environment.iter().find(|(name, _)| name == "AMQP_URL").unwrap().1.parse().unwrap();
    let network = Proxy::start(&broker).await.unwrap();
    system.set("AMQP_URL", network.url(&broker).as_str());
    let far = system.worker().await;
    let mut connection = system.database().await;
    settled(&mut connection, 2).await;
    let writers = Writers::start(8, &[api.url("")]);
    writers.progress(50).await;

    // It is alive, and beats.
    network.silence();
    network.cut();
    settled(&mut connection, 1).await;
    far.unready("broker, consuming").await;
    let members: i64 = sqlx::query_scalar("SELECT count(*) FROM members").fetch_one(&mut connection).await.unwrap();
    assert_eq!(members, 3);
    writers.progress(50).await;

    network.open();
    settled(&mut connection, 2).await;
    writers.progress(50).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&system).await;
    drop((near, far));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_frozen_past_its_lease_commits_nothing_and_joins_again() {
    let system = System::prepare().await;
    let api = system.api().await;
    let mut connection = system.database().await;
    let frozen = system.worker().await;
    let writers = Writers::start(8, &[api.url("")]);
    writers.progress(100).await;
    frozen.signal(Signal::STOP);
    let heir = system.worker_unready();
    settled(&mut connection, 1).await;
    writers.progress(100).await;

    frozen.signal(Signal::CONT);
    tokio::join!(frozen.ready(), heir.ready());
    settled(&mut connection, 2).await;
    writers.progress(100).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(&system).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_another_number_of_partitions_does_not_start() {
    let mut system = System::prepare().await;
    let first = system.worker().await;
    system.set("PARTITIONS", "8");
    let mut misfit: Process = system.worker_unready();
    assert_eq!(misfit.ended().await.code(), Some(1));
    let output = misfit.output();
    assert!(output.contains("PARTITIONS is 8 here, but this deployment has 16"), "{output}");
    first.ready().await;
}
