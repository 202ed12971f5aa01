//! One command under a savepoint: whatever comes of it, the transaction goes on.

use common::shutdown::chain;
use sqlx::{Acquire, PgConnection};
use tracing::warn;

use crate::blame::ApplyError;
use crate::dead_letters::Traces;
use crate::events::{self, RecordedEvents};
use crate::incoming::Candidate;
use crate::users::{self, Outcome};

/// What became of a command that was tried alone.
#[derive(Debug)]
pub(crate) enum AloneEnd {
    /// It was decided.
    Decided {
        outcome: Outcome,
        /// The event of its change, if it changed anything.
        events: RecordedEvents,
    },
    /// No statement takes it, and nothing of it was applied.
    Failed {
        /// The SQLSTATE.
        sqlstate: String,
        /// What the server said, without the data that it quotes.
        reason: String,
    },
}

/// Tries a command, and records its event.
///
/// # Errors
/// Every kind but [`ApplyError::Command`]; then the transaction has to be rolled back.
pub(crate) async fn try_alone(
    conn: &mut PgConnection,
    Candidate { entry, envelope }: Candidate<'_>,
    traces: &Traces<'_>,
) -> Result<AloneEnd, ApplyError> {
    let mut savepoint = conn.begin().await?;
    let work = async {
        let mut wave = users::apply_wave(&mut savepoint, &[envelope]).await?;
        let outcome = wave.outcomes.remove(&envelope.id).ok_or(ApplyError::Contention(None))?;
        let changes = wave.changes.iter().map(|change| (change, entry.source.partition)).collect();
        let events = events::record(&mut savepoint, changes, traces).await?;
        Ok((outcome, events))
    };
    match work.await {
        Ok((outcome, events)) => {
            savepoint.commit().await?;
            Ok(AloneEnd::Decided { outcome, events })
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
