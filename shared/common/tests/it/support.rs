//! The shared servers, a deployment of one test on the broker, and a bounded wait.

use std::sync::OnceLock;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use local_stack::Stack;
use local_stack::testing::{TestDatabase, broker_prefix, shared_stack};
use rollcall_common::broker::Topology;
use rollcall_common::config::{BrokerSettings, DatabaseSettings, amqp_url, database_url};
use rollcall_common::db;
use rollcall_common::shutdown::Graces;
use rollcall_common::transport::PlaintextHosts;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

/// Long enough for a busy machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// No drain delay, and time enough for what the tests leave in flight.
pub(crate) const GRACES: Graces = Graces { drain: Duration::ZERO, finish: Duration::from_secs(5) };

pub(crate) fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| shared_stack().expect("PostgreSQL and RabbitMQ"))
}

/// Runs `rabbitmqctl` against the shared broker.
pub(crate) async fn ctl(arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        stack().rabbitmq.ctl(&arguments).expect("rabbitmqctl")
    };
    tokio::task::spawn_blocking(run).await.expect("no panic")
}

/// Waits for something that must come true soon.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for an end that must come soon.
pub(crate) async fn soon<T>(what: &str, end: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("never: {what}"))
}

pub(crate) async fn database() -> TestDatabase {
    TestDatabase::create(stack().postgres.url()).await.expect("a database")
}

pub(crate) fn settings(url: &str, connections: usize) -> DatabaseSettings {
    DatabaseSettings { url: database_url(url).expect("a URL"), connections }
}

/// A connection beside the code under test.
pub(crate) async fn connect(url: &str) -> PgConnection {
    db::connect(&settings(url, 1), "witness").await.expect("a connection")
}

/// A database in which no migration has run. Its tables are gone with it.
pub(crate) async fn empty_database() -> TestDatabase {
    let database = database().await;
    let mut connection = connect(database.url()).await;
    let drop_all = "DROP SCHEMA public CASCADE; CREATE SCHEMA public";
    connection.execute(AssertSqlSafe(drop_all.to_owned())).await.expect("an empty schema");
    database
}

/// One deployment on the shared broker; its queues and exchanges go with it.
pub(crate) struct Deployment {
    pub(crate) settings: BrokerSettings,
    pub(crate) topology: Topology,
}

impl Deployment {
    pub(crate) fn new(partitions: u16) -> Self {
        let url = amqp_url(stack().rabbitmq.url()).expect("a URL");
        let settings = BrokerSettings {
            url,
            file: None,
            prefix: broker_prefix(),
            partitions,
            plaintext_hosts: PlaintextHosts::default(),
        };
        Self { topology: Topology::new(&settings), settings }
    }

    /// A name under the deployment's prefix.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.settings.prefix)
    }

    /// Declares its exchanges and queues.
    pub(crate) async fn declared(self) -> Self {
        self.topology.declare(&self.connect().await).await.expect("a topology");
        self
    }

    pub(crate) async fn connect(&self) -> Connection {
        let url = stack().rabbitmq.url();
        Connection::connect(url, ConnectionProperties::default()).await.expect("a connection to the broker")
    }

    async fn remove(topology: Topology) {
        let url = stack().rabbitmq.url();
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        let partitions = (0..topology.partitions()).map(|partition| topology.partition_queue(partition));
        for queue in partitions.chain([topology.dead_letters()]) {
            let _ = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
        }
        for exchange in [
            topology.commands_exchange(),
            topology.events_exchange(),
            topology.replies_exchange(),
            topology.dead_letters(),
        ] {
            let _ = channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
        }
        let _ = connection.close(200, "done".into()).await;
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        let topology = self.topology.clone();
        // A thread with a runtime of its own, because the test's may be ending.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(Self::remove(topology));
        });
        let _ = removing.join();
    }
}

/// The message ids in a queue, in order: everything in front of a marker that is put in last.
pub(crate) async fn drain(channel: &Channel, queue: &str) -> Vec<String> {
    const MARKER: &str = "marker";
    let marker = BasicProperties::default().with_message_id(MARKER.into()).with_delivery_mode(2);
    channel
        .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), &[], marker)
        .await
        .expect("a marker");
    let mut consumer = channel
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .expect("a consumer");
    let mut ids = Vec::new();
    loop {
        let delivery = soon("the marker", consumer.next()).await.expect("an open channel").expect("a delivery");
        delivery.ack(BasicAckOptions::default()).await.expect("an acknowledgement");
        let id = delivery.properties.message_id().as_ref().expect("a message id").to_string();
        if id == MARKER {
            return ids;
        }
        ids.push(id);
    }
}
