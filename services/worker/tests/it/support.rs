//! The shared servers, an applier over a database of its own, and commands in one line.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::time::Duration;

use common::command::{
    Command, CommandId, CreateUser, DeleteUser, Digest, Email, Envelope, Idempotency, MessageProperties, Name,
    Principal, ReactivateUser, SuspendUser, UpdateUser, UserId,
};
use common::config::{DatabaseSettings, IdempotencyWindow, Retention, database_url};
use common::db::{self, Pool};
use common::telemetry::TraceHeaders;
use local_stack::Stack;
use local_stack::testing::{TestDatabase, shared_stack};
use rollcall_worker::apply::{Applier, Fence};
use rollcall_worker::dead_letters::{Terms, Traces};
use rollcall_worker::events::record;
use rollcall_worker::flood::FloodGuard;
use rollcall_worker::incoming::IncomingMessage;
use rollcall_worker::users::{Outcome, apply_wave};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// Long enough for a busy machine, short enough for a test that fails.
const PATIENCE: Duration = Duration::from_mins(2);

/// How long keys count.
pub(crate) const WINDOW: IdempotencyWindow = IdempotencyWindow(Duration::from_hours(24));

pub(crate) fn stack() -> &'static Stack {
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
        Self::create_at(stack().postgres.url()).await
    }

    /// On the server of this URL.
    pub(crate) async fn create_at(server: &str) -> Self {
        let database = TestDatabase::create(server).await.expect("a database");
        let settings = settings(&database, 1);
        Self { conn: db::connect(&settings, "witness").await.expect("a connection"), database }
    }

    /// Applies one wave and gives the outcomes in its order.
    pub(crate) async fn wave(&mut self, wave: &[Envelope]) -> Vec<Outcome> {
        let envelopes: Vec<&Envelope> = wave.iter().collect();
        let mut end = apply_wave(&mut self.conn, &envelopes).await.expect("outcomes");
        let changes = end.changes.iter().map(|change| (change, 0)).collect();
        record(&mut self.conn, changes, &Traces::new()).await.expect("events");
        let outcomes = in_order(wave, &mut end.outcomes);
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

    /// A user's events in order, each as its type, version and data without times.
    pub(crate) async fn events(&mut self, user: UserId) -> Vec<String> {
        let rows = "
            SELECT concat_ws(' ', type, 'v' || user_version, data::jsonb - 'created_at' - 'updated_at' - 'suspended_at' - 'id')
            FROM events
            WHERE user_id = $1 AND data ->> 'id' = user_id::text AND (data ->> 'version')::bigint = user_version
            ORDER BY position
        ";
        let rows = sqlx::query_scalar(rows).bind(uuid::Uuid::from(user));
        rows.fetch_all(&mut self.conn).await.expect("rows")
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

/// Everything that an applier needs.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    pub(crate) pool: Pool,
    pub(crate) guard: FloodGuard,
    pub(crate) fence: Fence,
    /// How many the deployment has.
    pub(crate) partitions: u16,
    looked: bool,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        Self::start_at(stack().postgres.url()).await
    }

    /// On the server of this URL.
    pub(crate) async fn start_at(server: &str) -> Self {
        let mut database = Database::create_at(server).await;
        let fence = Fence { instance: Uuid::nil(), partition: 0, epoch: 1 };
        database.execute("INSERT INTO partitions VALUES (0, 1, '00000000-0000-0000-0000-000000000000')").await;
        // Old enough for commands that waited for long.
        let deployment = "
            INSERT INTO deployment
                (partitions, broker_prefix, command_retention_days, idempotency_window_hours, created_at)
            VALUES (1, '', 30, 24, now() - interval '500 days')
        ";
        database.execute(deployment).await;
        let pool = Pool::new(&database.settings(4), "worker-under-test", &[]).expect("a pool");
        Self { database, pool, guard: FloodGuard::default(), fence, partitions: 1, looked: false }
    }

    pub(crate) fn applier(&self) -> Applier {
        let mut applier = Applier::new(self.pool.clone(), self.guard.clone(), WINDOW, self.partitions);
        applier.fence(self.fence);
        applier
    }

    /// Applies a batch and gives the outcomes in its order.
    pub(crate) async fn apply(&self, batch: &[Envelope]) -> Vec<Option<Outcome>> {
        let mut committed = soon("a commit", self.applier().apply(&messages(batch))).await.expect("outcomes");
        in_order(batch, &mut committed.outcomes)
    }

    /// The open letters in order, each as its command with the SQLSTATE and the attempts.
    pub(crate) async fn letters(&mut self) -> Vec<(Option<Uuid>, String)> {
        self.looked = true;
        let rows = "
            SELECT command_id, concat_ws(' ', coalesce(sqlstate, '-'), attempts)
            FROM dead_letters
            WHERE state = 'open'
            ORDER BY id
        ";
        sqlx::query_as(rows).fetch_all(&mut self.database.conn).await.expect("letters")
    }

    /// Ends everything; whoever left something in the dead letters should have looked.
    pub(crate) async fn stop(mut self) {
        let open = self.database.count("dead_letters WHERE state = 'open'").await;
        assert!(self.looked || open == 0, "dead letters that the test did not look at");
        let astray = self.database.count("held_users AS h WHERE NOT EXISTS (SELECT FROM dead_letters AS d WHERE d.user_id = h.user_id AND d.state = 'open')").await;
        assert_eq!(astray, 0, "users that are held for nothing");
        let loose = "dead_letters AS d WHERE d.state = 'open' AND d.user_id IS NOT NULL AND d.user_id NOT IN (SELECT user_id FROM held_users)";
        assert_eq!(self.database.count(loose).await, 0, "letters whose users are not held");
        assert_eq!(self.database.count("suspects").await, 0, "tries that nobody finished");
        self.pool.close().await;
    }
}

pub(crate) const TERMS: Terms = Terms { window: WINDOW, dry_run: false };
pub(crate) const DRY_RUN: Terms = Terms { dry_run: true, ..TERMS };
pub(crate) const RETENTION: Retention = Retention(Duration::from_hours(30 * 24));

/// Raises for one name, like a constraint that nobody thought of.
pub(crate) const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'no user of this name' USING ERRCODE = '22023';
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users
        FOR EACH ROW WHEN (NEW.name = 'Poison') EXECUTE FUNCTION refuse();
";

/// The locks on the users that are waited for. Databases that were copied from one template share their tables' numbers.
pub(crate) const AT_THE_LOCK: &str = "pg_locks WHERE NOT granted AND relation = 'users'::regclass
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Mends what [`TRIGGER`] broke.
pub(crate) const MEND: &str = "DROP TRIGGER refuse ON users";

/// What [`TRIGGER`] makes of a command.
pub(crate) fn poisoned() -> Outcome {
    Outcome::Parked("22023".to_owned())
}

/// Commands as their messages.
pub(crate) fn messages(batch: &[Envelope]) -> Vec<IncomingMessage> {
    batch.iter().map(|envelope| message(&envelope.encode())).collect()
}

/// A message with this body.
pub(crate) fn message(body: &[u8]) -> IncomingMessage {
    IncomingMessage::read(body.to_vec(), MessageProperties::default(), TraceHeaders::default(), None)
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

/// The command under a key, as the API sends it.
pub(crate) fn keyed(key: &str, envelope: Envelope) -> Envelope {
    let key = Digest::of_key(&envelope.principal, key);
    let fingerprint = Digest::of_request(&envelope.command, envelope.if_match);
    Envelope { idempotency: Some(Idempotency { key, fingerprint }), ..envelope }
}

/// The same request, sent again: another command.
pub(crate) fn again(envelope: &Envelope) -> Envelope {
    Envelope { id: CommandId::mint(), accepted_at: OffsetDateTime::now_utc(), ..envelope.clone() }
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
