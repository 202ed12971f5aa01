//! A consumer that receives nothing is not healthy, whatever its probes say.

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use crate::harness::{System, Writers};

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_receives_nothing_while_messages_wait_ends_and_another_goes_on() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    system.set("WORKER_STALL_MS", "500");
    let api = system.api().await;
    // A stranger is the single active consumer, and settles nothing.
    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    channel.basic_qos(1, BasicQosOptions::default()).await.unwrap();
    let queue = format!("{}commands.0", system.prefix);
    let options = BasicConsumeOptions::default();
    let stranger = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
    let writers = Writers::start(2, &[api.url("")]);
    writers.progress(20).await;

    let mut worker = system.worker_unready();
    assert_eq!(worker.ended().await.code(), Some(1));
    assert!(worker.output().contains("receives nothing, though messages wait"));

    drop(stranger);
    broker.close(200, "done".into()).await.unwrap();
    let _worker = system.worker().await;
    let promises = writers.finish().await;
    promises.kept(&system).await;
}
