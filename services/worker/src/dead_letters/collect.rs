//! What the broker itself dead-letters (at a queue's delivery limit) is collected into the table.
//!
//! Every worker stands by at that queue, and one is given its messages; each is acknowledged once it is recorded, and
//! recording it twice does nothing.

use std::sync::Arc;
use std::time::Duration;

use common::broker::{Link, LinkState, Topology};
use common::command::Envelope;
use common::config::Retention;
use common::db::{DatabaseState, Pool, within};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use common::telemetry::{TraceHeaders, amqp_trace_headers, meter};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use sqlx::PgConnection;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{DELIVERY_LIMIT, RawMessage, open_letters, record_raw, record_undelivered};
use crate::delivery::{acknowledge, kept};
use crate::progress::{Progress, Tick};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
const PATIENCE: Duration = Duration::from_secs(10);
const OPEN_DEADLINE: Duration = Duration::from_secs(2);
/// Few: it is a rare path, and what a failure returns counts against nobody.
const PREFETCH: u16 = 10;
/// What closing the channel can take at a stop, and a little more.
const STOP_MARGIN: Duration = Duration::from_millis(1500);
const COUNT_INTERVAL: Duration = Duration::from_secs(10);

/// The consumer of the broker's dead letters.
pub(crate) struct Collector {
    pub(crate) topology: Topology,
    pub(crate) link: Link,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) pool: Pool,
    pub(crate) retention: Retention,
    pub(crate) progress: Progress,
    pub(crate) shutdown: Shutdown,
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
        loop {
            let opened = tokio::select! {
                () = stopping.reached(Phase::Stopping) => return Ok(()),
                opened = self.open() => opened,
            };
            let failure = match opened {
                Err(failure) => failure,
                Ok((channel, mut consumer)) => {
                    let end = tokio::select! {
                        end = self.consume(&channel, &mut consumer, &mut pause) => end,
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

    async fn consume(&self, channel: &Channel, consumer: &mut Consumer, pause: &mut Duration) -> Result<(), Failure> {
        let mut ticks = self.progress.ticks();
        loop {
            let delivery = tokio::select! {
                () = self.shutdown.reached(Phase::Stopping) => return Ok(()),
                Some(tick) = Tick::next(&mut ticks) => {
                    self.look(channel, tick).await?;
                    continue;
                }
                delivery = consumer.next() => delivery.ok_or("the broker ended the consumer")??,
            };
            let trace = amqp_trace_headers(delivery.properties.headers().as_ref());
            let mut lease = self.pool.acquire(PATIENCE).await?;
            within(PATIENCE, collect_one(&mut lease, &delivery.data, &trace, self.retention)).await?;
            lease.release().await?;
            if !acknowledge(&delivery.acker, false).await? {
                return Err("an acknowledgement came too late for its channel".into());
            }
            info!("recorded a message that the broker had given up");
            *pause = FIRST_PAUSE;
        }
    }
}

impl Collector {
    /// Reports a queue in which nothing waits: then every dead letter of the broker is recorded. Each worker's collector asks,
    /// whether or not it is the one that is given the messages.
    async fn look(&self, channel: &Channel, tick: Tick) -> Result<(), Failure> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asking = channel.queue_declare(self.topology.dead_letters().into(), options, FieldTable::default());
        // A broker that is busy answers later, and the marks move later.
        let Ok(asked) = tokio::time::timeout(OPEN_DEADLINE, asking).await else { return Ok(()) };
        if asked?.message_count() == 0 {
            self.progress.nothing_collected(tick);
        }
        Ok(())
    }
}

/// Records a message that the broker gave up. A command holds its user and is `parked`, unless it was decided before.
///
/// # Errors
/// As the statements give them; then nothing is recorded.
pub async fn collect_one(
    conn: &mut PgConnection,
    payload: &[u8],
    trace: &TraceHeaders,
    retention: Retention,
) -> Result<(), sqlx::Error> {
    match Envelope::decode(payload) {
        Ok(envelope) if kept(envelope.id, retention) => {
            let reason = "the broker gave it up at the queue's delivery limit";
            record_undelivered(conn, &envelope, DELIVERY_LIMIT, reason, trace).await?;
            Ok(())
        }
        Ok(_) => {
            record_raw(conn, RawMessage { payload, reason: "out of time, and given up by the broker", trace }).await
        }
        Err(fault) => {
            let reason = format!("undecodable, and given up by the broker: {fault}");
            record_raw(conn, RawMessage { payload, reason: &reason, trace }).await
        }
    }
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
