//! One command under a savepoint: whatever comes of it, the transaction goes on.

use common::command::Envelope;
use common::shutdown::chain;
use sqlx::{Acquire, PgConnection};
use tracing::warn;

use crate::blame::ApplyError;
use crate::events::Origin;
use crate::users::{self, Outcome};

/// What became of a command that was tried alone.
#[derive(Debug)]
pub(crate) enum AloneEnd {
    /// It was decided.
    Outcome(Outcome),
    /// No statement takes it, and nothing of it was applied.
    Failed {
        /// The SQLSTATE.
        sqlstate: String,
        /// What the server said, without the data that it quotes.
        reason: String,
    },
}

/// Tries a command.
///
/// # Errors
/// Every kind but [`ApplyError::Command`]; then the transaction has to be given up.
pub(crate) async fn try_alone(
    conn: &mut PgConnection,
    envelope: &Envelope,
    origin: Origin<'_>,
) -> Result<AloneEnd, ApplyError> {
    let mut savepoint = conn.begin().await?;
    match users::apply_wave(&mut savepoint, &[envelope], origin).await {
        Ok(mut outcomes) => {
            savepoint.commit().await?;
            outcomes.remove(&envelope.id).map(AloneEnd::Outcome).ok_or(ApplyError::Contention(None))
        }
        Err(ApplyError::Command { sqlstate, constraint, source }) => {
            savepoint.rollback().await?;
            warn!(command.id = %envelope.id, sqlstate, constraint, "a command cannot be applied");
            let reason = chain(&source);
            Ok(AloneEnd::Failed { sqlstate, reason })
        }
        Err(other) => Err(other),
    }
}
