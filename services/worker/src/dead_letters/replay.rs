//! What an operator does about a letter: apply it again, or discard it; then the user's later commands follow in order.
//!
//! Everything that happens to one user is one transaction under the lock of its row in `held_users`: a kill leaves it as
//! it was, and a batch with the user's next command waits for it.

use std::collections::{HashMap, HashSet};

use common::command::{CommandId, Envelope, UserId};
use common::config::IdempotencyWindow;
use common::telemetry::TraceHeaders;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::record::{cut, record_undelivered};
use super::{DELIVERY_LIMIT, DISCARDED, Letters, Traces};
use crate::alone::{Tried, try_alone};
use crate::blame::ApplyError;
use crate::commands::decide;
use crate::events::Origin;
use crate::idempotency;
use crate::users::Outcome;

/// One command of a replay, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The command.
    pub command_id: Uuid,
    /// Its wire name.
    pub kind: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a command in a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is decided, and its letter closed.
    Decided(Outcome),
    /// An operator discarded it.
    Discarded,
    /// It failed again and stays the first; the SQLSTATE, if a statement raised, and what was said.
    Failed(Option<String>, String),
    /// It waits behind the one that failed.
    Waits,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The database did not take part.
    #[error("failed to apply")]
    Apply(#[from] ApplyError),
    /// The letter is not the first of its user.
    #[error("command {0} has to be dealt with first: the letter waits behind it")]
    NotFirst(Uuid),
    /// Somebody dealt with it.
    #[error("the letter is not open")]
    NotOpen,
    /// A raw message that this build cannot read either.
    #[error("the message is no command to this version: {0}")]
    Undecodable(String),
}

impl From<sqlx::Error> for ReplayError {
    fn from(error: sqlx::Error) -> Self {
        Self::Apply(error.into())
    }
}

/// Replays a user's open letters in order until one fails again; gives each with its verdict. With `dry_run` everything
/// is tried and nothing kept.
///
/// # Errors
/// [`ReplayError::Apply`]; then nothing was done.
pub async fn replay(
    conn: &mut PgConnection,
    user: UserId,
    window: IdempotencyWindow,
    dry_run: bool,
) -> Result<Vec<Step>, ReplayError> {
    work(conn, user, None, window, dry_run).await
}

/// Discards a user's first open letter, for good, and replays the later ones. Its command stays `parked`, for the reason
/// [`DISCARDED`]: a rejection would name a fault of the client's.
///
/// # Errors
/// See [`ReplayError`]; then nothing was done.
pub async fn discard(
    conn: &mut PgConnection,
    user: UserId,
    letter: i64,
    window: IdempotencyWindow,
    dry_run: bool,
) -> Result<Vec<Step>, ReplayError> {
    work(conn, user, Some(letter), window, dry_run).await
}

/// Closes the letter of a message that is no command.
///
/// # Errors
/// See [`ReplayError`].
pub async fn discard_raw(conn: &mut PgConnection, letter: i64) -> Result<(), ReplayError> {
    close_raw(conn, letter, "discarded").await
}

/// Reads a raw message once more, because a newer version may know it: then it becomes the last letter of its user, and
/// what is open of that user is replayed. With `dry_run` it is only read.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay_raw(
    conn: &mut PgConnection,
    letter: i64,
    payload: &[u8],
    trace: &TraceHeaders,
    window: IdempotencyWindow,
    dry_run: bool,
) -> Result<Vec<Step>, ReplayError> {
    let envelope = Envelope::decode(payload).map_err(|fault| ReplayError::Undecodable(fault.to_string()))?;
    if dry_run {
        return Ok(Vec::new());
    }
    // Twice after a kill in between: the second time the command is known.
    record_undelivered(conn, &envelope, DELIVERY_LIMIT, "could not be decoded at first", trace).await?;
    close_raw(conn, letter, "replayed").await?;
    replay(conn, envelope.command.user_id(), window, false).await
}

async fn close_raw(conn: &mut PgConnection, letter: i64, state: &str) -> Result<(), ReplayError> {
    let closed = sqlx::query!(
        "
        UPDATE dead_letters
        SET state = $2, closed_at = now()
        WHERE id = $1 AND state = 'open' AND command_id IS NULL
        ",
        letter,
        state,
    )
    .execute(conn)
    .await?;
    if closed.rows_affected() == 1 { Ok(()) } else { Err(ReplayError::NotOpen) }
}

struct Open {
    id: i64,
    command_id: Uuid,
    kind: String,
    payload: Vec<u8>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

async fn work(
    conn: &mut PgConnection,
    user: UserId,
    discard: Option<i64>,
    window: IdempotencyWindow,
    dry_run: bool,
) -> Result<Vec<Step>, ReplayError> {
    let user = Uuid::from(user);
    let mut tx = conn.begin().await?;
    let held = sqlx::query_scalar!("SELECT command_id FROM held_users WHERE user_id = $1 FOR UPDATE", user)
        .fetch_optional(&mut *tx)
        .await?;
    if held.is_none() {
        // Without the lock nothing is done, even if a batch commits a letter right now.
        return if discard.is_some() { Err(ReplayError::NotOpen) } else { Ok(Vec::new()) };
    }
    // A statement of its own, so that it sees what was parked while the lock was awaited.
    let open = sqlx::query_as!(
        Open,
        r#"
        SELECT id, command_id AS "command_id!", type AS "kind!", payload, traceparent, tracestate
        FROM dead_letters
        WHERE user_id = $1 AND state = 'open'
        ORDER BY id
        "#,
        user,
    )
    .fetch_all(&mut *tx)
    .await?;
    if let Some(letter) = discard {
        match open.first() {
            Some(first) if first.id == letter => {}
            Some(first) if open.iter().any(|l| l.id == letter) => return Err(ReplayError::NotFirst(first.command_id)),
            _ => return Err(ReplayError::NotOpen),
        }
    }
    // What the services work with; whoever owns the user's publishes the events.
    let partitions = sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM partitions"#).fetch_one(&mut *tx).await?;
    let partitions = u16::try_from(partitions).unwrap_or(u16::MAX);
    let mut steps: Vec<Step> = Vec::with_capacity(open.len());
    let mut failed = false;
    for letter in &open {
        let verdict = if failed {
            Verdict::Waits
        } else if discard == Some(letter.id) {
            close(&mut tx, letter, "discarded").await?;
            sqlx::query!("UPDATE commands SET reason = $2 WHERE id = $1", letter.command_id, DISCARDED)
                .execute(&mut *tx)
                .await?;
            Verdict::Discarded
        } else {
            again(&mut tx, letter, window, partitions).await?
        };
        if let Verdict::Failed(..) = verdict {
            failed = true;
            sqlx::query!("UPDATE held_users SET command_id = $2 WHERE user_id = $1", user, letter.command_id)
                .execute(&mut *tx)
                .await?;
        }
        steps.push(Step { command_id: letter.command_id, kind: letter.kind.clone(), verdict });
    }
    if !failed {
        sqlx::query!("DELETE FROM held_users WHERE user_id = $1", user).execute(&mut *tx).await?;
    }
    if dry_run {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(steps)
}

/// Tries one letter's command; what comes of it is written.
async fn again(
    conn: &mut PgConnection,
    letter: &Open,
    window: IdempotencyWindow,
    partitions: u16,
) -> Result<Verdict, ReplayError> {
    let (sqlstate, reason) = match Envelope::decode(&letter.payload) {
        Err(fault) => (None, format!("undecodable: {fault}")),
        Ok(envelope) => match once(conn, &envelope, letter, window, partitions).await? {
            Tried::Decided(outcome) => {
                close(conn, letter, "replayed").await?;
                sqlx::query!("UPDATE commands SET applied_at = now() WHERE id = $1", letter.command_id)
                    .execute(&mut *conn)
                    .await?;
                decide(conn, &[(envelope.id, outcome.clone())].into()).await?;
                return Ok(Verdict::Decided(outcome));
            }
            Tried::Guilty { sqlstate, reason } => (Some(sqlstate), reason),
        },
    };
    let reason = cut(&reason);
    sqlx::query!(
        "
        UPDATE dead_letters
        SET reason = $2, sqlstate = $3, attempts = attempts + 1, last_seen_at = now()
        WHERE id = $1
        ",
        letter.id,
        reason,
        sqlstate,
    )
    .execute(&mut *conn)
    .await?;
    if let Ok(id) = CommandId::try_from(letter.command_id) {
        let code = sqlstate.clone().unwrap_or_else(|| "undecodable".to_owned());
        decide(conn, &[(id, Outcome::Parked(code))].into()).await?;
    }
    Ok(Verdict::Failed(sqlstate, reason))
}

/// Tries a command, unless it repeats one that has an outcome.
async fn once(
    conn: &mut PgConnection,
    envelope: &Envelope,
    letter: &Open,
    window: IdempotencyWindow,
    partitions: u16,
) -> Result<Tried, ApplyError> {
    let (first, retries) = idempotency::claim(conn, vec![envelope.clone()], window).await?;
    if !first.is_empty() {
        let trace = TraceHeaders { traceparent: letter.traceparent.clone(), tracestate: letter.tracestate.clone() };
        let traces = Traces::from([(envelope.id, trace)]);
        let partition = envelope.command.user_id().partition(partitions);
        return try_alone(conn, envelope, Origin { partition, traces: &traces }).await;
    }
    let mut outcomes = HashMap::new();
    idempotency::repeat(retries, &mut outcomes, &mut Letters::new(HashSet::new()));
    outcomes.remove(&envelope.id).map(Tried::Decided).ok_or(ApplyError::Contention(None))
}

async fn close(conn: &mut PgConnection, letter: &Open, state: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE dead_letters SET state = $2, closed_at = now() WHERE id = $1", letter.id, state)
        .execute(conn)
        .await?;
    Ok(())
}
