//! One batch in one transaction: fence, deduplicate, park what is held, claim idempotency keys,
//! waves with their events, outcomes, commit.
//!
//! # Why insert the command rows first?
//! The insert is the deduplication: a row that does not come back was decided before. If another worker is deciding the
//! same command right now, the insert waits for it, so the two never both apply it.
//!
//! # Why twice?
//! Together first, which is quick. If the data of one command makes a statement fail, the whole batch is done again one by
//! one under savepoints, so that the guilty command never takes its neighbours along.
//!
//! # Whose clock decides?
//! The database's: the fence reads it in the transaction. The clocks of the APIs are in the ids and in `accepted_at`, and a
//! message never says how long it waited. What is known of that is the last time at which its queue was empty.

mod batch;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::command::{Command, CommandId, CreateUser, Digest, Email, Envelope, Idempotency, Name, Principal, UserId};
use common::config::IdempotencyWindow;
use common::db::{DbError, Pool};
use common::telemetry::TraceHeaders;
use sqlx::{Connection, PgConnection};
use time::{Date, OffsetDateTime};
use tracing::warn;
use uuid::Uuid;

use self::batch::{Applied, Batch, Mode};
use crate::blame::ApplyError;
use crate::days::{BatchDays, CommandDays};
use crate::events;
use crate::flood::FloodGuard;
use crate::idempotency::Times;
use crate::incoming::IncomingMessage;
use crate::relay::EventFeed;
use crate::users::Outcome;

/// Partitions share the pool, so a batch may have to wait for several others.
const ACQUIRE_PATIENCE: Duration = Duration::from_secs(30);
/// For a whole batch; a transaction that takes longer is abandoned with its connection.
const BATCH_DEADLINE: Duration = Duration::from_secs(30);

/// What a transaction checks before anything else: that this instance still owns the partition under this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// This instance.
    pub instance: Uuid,
    /// The partition.
    pub partition: u16,
    /// The epoch of its ownership.
    pub epoch: i64,
}

/// Applies batches. Each partition has its own.
#[derive(Debug)]
pub struct Applier {
    fence: Option<Fence>,
    pool: Pool,
    guard: FloodGuard,
    window: IdempotencyWindow,
    partitions: u16,
    days: CommandDays,
    published_after: Option<OffsetDateTime>,
    feed: EventFeed,
}

impl Applier {
    /// An applier over the worker's pool, under the worker's guard, in a deployment with so many partitions.
    pub fn new(pool: Pool, guard: FloodGuard, window: IdempotencyWindow, partitions: u16) -> Self {
        let (days, feed) = (CommandDays::default(), EventFeed::default());
        Self { fence: None, pool, guard, window, partitions, days, published_after: None, feed }
    }

    /// The same, with a relay behind this feed.
    pub(crate) fn feeding(self, feed: EventFeed) -> Self {
        Self { feed, ..self }
    }

    /// Sets the fence of the batches to come; without one nothing is applied. Nothing is known of their queue.
    pub fn fence(&mut self, fence: Fence) {
        self.fence = Some(fence);
        self.published_after = None;
    }

    /// The messages of the batches to come entered their queue after this time, by the database's clock.
    pub fn published_after(&mut self, at: OffsetDateTime) {
        self.published_after = Some(at);
    }

    /// Applies a batch and gives the outcome of each command in it that had not been decided before.
    ///
    /// # Errors
    /// Every kind but [`ApplyError::Command`], unless even the row of a command cannot be written; then nothing was applied.
    pub async fn apply(&mut self, messages: &[IncomingMessage]) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        let mut together = self.transaction(messages, Mode::Together).await;
        if together.as_ref().is_err_and(ApplyError::is_missing_day) {
            // What was known of the tables is forgotten by now.
            warn!("a day's table of commands is missing; making it again");
            together = self.transaction(messages, Mode::Together).await;
        }
        match together {
            Err(ApplyError::Command { sqlstate, .. }) => {
                warn!(sqlstate, commands = messages.len(), "a batch failed; applying its commands one by one");
                self.transaction(messages, Mode::OneByOne).await
            }
            end => end,
        }
    }

    /// Makes a command that ended its worker too often a dead letter, without trying it.
    pub(crate) async fn give_up(
        &mut self,
        message: &IncomingMessage,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        self.transaction(std::slice::from_ref(message), Mode::GiveUp).await
    }

    /// Tries the whole of a transaction with a command of its own and undoes it: says whether a batch would go through,
    /// without taking one out of its queue.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn probe(&mut self) -> Result<(), ApplyError> {
        let mut lease = self.pool.acquire(ACQUIRE_PATIENCE).await?;
        let fence = self.fence;
        let work = async {
            let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&mut *lease).await?;
            let Some(message) = self.probing_message(now) else { return Ok(()) };
            self.days.forget();
            let days = self.days.ensure(&mut lease, HashSet::from([now.date()])).await?;
            let mut tx = lease.begin().await?;
            let now = hold(&mut tx, fence).await?;
            self.batch(now, days)?.work(&mut tx, &[message], Mode::Together).await?;
            tx.rollback().await?;
            Ok::<_, ApplyError>(())
        };
        tokio::time::timeout(BATCH_DEADLINE, work).await.map_err(|_| DbError::Deadline(BATCH_DEADLINE))??;
        lease.release().await?;
        Ok(())
    }

    async fn transaction(
        &mut self,
        messages: &[IncomingMessage],
        mode: Mode,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        // Dropped on every early return, which closes the connection and so ends whatever ran on it.
        let mut lease = self.pool.acquire(ACQUIRE_PATIENCE).await?;
        let days: HashSet<Date> =
            messages.iter().filter_map(IncomingMessage::id).map(|id| id.minted_at().date()).collect();
        let fence = self.fence;
        let work = async {
            let days = self.days.ensure(&mut lease, days).await?;
            #[cfg(feature = "mutants")]
            crate::mutants::hide(&mut lease).await?;
            let mut tx = lease.begin().await?;
            let now = hold(&mut tx, fence).await?;
            let applied = self.batch(now, days)?.work(&mut tx, messages, mode).await?;
            let partitions: Vec<u16> = fence.iter().map(|fence| fence.partition).collect();
            for (partition, replays) in events::replays(&mut tx, &partitions).await? {
                self.feed.replays(partition, replays);
            }
            let pending = self.feed.begin(partitions);
            tx.commit().await?;
            Ok::<_, ApplyError>((applied, pending))
        };
        let worked = tokio::time::timeout(BATCH_DEADLINE, work).await;
        let worked = worked.unwrap_or_else(|_| Err(DbError::Deadline(BATCH_DEADLINE).into()));
        if worked.is_err() {
            self.days.forget();
        }
        let (Applied { outcomes, tried, dead, events }, pending) = worked?;
        lease.release().await?;
        pending.committed(events);
        self.guard.note(tried, dead);
        Ok(outcomes)
    }

    /// A command of this time that creates a user of the partition.
    fn probing_message(&self, now: OffsetDateTime) -> Option<IncomingMessage> {
        let (Ok(email), Ok(name)) = (Email::parse("probe@rollcall.invalid"), Name::parse("Probe")) else { return None };
        let (id, user_id) = (CommandId::mint_at(now), self.user_of_the_partition()?);
        let digest = Digest::of_key(&Principal::anonymous(), &id.to_string());
        let envelope = Envelope {
            id,
            accepted_at: now,
            principal: Principal::anonymous(),
            if_match: None,
            idempotency: Some(Idempotency { key: digest, fingerprint: digest }),
            command: Command::CreateUser(CreateUser { user_id, email, name }),
        };
        let content = common::command::Message::Command(Box::new(envelope));
        Some(IncomingMessage { body: Vec::new(), trace: TraceHeaders::default(), content, defect: None })
    }

    fn user_of_the_partition(&self) -> Option<UserId> {
        let Fence { partition, .. } = self.fence?;
        // One in `partitions` fits.
        (0..100_000).map(|_| UserId::mint()).find(|user| user.partition(self.partitions) == partition)
    }

    /// What a transaction works with, whose time is `now`.
    fn batch(&self, now: OffsetDateTime, days: BatchDays) -> Result<Batch<'_>, ApplyError> {
        let Fence { partition, .. } = self.fence.ok_or(ApplyError::Fenced)?;
        let times = Times { window: self.window, now, published_after: self.published_after };
        Ok(Batch { partition, partitions: self.partitions, guard: &self.guard, times, days })
    }
}

/// Holds the ownership of the partition until the end of the transaction: the next owner waits for that. Gives the
/// time of the transaction.
async fn hold(conn: &mut PgConnection, fence: Option<Fence>) -> Result<OffsetDateTime, ApplyError> {
    #[cfg(feature = "mutants")]
    if crate::mutants::unfenced() {
        return Ok(sqlx::query_scalar("SELECT now()").fetch_one(conn).await?);
    }
    let Some(Fence { instance, partition, epoch }) = fence else { return Err(ApplyError::Fenced) };
    let held = sqlx::query_scalar!(
        r#"
        SELECT now() AS "now!"
        FROM partitions
        WHERE number = $1 AND owner = $2 AND epoch = $3
        FOR KEY SHARE
        "#,
        i32::from(partition),
        instance,
        epoch,
    )
    .fetch_optional(conn)
    .await?;
    held.ok_or(ApplyError::Fenced)
}
