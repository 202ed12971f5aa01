//! Commands that came back again and again: one of them may be what ended its workers.
//!
//! # Why one at a time in the whole process?
//! A command that ends the process takes whatever else is under way with it. Because only the one whose turn it is has a
//! row in `suspects`, its end is counted against no other command.
//!
//! # Why is a try counted before it is made?
//! Nothing can be counted after a kill -9. A try that comes back, whatever its end, is taken off again, so that only
//! tries that ended with their worker add up, or with its partition. What else ended them is counted too: hence several
//! attempts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::command::{CommandId, Envelope};
use common::db::{Pool, within};
use common::shutdown::chain;
use tokio::sync::Mutex;
use tracing::warn;
use uuid::Uuid;

use crate::apply::Applier;
use crate::blame::ApplyError;
use crate::dead_letters::Traces;
use crate::users::Outcome;

/// After so many tries that ended with their worker a command becomes a dead letter.
pub const MOST_ATTEMPTS: i32 = 5;
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries commands that came back too often. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Suspects {
    pool: Pool,
    turn: Arc<Mutex<()>>,
}

impl Suspects {
    /// None is being tried.
    pub fn new(pool: Pool) -> Self {
        Self { pool, turn: Arc::default() }
    }

    /// Applies one command alone, or makes it a dead letter when it has ended enough workers.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub async fn apply(
        &self,
        applier: &mut Applier,
        envelope: &Envelope,
        traces: &Traces,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        let _turn = self.turn.lock().await;
        let attempts = self.begin(envelope.id).await?;
        let end = if attempts > MOST_ATTEMPTS {
            warn!(command.id = %envelope.id, attempts, "a command ended its worker again and again: a dead letter");
            applier.give_up(envelope, traces).await
        } else {
            applier.apply_traced(std::slice::from_ref(envelope), traces).await
        };
        // One that is not applied for another's fault comes again, and its earlier ends still count.
        let gone_back = attempts > MOST_ATTEMPTS && end.is_err();
        if !gone_back && let Err(error) = self.finish(envelope.id).await {
            // The try counts as one that ended its worker, which the next one takes off again: so there has to be one.
            warn!(command.id = %envelope.id, error = chain(&error), "failed to take a try off again");
            return end.and(Err(error));
        }
        end
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
