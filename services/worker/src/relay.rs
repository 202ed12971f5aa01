//! Publishes the change events of the partitions that this worker owns: at least once, each user's in order.
//!
//! # Why are a user's events published one after the other?
//! A broker can refuse one message of a batch and take the next. So the next event of a user is not sent before the one
//! before was confirmed: whatever is repeated, each event's first message comes after those of the user's earlier events.
//!
//! # What if a subscriber's queue refuses?
//! A queue that is full and has `x-overflow=reject-publish` makes the broker refuse an event that other queues have stored. So
//! only the events of that user wait, with exponential backoff, and those of others go on. After `EVENT_RETRY_SECONDS` the
//! event counts as published: it is stored wherever it could be, and a subscriber that refuses for longer holds up
//! neither the user nor the others. See `refusals`.
//!
//! # Why is the ownership read with the events?
//! The rows are the truth, so no lease has to be watched here. When a partition changes hands in the middle, both owners
//! may publish the same events, each in order: repetitions, which subscribers tell by their ids.

mod refusals;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::broker::{Message, PublishError, PublisherPool};
use common::db::{DatabaseState, DbError, Pool, within};
use common::event::{self, CloudEvent};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use common::telemetry::meter;
use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry::metrics::{Counter, Gauge};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tracing::warn;
use uuid::Uuid;

use self::refusals::Refusals;

/// Events that are handed to the publishers at once: fewer than the places of one.
const AT_ONCE: usize = 1000;
/// Events of each partition that are read at once.
const BATCH: i64 = 100;
/// Between looks for events that nobody told of: of an earlier owner, or of a replay.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// For a connection, and again for the statement.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before the end of a stop's grace.
const STOP_MARGIN: Duration = Duration::from_millis(500);
/// AMQP delivery mode: kept over a restart of the broker.
const PERSISTENT: u8 = 2;

/// The relay's parts.
pub(crate) struct Relay {
    pub(crate) instance: Uuid,
    pub(crate) exchange: String,
    pub(crate) source: String,
    /// How long an event is tried that a subscriber's queue refuses.
    pub(crate) patience: Duration,
    pub(crate) pool: Pool,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) publishers: PublisherPool,
    /// Told of after each commit.
    pub(crate) committed: Arc<Notify>,
    pub(crate) shutdown: Shutdown,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("failed to read or mark events")]
    Database(#[from] DbError),
    #[error("failed to publish an event")]
    Publish(#[from] PublishError),
}

struct Event {
    position: i64,
    id: Uuid,
    partition: i32,
    kind: String,
    user_id: Uuid,
    data: serde_json::Value,
    occurred_at: OffsetDateTime,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

struct Instruments {
    published: Counter<u64>,
    refused: Counter<u64>,
    let_go: Counter<u64>,
    oldest_age: Gauge<f64>,
}

impl Relay {
    /// Starts the task; it ends when the process stops, and what is left is the next owner's.
    pub(crate) fn start(self) {
        let shutdown = self.shutdown.clone();
        shutdown.supervise("events", Tier::Front, self.run());
    }

    async fn run(mut self) -> TaskResult {
        let stopping = self.shutdown.clone();
        let instruments = Instruments::new();
        let mut pause = FIRST_PAUSE;
        let mut refusals = Refusals::new(self.patience);
        loop {
            tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                // The sender lives as long as the process: the wait cannot fail.
                _ = self.database.wait_for(|state| *state == DatabaseState::Up) => {}
            }
            let published = tokio::select! {
                published = self.publish_some(&instruments, &mut refusals) => published,
                // What was confirmed and is not marked yet is published again.
                () = stopping.finish_is_near(STOP_MARGIN) => return Ok(()),
            };
            let wait = match published {
                Ok(more) => {
                    pause = FIRST_PAUSE;
                    if more { Duration::ZERO } else { POLL_INTERVAL }
                }
                Err(failure) => {
                    warn!(reason = chain(&failure), "events wait");
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
                }
            };
            let failing = wait > POLL_INTERVAL;
            tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                () = tokio::time::sleep(wait) => {}
                () = self.committed.notified(), if !failing => {}
            }
        }
    }

    /// Publishes what is waiting, up to a batch; says whether there may be more.
    async fn publish_some(&self, instruments: &Instruments, refusals: &mut Refusals) -> Result<bool, Failure> {
        let events = self.pending(&refusals.waiting()).await?;
        let oldest = events.iter().map(|event| event.occurred_at).chain(refusals.oldest()).min();
        instruments.oldest_age.record(oldest.map_or(0.0, |at| (OffsetDateTime::now_utc() - at).as_seconds_f64()), &[]);
        let full = i64::try_from(events.len()).is_ok_and(|number| number >= BATCH);
        #[cfg(feature = "mutants")]
        let events = crate::mutants::relayed(events);
        let (mut refused, mut let_go) = (HashSet::new(), 0_u32);
        for mut wave in waves(events).into_iter().flat_map(|wave| parts(wave, AT_ONCE)) {
            // What a user's refused event is followed by waits behind it.
            wave.retain(|event| !refused.contains(&event.user_id));
            let answers = join_all(wave.iter().map(|event| self.publish(event))).await;
            let mut settled = Vec::with_capacity(wave.len());
            let mut failure = None;
            for (event, answer) in wave.into_iter().zip(answers) {
                match answer {
                    Ok(()) => {
                        refusals.accepted(event.user_id);
                        settled.push(event.position);
                    }
                    Err(PublishError::Refused) => {
                        instruments.refused.add(1, &[]);
                        if refusals.refused(event.user_id, event.occurred_at) {
                            instruments.let_go.add(1, &[]);
                            let_go += 1;
                            settled.push(event.position);
                        } else {
                            refused.insert(event.user_id);
                        }
                    }
                    Err(error) => failure = Some(error),
                }
            }
            instruments.published.add(u64::try_from(settled.len()).unwrap_or_default(), &[]);
            self.mark(&settled).await?;
            if let Some(error) = failure {
                return Err(error.into());
            }
            if self.shutdown.phase() >= Phase::Stopping {
                return Ok(false);
            }
        }
        if !refused.is_empty() {
            warn!(users = refused.len(), "a subscriber's queue refuses events of these users, which are tried again");
        }
        if let_go > 0 {
            warn!(events = let_go, "events count as published that a subscriber's queue refused");
        }
        Ok(full)
    }

    /// The next events of the partitions that this instance owns, without those of users that wait.
    async fn pending(&self, waiting: &[Uuid]) -> Result<Vec<Event>, DbError> {
        let mut lease = self.pool.acquire(PATIENCE).await?;
        let reading = sqlx::query_as!(
            Event,
            r#"
            SELECT
                position, id, partition, type AS kind, user_id, data, occurred_at, traceparent, tracestate
            FROM partitions
            CROSS JOIN LATERAL (
                SELECT position, id, partition, type, user_id, data, occurred_at, traceparent, tracestate
                FROM events
                WHERE events.partition = partitions.number AND published_at IS NULL AND user_id <> ALL($3)
                ORDER BY position
                LIMIT $2
            ) AS pending
            WHERE partitions.owner = $1
            ORDER BY position
            "#,
            self.instance,
            BATCH,
            waiting,
        );
        let events = within(PATIENCE, reading.fetch_all(&mut *lease)).await?;
        lease.release().await?;
        Ok(events)
    }

    async fn publish(&self, event: &Event) -> Result<(), PublishError> {
        let partition = u16::try_from(event.partition).unwrap_or_default();
        self.publishers.of(partition).publish(self.message(event)).await
    }

    fn message(&self, event: &Event) -> Message {
        let mut headers = FieldTable::default();
        for (name, value) in [("traceparent", &event.traceparent), ("tracestate", &event.tracestate)] {
            if let Some(value) = value {
                headers.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
            }
        }
        let kind = event.kind.clone();
        let cloud = CloudEvent {
            time: event.occurred_at,
            traceparent: event.traceparent.clone(),
            tracestate: event.tracestate.clone(),
            ..CloudEvent::new(event.id, self.source.clone(), kind.clone(), event.user_id, event.data.clone())
        };
        let properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(event::CONTENT_TYPE.into())
            .with_type(kind.as_str().into())
            .with_app_id("rollcall-worker".into())
            .with_timestamp(u64::try_from(event.occurred_at.unix_timestamp()).unwrap_or_default())
            .with_headers(headers);
        Message {
            exchange: self.exchange.clone(),
            routing_key: kind,
            id: event.id.to_string(),
            properties,
            body: cloud.encode(),
            // Nobody has to subscribe.
            mandatory: false,
        }
    }

    async fn mark(&self, positions: &[i64]) -> Result<(), DbError> {
        if positions.is_empty() {
            return Ok(());
        }
        let mut lease = self.pool.acquire(PATIENCE).await?;
        let marking = sqlx::query!("UPDATE events SET published_at = now() WHERE position = ANY($1)", positions);
        within(PATIENCE, marking.execute(&mut *lease)).await?;
        lease.release().await?;
        Ok(())
    }
}

/// Publishers take only so many at once.
fn parts(mut wave: Vec<Event>, most: usize) -> Vec<Vec<Event>> {
    let mut parts = Vec::new();
    while wave.len() > most {
        let rest = wave.split_off(most);
        parts.push(std::mem::replace(&mut wave, rest));
    }
    parts.push(wave);
    parts
}

/// The n-th event of each user in the n-th wave.
fn waves(events: Vec<Event>) -> Vec<Vec<Event>> {
    let mut next_of_user: HashMap<Uuid, usize> = HashMap::new();
    let mut waves: Vec<Vec<Event>> = Vec::new();
    for event in events {
        let wave = next_of_user.entry(event.user_id).or_default();
        if waves.len() == *wave {
            waves.push(Vec::new());
        }
        waves[*wave].push(event);
        *wave += 1;
    }
    waves
}

impl Instruments {
    fn new() -> Self {
        let meter = meter();
        Self {
            published: meter
                .u64_counter("rollcall.worker.events.published")
                .with_description("Change events that count as published")
                .build(),
            refused: meter
                .u64_counter("rollcall.worker.events.refused")
                .with_description("Change events that a subscriber's queue refused, each try counted")
                .build(),
            let_go: meter
                .u64_counter("rollcall.worker.events.undelivered")
                .with_description(
                    "Change events that count as published although a subscriber's queue refused them to the end",
                )
                .build(),
            oldest_age: meter
                .f64_gauge("rollcall.worker.events.oldest.age")
                .with_unit("s")
                .with_description(
                    "Age of the oldest change event of this worker's partitions that is not published yet",
                )
                .build(),
        }
    }
}
