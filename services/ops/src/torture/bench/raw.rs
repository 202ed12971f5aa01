//! Raw limits: PostgreSQL and RabbitMQ without a service in front.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::command::{Command as Change, CommandId, CreateUser, Email, Envelope, Name, Principal, UserId};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use tempfile::NamedTempFile;
use time::OffsetDateTime;
use tokio::process::Command;

use super::generator::{Load, quantile};
use super::site::Site;

/// As many connections as Express has in its pool: more would be slower.
pub(super) const CONNECTIONS: usize = 10;
/// Commands of a set-based batch.
const BATCH: u64 = 200;

pub(super) const SELECT: Script = Script {
    database: "express",
    text: "\\set id random(1, :users)
SELECT id, name, email, created_at FROM users WHERE id = :id;
",
    rows: 1,
};

pub(super) const INSERT: Script = Script {
    database: "express",
    text: "INSERT INTO users (name, email)
VALUES ('Ada Lovelace', md5(random()::text || clock_timestamp()::text) || '@bench.example')
RETURNING id, name, email, created_at;
",
    rows: 1,
};

/// What applying creates has to write: the user, the command's row and the event, in one statement and one commit.
pub(super) const BATCHES: Script = Script {
    database: "bare",
    text: "WITH clock AS (
    SELECT lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') AS hex
),
batch AS MATERIALIZED (
    SELECT (left(hex, 8) || '-' || right(hex, 4) || '-7' || substr(gen_random_uuid()::text, 16))::uuid AS id
    FROM clock, generate_series(1, 200)
),
created AS (
    INSERT INTO users (id, email, name) SELECT id, id || '@bench.example', 'Ada Lovelace' FROM batch
),
decided AS (
    INSERT INTO commands (id, user_id, type, principal, accepted_at, status, user_version, position)
    SELECT id, id, 'users.create', 'anonymous', now(), 'succeeded', 1, 1 FROM batch
)
INSERT INTO events (id, partition, type, user_id, user_version, data)
SELECT
    id, 0, 'users.created', id, 1,
    jsonb_build_object(
        'id', id, 'email', id || '@bench.example', 'name', 'Ada Lovelace', 'status', 'active', 'version', 1,
        'created_at', now(), 'updated_at', now()
    )
FROM batch;
",
    rows: BATCH,
};

/// One transaction of pgbench.
pub(super) struct Script {
    database: &'static str,
    text: &'static str,
    /// What a transaction counts for.
    rows: u64,
}

/// Runs a script by pgbench for some time.
pub(super) async fn pgbench(
    site: &Site,
    script: &Script,
    connections: usize,
    users: i64,
    length: Duration,
) -> anyhow::Result<Load> {
    let file = NamedTempFile::with_suffix(".sql")?;
    std::fs::write(file.path(), script.text)?;
    let program = site.stack.postgres.bin_dir().context("PostgreSQL is not a private one")?.join("pgbench");
    let threads = connections.min(2);
    let output = Command::new(program)
        .args(["--no-vacuum", "--protocol=prepared", &format!("--define=users={users}")])
        .arg(format!("--jobs={threads}"))
        .arg(format!("--client={connections}"))
        .arg(format!("--time={}", length.as_secs()))
        .arg(format!("--file={}", file.path().display()))
        .arg(site.database(script.database)?)
        .kill_on_drop(true)
        .output()
        .await
        .context("pgbench cannot be run; it belongs to PostgreSQL's server packages")?;
    let (text, failure) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "pgbench failed: {failure}");
    let figure_of = |name: &str| -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    let per_second = figure_of("tps = ").with_context(|| format!("pgbench reported no rate: {text}{failure}"))?;
    let seconds = length.as_secs_f64();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of transactions")]
    let answers = (per_second * seconds).round() as u64 * script.rows;
    // It reports a mean latency only.
    Ok(Load { answers, seconds, p50_ms: None, p99_ms: None, errors: 0 })
}

/// Publishes commands as the API does, persistent, to as many quorum queues as there are partitions, and awaits each confirm;
/// so many are in flight.
pub(super) async fn publishes(site: &Site, in_flight: usize, length: Duration) -> anyhow::Result<Load> {
    let connection = Connection::connect(site.stack.rabbitmq.url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let queues: Vec<String> = (0..site.partitions()).map(|number| format!("bench.raw.{number}")).collect();
    for queue in &queues {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue.as_str().into(), durable, arguments).await?;
    }
    let body = command()?.encode();
    let mut confirms = FuturesUnordered::new();
    let mut latencies = Vec::new();
    let (began, mut cycle) = (Instant::now(), queues.iter().cycle());
    while began.elapsed() < length {
        while confirms.len() < in_flight {
            let queue = cycle.next().context("there is no partition")?;
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_message_id(CommandId::mint().to_string().into())
                .with_content_type("application/json".into());
            let published = channel
                .basic_publish("".into(), queue.as_str().into(), BasicPublishOptions::default(), &body, properties)
                .await?;
            let sent = Instant::now();
            confirms.push(async move { published.await.map(|confirm| (confirm, sent.elapsed())) });
        }
        if let Some(confirmed) = confirms.next().await {
            let (confirm, latency) = confirmed?;
            ensure!(confirm.is_ack(), "the broker refused a message");
            latencies.push(latency);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(confirms);
    for queue in &queues {
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    }
    connection.close(200, "done".into()).await?;
    latencies.sort_unstable();
    Ok(Load {
        answers: latencies.len() as u64,
        seconds,
        p50_ms: Some(quantile(&latencies, 50)),
        p99_ms: Some(quantile(&latencies, 99)),
        errors: 0,
    })
}

fn command() -> anyhow::Result<Envelope> {
    let email =
        Email::parse("b0123456789abcdef-1-12345@bench.example").map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
    let name = Name::parse("Ada Lovelace").map_err(|fault| anyhow::anyhow!("{fault:?}"))?;
    Ok(Envelope {
        id: CommandId::mint(),
        accepted_at: OffsetDateTime::now_utc(),
        principal: Principal::anonymous(),
        if_match: None,
        idempotency: None,
        command: Change::CreateUser(CreateUser { user_id: UserId::mint(), email, name }),
    })
}
