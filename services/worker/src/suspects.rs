//! Commands that came back again and again: one of them may be what ended its workers.
//!
//! # Why one at a time in the whole process?
//! A command that ends the process takes whatever else is under way with it. Because only the one whose turn it is has a
//! row in `suspects`, its end is counted against no other command.
//!
//! # Why is a try counted before it is made?
//! Nothing can be counted after a kill -9. A command that gets an outcome is no suspect any more. A try that comes back with an
//! error, or is dropped in good order, at a stop or because the partition was lost, is taken off again: its row is noted by
//! `Try` and withdrawn by the partition, or else before the next try. Only tries whose worker vanished add up. What else made it vanish is counted
//! too: hence several attempts.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::command::CommandId;
use common::db::{Pool, within};
use common::shutdown::chain;
use tokio::sync::Mutex;
use tracing::warn;
use uuid::Uuid;

use crate::apply::{Applier, Committed};
use crate::blame::ApplyError;
use crate::incoming::IncomingMessage;

/// After so many tries that ended with their worker a command becomes a dead letter.
pub const MOST_ATTEMPTS: i32 = 5;
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries commands that came back too often. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Suspects {
    pool: Pool,
    turn: Arc<Mutex<()>>,
    dropped: Dropped,
}

/// The commands of tries that neither came back nor ended their worker.
#[derive(Debug, Clone, Default)]
struct Dropped(Arc<StdMutex<Vec<CommandId>>>);

impl Dropped {
    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, Vec<CommandId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A try under way: dropped before it was taken off, it is noted.
struct Try {
    id: CommandId,
    dropped: Dropped,
    taken_off: bool,
}

impl Drop for Try {
    fn drop(&mut self) {
        if !self.taken_off {
            self.dropped.lock().push(self.id);
        }
    }
}

impl Suspects {
    /// None is being tried.
    pub fn new(pool: Pool) -> Self {
        Self { pool, turn: Arc::default(), dropped: Dropped::default() }
    }

    /// Applies one command alone, or makes it a dead letter when it has ended enough workers.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn apply(&self, applier: &mut Applier, message: &IncomingMessage) -> Result<Committed, ApplyError> {
        let Some(id) = message.id() else { return applier.apply(std::slice::from_ref(message)).await };
        let _turn = self.turn.lock().await;
        self.withdraw().await?;
        let mut attempt = Try { id, dropped: self.dropped.clone(), taken_off: false };
        let attempts = self.begin(id).await?;
        let end = if attempts > MOST_ATTEMPTS {
            warn!(command.id = %id, attempts, "a command ended its worker again and again: a dead letter");
            applier.give_up(message).await
        } else {
            applier.apply(std::slice::from_ref(message)).await
        };
        // After an error it comes again: this try is taken off, and workers that vanished before still count.
        let committed = end?;
        match self.finish(id).await {
            Ok(()) => attempt.taken_off = true,
            Err(error) => {
                warn!(command.id = %id, error = chain(&error), "a try is taken off later");
                return Err(error);
            }
        }
        Ok(committed)
    }

    /// Takes off the tries that were dropped in good order.
    ///
    /// # Errors
    /// As the statement gives them; then they are taken off the next time.
    pub async fn withdraw(&self) -> Result<(), ApplyError> {
        let dropped = std::mem::take(&mut *self.dropped.lock());
        if dropped.is_empty() {
            return Ok(());
        }
        // Put back when this fails or is dropped itself.
        let mut tries: Vec<Try> =
            dropped.into_iter().map(|id| Try { id, dropped: self.dropped.clone(), taken_off: false }).collect();
        let ids: Vec<Uuid> = tries.iter().map(|attempt| attempt.id.into()).collect();
        let mut lease = self.pool.acquire(PATIENCE).await?;
        let withdrawing = sqlx::query!(
            "
            WITH dropped AS (
                SELECT command_id, count(*)::integer AS tries
                FROM unnest($1::uuid[]) AS dropped (command_id)
                GROUP BY command_id
            ),
            without_others AS (
                DELETE FROM suspects
                USING dropped
                WHERE suspects.command_id = dropped.command_id AND attempts <= tries
            )
            UPDATE suspects
            SET attempts = attempts - tries
            FROM dropped
            WHERE suspects.command_id = dropped.command_id AND attempts > tries
            ",
            &ids,
        );
        within(PATIENCE, withdrawing.execute(&mut *lease)).await?;
        lease.release().await?;
        for attempt in &mut tries {
            attempt.taken_off = true;
        }
        Ok(())
    }

    async fn begin(&self, id: CommandId) -> Result<i32, ApplyError> {
        let mut lease = self.pool.acquire(PATIENCE).await?;
        let counting = sqlx::query_scalar!(
            "
            INSERT INTO suspects (command_id, attempts)
            VALUES ($1, 1)
            ON CONFLICT (command_id) DO UPDATE SET attempts = suspects.attempts + 1, last_tried_at = now()
            RETURNING attempts
            ",
            Uuid::from(id),
        );
        let attempts = within(PATIENCE, counting.fetch_one(&mut *lease)).await?;
        lease.release().await?;
        Ok(attempts)
    }

    async fn finish(&self, id: CommandId) -> Result<(), ApplyError> {
        let mut lease = self.pool.acquire(PATIENCE).await?;
        let clearing = sqlx::query!("DELETE FROM suspects WHERE command_id = $1", Uuid::from(id));
        within(PATIENCE, clearing.execute(&mut *lease)).await?;
        lease.release().await?;
        Ok(())
    }
}
