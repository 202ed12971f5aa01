//! Transactions over the shares of some partitions.

use std::collections::HashSet;
use std::time::Duration;

use common::config::IdempotencyWindow;
use common::db::{DbError, Pool};
use sqlx::{Connection, PgConnection};
use time::{Date, OffsetDateTime};

use super::batch::{Applied, Batch, Mode};
use super::fence::hold;
use super::{Committed, Share};
use crate::blame::ApplyError;
use crate::days::{BatchDays, CommandDays};
use crate::flood::FloodGuard;
use crate::idempotency::Times;
use crate::incoming::IncomingMessage;
use crate::relay::EventFeed;

/// How long a transaction may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// For a connection, and again for the whole transaction, which is abandoned with its connection when it takes longer.
    pub(super) deadline: Duration,
    /// For a row that is locked by somebody else, such as an operator.
    lock_timeout: &'static str,
}

impl Limits {
    /// A partition alone: it may have to wait for several others that use the same pool, and makes no other one wait.
    pub(super) const ALONE: Self = Self { deadline: Duration::from_secs(30), lock_timeout: "5s" };
    /// A lane, for which all its partitions wait.
    const SHARED: Self = Self { deadline: Duration::from_secs(5), lock_timeout: "250ms" };
}

/// Runs transactions, one after the other.
#[derive(Debug)]
pub struct Transactions {
    pub(super) pool: Pool,
    pub(super) partitions: u16,
    pub(super) days: CommandDays,
    guard: FloodGuard,
    window: IdempotencyWindow,
    feed: EventFeed,
}

impl Transactions {
    /// Transactions over the worker's pool, under the worker's guard, in a deployment with so many partitions.
    pub fn new(pool: Pool, guard: FloodGuard, window: IdempotencyWindow, partitions: u16) -> Self {
        let (days, feed) = (CommandDays::default(), EventFeed::default());
        Self { pool, partitions, days, guard, window, feed }
    }

    /// The same, with a relay behind this feed.
    pub(crate) fn feeding(self, feed: EventFeed) -> Self {
        Self { feed, ..self }
    }

    /// Applies the messages of all shares together; nothing that only some of them can be blamed for is isolated here.
    ///
    /// # Errors
    /// [`ApplyError::Fenced`] when none of the partitions is owned any more. Then, as after every error, nothing was applied.
    pub async fn together(&mut self, shares: &[Share<'_>]) -> Result<Committed, ApplyError> {
        self.commit(shares, Mode::Together, Limits::SHARED).await
    }

    pub(super) async fn commit(
        &mut self,
        shares: &[Share<'_>],
        mode: Mode,
        limits: Limits,
    ) -> Result<Committed, ApplyError> {
        // Dropped on every early return, which closes the connection and so ends whatever ran on it.
        let mut lease = self.pool.acquire(limits.deadline).await?;
        // Not within the deadline, which ends what was frozen.
        #[cfg(feature = "mutants")]
        crate::mutants::hide(&mut lease).await?;
        let work = async {
            let days = self.days.ensure(&mut lease, days(shares)).await?;
            let mut tx = lease.begin().await?;
            let applied = self.work(&mut tx, shares, days, mode, limits).await?;
            for (partition, replays) in &applied.events.replays {
                self.feed.replays(*partition, *replays);
            }
            let pending = self.feed.begin(applied.committed.partitions.iter().copied());
            tx.commit().await?;
            Ok::<_, ApplyError>((applied, pending))
        };
        let worked = tokio::time::timeout(limits.deadline, work).await;
        let worked = worked.unwrap_or_else(|_| Err(DbError::Deadline(limits.deadline).into()));
        if worked.is_err() {
            self.days.forget();
        }
        let (Applied { committed, events, tried, dead }, pending) = worked?;
        // Behind a pooler that is the commit.
        lease.release().await?;
        pending.committed(events.events);
        self.guard.note(tried, dead);
        Ok(committed)
    }

    /// Everything between the beginning of the transaction and its commit.
    pub(super) async fn work(
        &self,
        conn: &mut PgConnection,
        shares: &[Share<'_>],
        days: BatchDays,
        mode: Mode,
        limits: Limits,
    ) -> Result<Applied, ApplyError> {
        let held = hold(conn, shares, limits.lock_timeout).await?;
        self.batch(held.now, days).work(conn, shares, held, mode).await
    }

    fn batch(&self, now: OffsetDateTime, days: BatchDays) -> Batch<'_> {
        let times = Times { window: self.window, now };
        Batch { partitions: self.partitions, guard: &self.guard, times, days }
    }
}

/// The days of the commands.
fn days(shares: &[Share<'_>]) -> HashSet<Date> {
    let messages = shares.iter().flat_map(|share| share.messages);
    messages.filter_map(IncomingMessage::id).map(|id| id.minted_at().date()).collect()
}
