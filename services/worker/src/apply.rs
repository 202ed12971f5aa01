//! Applying: messages of one or several partitions in one transaction. Fence, deduplicate, park what is blocked, claim
//! idempotency keys, waves, events, command rows with their outcomes, commit.
//!
//! # What makes a command apply once?
//! Commands that have a row were decided before and are left out. A partition's commands are applied by its owner alone, which
//! the fence makes sure of, and the rows are written last. When a row is there by then after all, because an abandoned transaction of
//! the same owner was still running, or because the command was recorded as a dead letter of the broker meanwhile, everything is
//! rolled back and tried again.
//!
//! # Why twice?
//! Together first, which is quick. If the data of one command makes a statement fail, the whole batch is done again one by
//! one under savepoints, so that the guilty command never takes its neighbours along.
//!
//! # Whose clock decides?
//! The database's: the fence reads it in the transaction. The clocks of the APIs are in the ids and in `accepted_at`, and a
//! message never says how long it waited. What is known of that is the last time at which its queue was empty.

mod batch;
mod fence;
mod probe;
mod transaction;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use common::command::CommandId;
use common::config::IdempotencyWindow;
use common::db::Pool;
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use self::batch::Mode;
use self::transaction::Limits;
pub use self::transaction::Transactions;
use crate::blame::ApplyError;
use crate::flood::FloodGuard;
use crate::incoming::{IncomingMessage, Source};
use crate::relay::EventFeed;
use crate::users::Outcome;

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

/// Messages of one partition in a transaction.
#[derive(Debug, Clone, Copy)]
pub struct Share<'m> {
    /// The partition.
    pub fence: Fence,
    /// When the queue was last seen empty, by the database's clock, if it was.
    pub published_after: Option<OffsetDateTime>,
    /// In order of arrival.
    pub messages: &'m [IncomingMessage],
}

impl Share<'_> {
    fn source(&self) -> Source {
        Source { partition: self.fence.partition, published_after: self.published_after }
    }
}

/// What a transaction did.
#[derive(Debug)]
pub struct Committed {
    /// The outcome of each command that had not been decided before.
    pub outcomes: HashMap<CommandId, Outcome>,
    /// The user after each command that changed one, as JSON.
    pub users: HashMap<CommandId, Arc<str>>,
    /// The partitions that were still owned; nothing of the others was applied.
    pub partitions: HashSet<u16>,
    /// When, by the database's clock.
    pub applied_at: OffsetDateTime,
}

/// Applies the batches of one partition in transactions of their own.
#[derive(Debug)]
pub struct Applier {
    fence: Option<Fence>,
    published_after: Option<OffsetDateTime>,
    transactions: Transactions,
}

impl Applier {
    /// An applier over the worker's pool, under the worker's guard, in a deployment with so many partitions.
    pub fn new(pool: Pool, guard: FloodGuard, window: IdempotencyWindow, partitions: u16) -> Self {
        Self { fence: None, published_after: None, transactions: Transactions::new(pool, guard, window, partitions) }
    }

    /// The same, with a relay behind this feed.
    pub(crate) fn feeding(self, feed: EventFeed) -> Self {
        Self { transactions: self.transactions.feeding(feed), ..self }
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

    /// Applies a batch.
    ///
    /// # Errors
    /// Every kind but [`ApplyError::Command`], unless even the row of a command cannot be written; then nothing was applied.
    pub async fn apply(&mut self, messages: &[IncomingMessage]) -> Result<Committed, ApplyError> {
        let mut together = self.commit(messages, Mode::Together).await;
        if together.as_ref().is_err_and(ApplyError::is_missing_day) {
            // What was known of the tables is forgotten by now.
            warn!("a day's table of commands is missing; making it again");
            together = self.commit(messages, Mode::Together).await;
        }
        match together {
            Err(ApplyError::Command { sqlstate, .. }) => {
                warn!(sqlstate, commands = messages.len(), "a batch failed; applying its commands one by one");
                self.commit(messages, Mode::OneByOne).await
            }
            end => end,
        }
    }

    /// Makes a command that ended its worker too often a dead letter, without trying it.
    pub(crate) async fn give_up(&mut self, message: &IncomingMessage) -> Result<Committed, ApplyError> {
        self.commit(std::slice::from_ref(message), Mode::GiveUp).await
    }

    /// The share of a transaction over several partitions; none without a fence.
    pub(crate) fn share<'m>(&self, messages: &'m [IncomingMessage]) -> Option<Share<'m>> {
        Some(Share { fence: self.fence?, published_after: self.published_after, messages })
    }

    async fn commit(&mut self, messages: &[IncomingMessage], mode: Mode) -> Result<Committed, ApplyError> {
        let share = self.share(messages).ok_or(ApplyError::Fenced)?;
        self.transactions.commit(&[share], mode, Limits::ALONE).await
    }
}
