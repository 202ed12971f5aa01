//! Decided-through marks: up to when every command that was accepted for a partition is decided.
//!
//! A broker can lose a command that it has confirmed: by a `message-ttl` policy, a queue that is deleted or purged, a disk
//! that is restored. A database can lose the row of one that was applied: by a failover to a replica that lagged. Neither
//! tells the services. With the marks the API can say so: a command that was accepted before the lowest mark of all
//! partitions, and has no row, is neither applied nor waiting (`unknown`).
//!
//! # When does a mark move?
//! Every [`INTERVAL`] is a *tick*, with the time of the database. After each, a partition asks how many messages are ready
//! in its queue. What entered the queue before the tick of one look is decided
//! - when a later look finds nothing ready in between and nothing unsettled on this channel. Two looks, because the broker
//!   may answer the first before it sends what it has taken out of the queue already; it sends that before the second answer;
//! - or, under a load that never pauses, once as many deliveries were settled as were ready and could be under way.
//!
//! Then the mark becomes the time of that tick less a margin (`UNKNOWN_AFTER_SECONDS`). The margin covers what lies between
//! the minting of an id, by the clock of an API, and the arrival of its message: the difference of the clocks, which
//! readiness bounds, and the deadline of a publish.
//!
//! # What keeps a mark from moving too far?
//! - A look counts only while this channel is the queue's single consumer: another one may hold messages that were delivered
//!   to it, and no count shows them.
//! - What the broker dead-letters is waiting, too: after the look by which the queue was decided, the collector must have found
//!   that queue empty at two ticks. A dead letter whose recording takes longer than both is `unknown` until it is recorded.
//! - A partition that is paused or has no owner does not move; neither does one that this instance no longer owns.
//! - A message that arrives all the same, such as one of a publish without a confirm that a memory alarm held back, is applied;
//!   its row takes precedence over the mark.

mod queue;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::db::{DatabaseState, DbError, Pool, within};
use common::health::{Ability, Health};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};
use uuid::Uuid;

pub(crate) use queue::{Depth, QueueWatch};

const INTERVAL: Duration = Duration::from_secs(2);
/// For a connection, and again for the statement.
const PATIENCE: Duration = Duration::from_secs(5);
const CHECK: &str = "replication";

/// One tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tick {
    number: u64,
    /// By the database's clock.
    at: OffsetDateTime,
}

impl Tick {
    /// Waits for the next one; `None` when the process closes.
    pub(crate) async fn next(ticks: &mut watch::Receiver<Option<Self>>) -> Option<Self> {
        ticks.changed().await.ok()?;
        *ticks.borrow_and_update()
    }
}

/// What the partitions and the collector report to, and the ticks that they follow. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    ticks: watch::Receiver<Option<Tick>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    decided_through: BTreeMap<u16, OffsetDateTime>,
    /// The last tick after which the queue of the broker's dead letters was empty.
    nothing_collected: u64,
}

/// The task that ticks and writes.
pub(crate) struct ProgressWriter {
    pub(crate) instance: Uuid,
    pub(crate) margin: Duration,
    pub(crate) pool: Pool,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
}

impl ProgressWriter {
    /// Starts the task; it ends when the process closes.
    pub(crate) fn start(self) -> Progress {
        self.health.register(CHECK, Ability::Write);
        self.health.set(CHECK, Ok("not looked yet".to_owned()));
        let (sender, ticks) = watch::channel(None);
        let progress = Progress { ticks, seen: Arc::default() };
        let shutdown = self.shutdown.clone();
        shutdown.supervise("progress", Tier::Back, self.run(progress.clone(), sender));
        progress
    }

    async fn run(mut self, progress: Progress, ticks: watch::Sender<Option<Tick>>) -> TaskResult {
        let closing = self.shutdown.clone();
        let mut asynchronous = false;
        for number in 1.. {
            tokio::select! {
                () = closing.reached(Phase::Closing) => break,
                () = sleep(INTERVAL) => {}
            }
            let writing = async {
                // The sender lives as long as the process: the wait cannot fail.
                let _ = self.database.wait_for(|state| *state == DatabaseState::Up).await;
                self.write(&progress.take()).await
            };
            tokio::select! {
                () = closing.reached(Phase::Closing) => break,
                at = writing => match at {
                    Ok((at, replication)) => {
                        ticks.send_replace(Some(Tick { number, at }));
                        let before = std::mem::replace(&mut asynchronous, replication.asynchronous());
                        if asynchronous && !before {
                            warn!(%replication, "acknowledged writes would not survive a failover");
                        }
                        self.health.set(CHECK, Ok(replication.to_string()));
                    }
                    // The marks move later. Other tasks report a database that is away.
                    Err(error) => debug!(reason = chain(&error), "the marks of the partitions were not written"),
                },
            }
        }
        Ok(())
    }

    /// Moves the marks of the partitions that this instance owns; gives the database's time and its replication.
    async fn write(
        &self,
        decided_through: &BTreeMap<u16, OffsetDateTime>,
    ) -> Result<(OffsetDateTime, Replication), DbError> {
        let (numbers, times): (Vec<i32>, Vec<OffsetDateTime>) =
            decided_through.iter().map(|(number, at)| (i32::from(*number), *at)).unzip();
        let mut lease = self.pool.acquire(PATIENCE).await?;
        // Never waits for a row: what is locked by a redistribution is for the next tick. Nor does it wait for a standby with
        // locks that a redistribution waits for: a mark that a failover undoes is only older.
        let writing = sqlx::query!(
            r#"
            WITH seen AS (
                SELECT number, decided_through
                FROM unnest($2::integer[], $3::timestamptz[]) AS seen (number, decided_through)
            ),
            owned AS (
                SELECT number
                FROM partitions
                WHERE owner = $1 AND number = ANY($2)
                FOR NO KEY UPDATE SKIP LOCKED
            ),
            moved AS (
                UPDATE partitions
                SET decided_through =
                    greatest(partitions.decided_through, seen.decided_through - make_interval(secs => $4))
                FROM owned
                JOIN seen USING (number)
                WHERE partitions.number = owned.number
            )
            SELECT
                set_config('synchronous_commit', 'local', true) AS "commit!",
                now() AS "at!",
                current_setting('synchronous_standby_names') AS "synchronous!",
                (SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'pg_basebackup') AS "replicas!"
            "#,
            self.instance,
            &numbers,
            &times,
            self.margin.as_secs_f64(),
        );
        let row = within(PATIENCE, writing.fetch_one(&mut *lease)).await?;
        lease.release().await?;
        Ok((row.at, Replication { synchronous: row.synchronous, replicas: row.replicas }))
    }
}

/// What every role may see of the server's replication.
struct Replication {
    /// The replicas that commits wait for.
    synchronous: String,
    /// Those that are attached.
    replicas: i64,
}

impl Replication {
    fn asynchronous(&self) -> bool {
        self.synchronous.trim().is_empty() && self.replicas > 0
    }
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { synchronous, replicas } = self;
        if self.asynchronous() {
            return write!(
                f,
                "warning: {replicas} replication client(s) attached and synchronous_standby_names is empty; a failover to a \
                 standby among them loses acknowledged writes; set it, for example to 'ANY 1 (*)'"
            );
        }
        match replicas {
            0 => f.write_str("no replica is attached"),
            _ => write!(f, "{replicas} replica(s) attached; commits wait for {synchronous}"),
        }
    }
}

impl Progress {
    /// The ticks from now on.
    pub(crate) fn ticks(&self) -> watch::Receiver<Option<Tick>> {
        self.ticks.clone()
    }

    /// The latest tick.
    pub(crate) fn latest(&self) -> Option<Tick> {
        *self.ticks.borrow()
    }

    /// Everything that was accepted for a partition before this is decided.
    pub(crate) fn decided(&self, partition: u16, through: OffsetDateTime) {
        self.lock().decided_through.insert(partition, through);
    }

    /// The queue of the broker's dead letters was found empty after this tick, and after the one before.
    pub(crate) fn nothing_collected(&self, tick: Tick) {
        self.lock().nothing_collected = tick.number;
    }

    /// Whether that was so after a later tick than this one.
    fn nothing_collected_since(&self, tick: Tick) -> bool {
        self.lock().nothing_collected > tick.number
    }

    fn take(&self) -> BTreeMap<u16, OffsetDateTime> {
        std::mem::take(&mut self.lock().decided_through)
    }

    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
