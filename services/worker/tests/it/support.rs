//! The shared servers, an applier over a database and a broker prefix of its own, and commands in one line.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use common::broker::{LinkState, Publisher, Topology, supervise};
use common::command::{
    Command, CommandId, CreateUser, DeleteUser, Email, Envelope, Name, Principal, ReactivateUser, SuspendUser,
    UpdateUser, UserId,
};
use common::config::{BrokerSettings, DatabaseSettings, IdempotencyWindow, Retention, amqp_url, database_url};
use common::db::{self, Pool};
use common::health::{Health, ReadyWhen};
use common::shutdown::{Graces, Shutdown};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ExchangeDeleteOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use local_stack::Stack;
use local_stack::testing::{TestDatabase, broker_prefix, shared_stack};
use rollcall_worker::apply::{Applier, Fence};
use rollcall_worker::dead_letters::DeadLetters;
use rollcall_worker::users::{Outcome, apply_wave};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// Long enough for a busy machine, short enough for a test that fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long keys count.
pub(crate) const WINDOW: IdempotencyWindow = IdempotencyWindow(Duration::from_hours(24));

fn stack() -> &'static Stack {
    static STACK: OnceLock<Stack> = OnceLock::new();
    STACK.get_or_init(|| shared_stack().expect("PostgreSQL and RabbitMQ"))
}

/// Waits for an end that must come soon.
pub(crate) async fn soon<T>(what: &str, end: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A migrated database with one connection to it.
pub(crate) struct Database {
    pub(crate) conn: PgConnection,
    // Behind the connection: dropped after it.
    database: TestDatabase,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let database = TestDatabase::create(stack().postgres.url()).await.expect("a database");
        let settings = settings(&database, 1);
        Self { conn: db::connect(&settings, "witness").await.expect("a connection"), database }
    }

    /// Applies one wave and gives the outcomes in its order.
    pub(crate) async fn wave(&mut self, wave: &[Envelope]) -> Vec<Outcome> {
        let envelopes: Vec<&Envelope> = wave.iter().collect();
        let mut outcomes = apply_wave(&mut self.conn, &envelopes).await.expect("outcomes");
        let outcomes = in_order(wave, &mut outcomes);
        outcomes.into_iter().map(|outcome| outcome.expect("an outcome for every command")).collect()
    }

    /// Applies one command.
    pub(crate) async fn one(&mut self, command: Envelope) -> Outcome {
        self.wave(&[command]).await.remove(0)
    }

    /// A user's row as a line, or nothing.
    pub(crate) async fn user(&mut self, user: UserId) -> Option<String> {
        let line = "
            SELECT concat_ws(' ', email, name, status, 'v' || version, suspended_at IS NOT NULL)
            FROM users
            WHERE id = $1
        ";
        let line = sqlx::query_scalar(line).bind(uuid::Uuid::from(user));
        line.fetch_optional(&mut self.conn).await.expect("a row")
    }

    /// A decided command's row as a line, or nothing.
    pub(crate) async fn command(&mut self, id: CommandId) -> Option<String> {
        let line = "
            SELECT concat_ws(' ', type, principal, status, coalesce(reason, '-'), 'v' || user_version)
            FROM commands
            WHERE id = $1
        ";
        let line = sqlx::query_scalar(line).bind(uuid::Uuid::from(id));
        line.fetch_optional(&mut self.conn).await.expect("a row")
    }

    pub(crate) async fn count(&mut self, table: &str) -> i64 {
        let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(count).fetch_one(&mut self.conn).await.expect("a count")
    }

    pub(crate) async fn execute(&mut self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut self.conn).await.expect("a statement");
    }

    pub(crate) fn settings(&self, connections: usize) -> DatabaseSettings {
        settings(&self.database, connections)
    }
}

fn settings(database: &TestDatabase, connections: usize) -> DatabaseSettings {
    DatabaseSettings { url: database_url(database.url()).expect("a URL"), connections }
}

/// Everything that an applier needs: a database, and a broker for its dead letters.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) pool: Pool,
    shutdown: Shutdown,
    topology: Topology,
    dead_letters: DeadLetters,
    pub(crate) fence: Fence,
    connection: Connection,
    channel: Channel,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let mut database = Database::create().await;
        let fence = Fence { instance: Uuid::nil(), partition: 0, epoch: 1 };
        database.execute("INSERT INTO partitions VALUES (0, 1, '00000000-0000-0000-0000-000000000000')").await;
        let pool = Pool::new(&database.settings(4), "worker-under-test", &[]).expect("a pool");
        let url = stack().rabbitmq.url();
        let broker = BrokerSettings { url: amqp_url(url).expect("a URL"), prefix: broker_prefix(), partitions: 1 };
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::All, shutdown.clone());
        let mut link = supervise(&shutdown, &health, "broker", &broker);
        let up = |state: &LinkState| matches!(state, LinkState::Up { .. });
        soon("a connection", link.wait_for(up)).await.expect("a link");
        let topology = Topology::new(&broker);
        let dead_letters = DeadLetters::new(Publisher::start(&shutdown, link), &topology);
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        Self { database, pool, shutdown, topology, dead_letters, fence, connection, channel }
    }

    pub(crate) fn applier(&self) -> Applier {
        let retention = Retention(Duration::from_hours(30 * 24));
        let mut applier = Applier::new(self.pool.clone(), self.dead_letters.clone(), retention, WINDOW);
        applier.fence(self.fence);
        applier
    }

    /// Takes everything out of the dead letters: what is in front of a marker that is put in last.
    pub(crate) async fn dead_letters(&self) -> Vec<Delivery> {
        const MARKER: &[u8] = b"marker";
        let queue = self.topology.dead_letters();
        // Of its own, and closed before the consumer is dropped: a cancel is not awaited, so an earlier consumer of the same
        // channel could still take the marker.
        let channel = self.connection.create_channel().await.expect("a channel");
        let (publish, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let marker = channel.basic_publish("".into(), queue.as_str().into(), publish, MARKER, properties);
        marker.await.expect("a marker");
        let consume = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), "".into(), consume, FieldTable::default());
        let mut consumer = consumer.await.expect("a consumer");
        let mut letters = Vec::new();
        loop {
            let letter = soon("the marker", consumer.next()).await.expect("an open channel").expect("a delivery");
            letter.ack(BasicAckOptions::default()).await.expect("an acknowledgement");
            if letter.data == MARKER {
                channel.close(200, "done".into()).await.expect("a close");
                return letters;
            }
            letters.push(letter);
        }
    }

    /// Ends everything; whoever left something in the dead letters should have looked.
    pub(crate) async fn stop(self) {
        assert!(self.dead_letters().await.is_empty(), "dead letters that the test did not look at");
        self.pool.close().await;
        for queue in [self.topology.partition_queue(0), self.topology.dead_letters()] {
            let deleted = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
            assert_eq!(deleted.expect("a deletion"), 0, "messages that nobody looked at");
        }
        for exchange in [self.topology.commands_exchange(), self.topology.dead_letters()] {
            self.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.expect("a deletion");
        }
        self.connection.close(200, "done".into()).await.expect("an end");
        let graces = Graces { drain: Duration::ZERO, finish: Duration::from_secs(5) };
        self.shutdown.stop(graces).await.expect("a good end");
    }
}

/// Each command's outcome in the order of the commands; `None` for one that had been decided before.
pub(crate) fn in_order(commands: &[Envelope], outcomes: &mut HashMap<CommandId, Outcome>) -> Vec<Option<Outcome>> {
    let ordered = commands.iter().map(|envelope| outcomes.remove(&envelope.id)).collect();
    assert!(outcomes.is_empty(), "outcomes of strangers: {outcomes:?}");
    ordered
}

pub(crate) fn envelope(command: Command) -> Envelope {
    Envelope {
        id: CommandId::mint(),
        accepted_at: OffsetDateTime::now_utc(),
        principal: Principal::anonymous(),
        if_match: None,
        idempotency: None,
        command,
    }
}

/// The same command under a condition.
pub(crate) fn if_match(version: i64, envelope: Envelope) -> Envelope {
    Envelope { if_match: Some(version), ..envelope }
}

pub(crate) fn create(user_id: UserId, email: &str, name: &str) -> Envelope {
    let email = Email::parse(email).expect("an address");
    let name = Name::parse(name).expect("a name");
    envelope(Command::CreateUser(CreateUser { user_id, email, name }))
}

pub(crate) fn update(user_id: UserId, email: Option<&str>, name: Option<&str>) -> Envelope {
    let email = email.map(|email| Email::parse(email).expect("an address"));
    let name = name.map(|name| Name::parse(name).expect("a name"));
    envelope(Command::UpdateUser(UpdateUser { user_id, email, name }))
}

pub(crate) fn delete(user_id: UserId) -> Envelope {
    envelope(Command::DeleteUser(DeleteUser { user_id }))
}

pub(crate) fn suspend(user_id: UserId) -> Envelope {
    envelope(Command::SuspendUser(SuspendUser { user_id }))
}

pub(crate) fn reactivate(user_id: UserId) -> Envelope {
    envelope(Command::ReactivateUser(ReactivateUser { user_id }))
}

pub(crate) fn done(version: i64) -> Outcome {
    Outcome::Succeeded(Some(version))
}

/// Succeeded, and left no user.
pub(crate) const GONE: Outcome = Outcome::Succeeded(None);
