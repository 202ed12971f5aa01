//! What the broker itself dead-letters is collected into the table: at a queue's delivery limit, or by a policy that our
//! arguments cannot forbid. The metric and the line in `/readyz` say why; nothing else does, because such a policy stops
//! nothing.
//!
//! Every worker stands by at that queue, and one is given its messages; each is acknowledged once it is recorded, and
//! recording it twice does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::broker::{FrameDefect, Link, LinkState, Topology};
use common::command::{CommandKeys, Message, MessageProperties};
use common::db::{DatabaseState, Pool, within};
use common::health::{Ability, Health};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use common::telemetry::{amqp_trace_headers, meter};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use sqlx::PgConnection;
use tokio::sync::watch;
use tracing::{error, warn};

use super::broker::BrokerReason;
use super::{BrokerCause, RawMessage, open_letters, record_raw, record_undelivered};
use crate::admission::admit;
use crate::delivery::acknowledge;
use crate::flood::FloodGuard;
use crate::incoming::IncomingMessage;
use crate::instruments::defective_messages;
use crate::progress::{Progress, Tick};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_secs(10);
const OPEN_DEADLINE: Duration = Duration::from_secs(2);
/// What is delivered and not recorded is in no count of the queue.
const PREFETCH: u16 = 1;
/// What closing the channel can take at a stop, and a little more.
const STOP_MARGIN: Duration = Duration::from_millis(1500);
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// The line in `/readyz`, which never fails.
const CHECK: &str = "broker dead letters";

/// The consumer of the broker's dead letters.
pub(crate) struct Collector {
    pub(crate) topology: Topology,
    pub(crate) keys: CommandKeys,
    pub(crate) link: Link,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) pool: Pool,
    pub(crate) progress: Progress,
    /// Of its own: what is no command in this queue pauses no partition.
    pub(crate) guard: FloodGuard,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
}

/// What was collected since the start of the process, by the broker's reason.
struct Tally {
    counts: BTreeMap<BrokerReason, u64>,
    counter: Counter<u64>,
    defective: Counter<u64>,
    /// The line says that they wait.
    waits: bool,
    health: Health,
}

impl Tally {
    fn new(health: Health) -> Self {
        let counter = meter()
            .u64_counter("rollcall.worker.broker_dead_letters")
            .with_description("Messages that the broker dead-lettered, by its reason")
            .build();
        health.register(CHECK, Ability::Write);
        let tally = Self { counts: BTreeMap::new(), counter, defective: defective_messages(), waits: false, health };
        tally.show();
        tally
    }

    fn add(&mut self, reason: BrokerReason) {
        *self.counts.entry(reason).or_default() += 1;
        self.counter.add(1, &[KeyValue::new("reason", reason.code())]);
        self.waits = false;
        self.show();
    }

    fn show(&self) {
        if self.counts.is_empty() {
            return self.health.set(CHECK, Ok("none since the start".to_owned()));
        }
        let lines = self.counts.iter().map(|(reason, count)| format!("{count} {}: {}", reason.code(), reason.advice()));
        self.health.set(CHECK, Ok(format!("since the start {}", lines.collect::<Vec<_>>().join(", "))));
    }

    /// They wait for a reason, until one is recorded or none is left.
    fn wait(&mut self, reason: &str) {
        self.waits = true;
        self.health.set(CHECK, Ok(format!("wait: {reason}")));
    }

    fn nothing_waits(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.show();
        }
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Collector {
    /// Starts the task; it ends when the process stops.
    pub(crate) fn start(self) {
        let shutdown = self.shutdown.clone();
        shutdown.supervise("dead letters", Tier::Front, self.run());
    }

    async fn run(mut self) -> TaskResult {
        let stopping = self.shutdown.clone();
        let mut pause = FIRST_PAUSE;
        let mut tally = Tally::new(self.health.clone());
        loop {
            let opened = tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                opened = self.open() => opened,
            };
            let failure = match opened {
                Err(failure) => failure,
                Ok((channel, mut consumer)) => {
                    let end = tokio::select! {
                        end = self.consume(&channel, &mut consumer, &mut pause, &mut tally) => end,
                        () = stopping.finish_is_near(STOP_MARGIN) => Ok(()),
                    };
                    let _ = tokio::time::timeout(Duration::from_secs(1), channel.close(200, "released".into())).await;
                    let Err(failure) = end else { return Ok(()) };
                    failure
                }
            };
            warn!(reason = chain(&*failure), "the broker's dead letters wait");
            tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    async fn open(&mut self) -> Result<(Channel, Consumer), Failure> {
        // The senders live as long as the process: neither wait can fail.
        let _ = self.database.wait_for(|state| *state == DatabaseState::Up).await;
        let connection = match self.link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.as_deref() {
            Ok(LinkState::Up { connection, .. }) => Arc::clone(connection),
            _ => return Err("the broker is away".into()),
        };
        let opening = async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
            // Acknowledged by hand once recorded; not exclusive, because every worker collects.
            let (queue, options) = (self.topology.dead_letters(), BasicConsumeOptions::default());
            let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
            Ok::<_, lapin::Error>((channel, consumer))
        };
        Ok(tokio::time::timeout(OPEN_DEADLINE, opening).await??)
    }

    async fn consume(
        &self,
        channel: &Channel,
        consumer: &mut Consumer,
        pause: &mut Duration,
        tally: &mut Tally,
    ) -> Result<(), Failure> {
        let mut ticks = self.progress.ticks();
        let mut empty_before = false;
        loop {
            let mut delivery = tokio::select! {
                () = self.shutdown.reached(Phase::Stopping) => return Ok(()),
                Some(tick) = Tick::next(&mut ticks) => {
                    let empty = self.looks_empty(channel).await?;
                    if empty {
                        tally.nothing_waits();
                    }
                    if empty && empty_before {
                        self.progress.nothing_collected(tick);
                    }
                    empty_before = empty;
                    continue;
                }
                delivery = consumer.next() => delivery.ok_or("the broker ended the consumer")??,
            };
            let collected = CollectedMessage {
                cause: BrokerCause::of(delivery.properties.headers().as_ref()),
                message: admit(&mut delivery, &self.keys),
            };
            // A command was accepted, and its client must see what became of it; the rest only fills the table.
            let useless = usize::from(collected.message.id().is_none());
            if let Some(dead) = self.guard.flood(1, useless) {
                let reason = format!("{dead} of the recent ones would be no commands; find out what publishes them");
                tally.wait(&reason);
                return Err(reason.into());
            }
            let mut lease = self.pool.acquire(PATIENCE).await?;
            within(PATIENCE, collect_one(&mut lease, &collected)).await?;
            lease.release().await?;
            self.guard.note(1, useless);
            if let Some(defect) = &collected.message.defect {
                tally.defective.add(1, &[]);
                error!(%defect, "a message among the broker's dead letters that did not arrive whole is a dead letter");
            }
            if !acknowledge(&delivery.acker, false).await? {
                return Err("an acknowledgement came too late for its channel".into());
            }
            let reason = collected.cause.reason();
            warn!(reason = reason.code(), advice = reason.advice(), "recorded a message that the broker had given up");
            tally.add(reason);
            *pause = FIRST_PAUSE;
        }
    }
}

impl Collector {
    /// Whether nothing is ready in the queue; a dead letter that was delivered and is not recorded yet does not count. Each
    /// worker's collector asks, whether or not it is the one that is given the messages.
    async fn looks_empty(&self, channel: &Channel) -> Result<bool, Failure> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asking = channel.queue_declare(self.topology.dead_letters().into(), options, FieldTable::default());
        // A broker that is busy answers later, and the marks move later.
        let Ok(asked) = tokio::time::timeout(OPEN_DEADLINE, asking).await else { return Ok(false) };
        Ok(asked?.message_count() == 0)
    }
}

impl IncomingMessage {
    /// The message of a delivery, whose body is empty afterwards.
    pub(crate) fn take(delivery: &mut Delivery) -> Self {
        let body = std::mem::take(&mut delivery.data);
        let properties = &delivery.properties;
        let repeated = MessageProperties {
            message_id: properties.message_id().as_ref().map(ShortString::as_str),
            kind: properties.kind().as_ref().map(ShortString::as_str),
        };
        let headers = properties.headers().as_ref();
        let message = Self::read(body, repeated, amqp_trace_headers(headers), FrameDefect::of(headers));
        Self { reply_to: properties.reply_to().clone(), ..message }
    }
}

/// A message that the broker gave up.
#[derive(Debug, Clone)]
pub struct CollectedMessage {
    /// What it says.
    pub message: IncomingMessage,
    /// Why it was given up.
    pub cause: BrokerCause,
}

/// Records a message that the broker gave up. What has a readable id is `parked`, unless it was decided before, and holds
/// its user, if that is readable.
///
/// # Errors
/// As the statements give them; then nothing is recorded.
pub async fn collect_one(conn: &mut PgConnection, collected: &CollectedMessage) -> Result<(), sqlx::Error> {
    let CollectedMessage { message, cause } = collected;
    let reason = match &message.content {
        Message::Command(_) => cause.to_string(),
        Message::Unread(unread) => format!("{}; {cause}", unread.reason),
        Message::Raw(reason) => {
            let (payload, reason) = (message.body.as_slice(), format!("{reason}; {cause}"));
            let (trace, defect) = (&message.trace, message.defect.as_ref());
            record_raw(conn, RawMessage { payload, reason: &reason, trace, defect }).await?;
            return Ok(());
        }
    };
    record_undelivered(conn, message, cause.code(), &reason).await?;
    Ok(())
}

/// Starts the task that reports how many letters of the deployment are open; it ends when the process closes.
pub(crate) fn observe_open(shutdown: &Shutdown, pool: Pool, mut database: watch::Receiver<DatabaseState>) {
    let gauge = meter()
        .i64_gauge("rollcall.worker.dead_letters.open")
        .with_description("Open dead letters of the deployment, parked commands included")
        .build();
    let closing = shutdown.clone();
    shutdown.supervise("open dead letters", Tier::Back, async move {
        loop {
            let count = async {
                let _ = database.wait_for(|state| *state == DatabaseState::Up).await;
                let mut lease = pool.acquire(PATIENCE).await.ok()?;
                let open = within(PATIENCE, open_letters(&mut lease)).await.ok()?;
                lease.release().await.ok()?;
                Some(open)
            };
            tokio::select! {
                () = closing.reached(Phase::Closing) => return Ok(()),
                open = count => open.into_iter().for_each(|open| gauge.record(open, &[])),
            }
            tokio::select! {
                () = closing.reached(Phase::Closing) => return Ok(()),
                () = tokio::time::sleep(COUNT_INTERVAL) => {}
            }
        }
    });
}
