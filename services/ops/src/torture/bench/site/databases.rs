//! Databases of the contenders and their seed.

use common::config::{DatabaseSettings, database_url};
use common::db;
use local_stack::Stack;
use sqlx::{Executor, PgConnection};
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

/// Users that are there before the first round. The n-th has an id that can be computed: a UUIDv7 of the n-th of the last
/// milliseconds.
pub(super) struct Seed {
    pub(super) count: i64,
    /// In milliseconds.
    before_first: i64,
}

impl Seed {
    pub(super) fn new(count: i64) -> Self {
        let now = OffsetDateTime::now_utc();
        let now = now.unix_timestamp() * 1_000 + i64::from(now.millisecond());
        Self { count, before_first: now - count }
    }

    /// Of the n-th user, beginning with 1.
    pub(super) fn id(&self, number: i64) -> Uuid {
        let (time, number) = ((self.before_first + number).unsigned_abs(), number.unsigned_abs());
        Uuid::from_u64_pair((time << 16) | 0x7000, (0x8000 << 48) | number)
    }

    pub(super) async fn users(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO users (id, email, name)
             SELECT
                 (lpad(to_hex($2 + n), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                 'seed-' || n || '@bench.example',
                 'Ada Lovelace'
             FROM generate_series(1, $1) AS n",
        )
        .bind(self.count)
        .bind(self.before_first)
        .execute(&mut *connection)
        .await?;
        connection.execute("VACUUM ANALYZE users").await.map(drop)
    }

    /// Rows of decided commands, all of today and spread over the users: retention has many days, but no day has more.
    pub(super) async fn commands(&self, connection: &mut PgConnection, count: i64) -> sqlx::Result<()> {
        connection
            .execute("SELECT make_command_day((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 1) AS n")
            .await?;
        sqlx::query(
            "INSERT INTO commands (id, user_id, type, principal, accepted_at, status, user_version, position)
             SELECT
                 (lpad(to_hex(midnight.ms + n * 86400000 / ($1 + 1)), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                 (lpad(to_hex($2 + 1 + n % $3), 12, '0') || '70008000' || lpad(to_hex(1 + n % $3), 12, '0'))::uuid,
                 'users.update', 'anonymous', now(), 'succeeded', 2, n
             FROM generate_series(1, $1) AS n,
                 (SELECT (extract(epoch FROM date_trunc('day', now(), 'UTC')) * 1000)::bigint AS ms) AS midnight",
        )
        .bind(count)
        .bind(self.before_first)
        .bind(self.count)
        .execute(&mut *connection)
        .await?;
        connection.execute("VACUUM ANALYZE commands").await.map(drop)
    }
}

/// The tutorial's table, and the same with ids that the publisher chooses.
pub(super) async fn seed_express(connection: &mut PgConnection, users: i64) -> sqlx::Result<()> {
    connection
        .execute(
            "CREATE TABLE users (
                 id serial PRIMARY KEY,
                 name varchar(255) NOT NULL,
                 email varchar(255) NOT NULL UNIQUE,
                 created_at timestamptz NOT NULL DEFAULT now()
             );
             CREATE TABLE queued_users (
                 id uuid PRIMARY KEY,
                 name varchar(255) NOT NULL,
                 email varchar(255) NOT NULL UNIQUE,
                 created_at timestamptz NOT NULL DEFAULT now()
             )",
        )
        .await?;
    sqlx::query(
        "INSERT INTO users (name, email)
         SELECT 'Ada Lovelace', 'seed-' || n || '@bench.example'
         FROM generate_series(1, $1) AS n",
    )
    .bind(users)
    .execute(&mut *connection)
    .await?;
    connection.execute("VACUUM ANALYZE users").await.map(drop)
}

pub(super) async fn connect(stack: &Stack, name: &str) -> anyhow::Result<PgConnection> {
    let url = database_url(&url_of(stack, name)?).map_err(anyhow::Error::msg)?;
    let mut connection = db::connect(&DatabaseSettings { url, connections: 1 }, "rollcall-bench").await?;
    // Counting and seeding take longer than a service's statements may.
    connection.execute("SET statement_timeout = 0").await?;
    Ok(connection)
}

pub(super) fn url_of(stack: &Stack, name: &str) -> anyhow::Result<String> {
    let mut url = Url::parse(stack.postgres.url())?;
    url.set_path(name);
    Ok(url.into())
}
