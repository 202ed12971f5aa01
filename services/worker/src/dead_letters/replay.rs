//! What an operator does about a letter: apply it again, or discard it; then the user's later commands follow in order.
//!
//! Each transaction holds the lock of the user's row in `held_users`: a kill leaves the user as it was, and a batch with its
//! next command waits. So a transaction is short: after [`AT_ONCE`] letters or [`LONGEST`] it is committed, with the user
//! held at the next letter, and another one goes on.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::broker::FrameDefect;
use common::command::{CommandHeader, Envelope, Message, MessageProperties, UserId};
use common::config::IdempotencyWindow;
use common::telemetry::TraceHeaders;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::record::{cut, hold};
use super::{DISCARDED, Letter, Letters, NOT_UNDERSTOOD, Traces, UNKNOWN_OUTCOME};
use crate::alone::{AloneEnd, try_alone};
use crate::blame::ApplyError;
use crate::commands;
use crate::days;
use crate::events::{self, RecordedEvents};
use crate::idempotency::{self, Times};
use crate::incoming::{Candidate, Entry, IncomingMessage, Source};
use crate::users::Outcome;

/// Letters of one transaction, at most.
const AT_ONCE: usize = 100;
/// After this no further letter is begun in a transaction.
const LONGEST: Duration = Duration::from_secs(1);

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

/// Why nothing was done about a letter.
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

/// How replays go about it.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// For how long an idempotency key counts.
    pub window: IdempotencyWindow,
    /// Everything is tried and nothing kept; of each user one transaction's letters only.
    pub dry_run: bool,
}

/// Which of a user's open letters are given up.
#[derive(Debug, Clone)]
pub enum Discarded {
    /// These, the first among them; the others are applied.
    These(HashSet<i64>),
    /// All.
    All,
}

/// Replays a user's open letters in order until one fails again; gives each with its verdict.
///
/// # Errors
/// [`ReplayError::Apply`]; then nothing was done, but for what earlier transactions of a long replay have committed.
pub async fn replay(conn: &mut PgConnection, user: UserId, terms: Terms) -> Result<Vec<Step>, ReplayError> {
    work(conn, user, None, terms).await
}

/// Discards some of a user's open letters, for good, and replays the others in order. A discarded command stays `parked`,
/// for the reason [`DISCARDED`]: a rejection would name a fault of the client's.
///
/// # Errors
/// See [`ReplayError`], and [`replay`].
pub async fn discard(
    conn: &mut PgConnection,
    user: UserId,
    letters: &Discarded,
    terms: Terms,
) -> Result<Vec<Step>, ReplayError> {
    work(conn, user, Some(letters), terms).await
}

/// Closes the letter of a message without a readable user.
///
/// # Errors
/// See [`ReplayError`].
pub async fn discard_raw(conn: &mut PgConnection, letter: i64) -> Result<(), ReplayError> {
    let mut tx = conn.begin().await?;
    if let Some(command) = close_raw(&mut tx, letter, "discarded").await? {
        sqlx::query!("UPDATE commands SET reason = $2 WHERE id = $1", command, DISCARDED).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Reads a message without a readable user once more, because a newer version may know it: then it is a letter of its user,
/// in the order of arrival, and what is open of that user is replayed. A dry run only reads it.
///
/// # Errors
/// See [`ReplayError`].
pub async fn replay_raw(conn: &mut PgConnection, letter: &Letter, terms: Terms) -> Result<Vec<Step>, ReplayError> {
    let name = letter.command_id.map(|id| id.to_string());
    let properties = MessageProperties { message_id: name.as_deref(), kind: letter.kind.as_deref() };
    let cut = letter.size.map(cut_body);
    let envelope = match IncomingMessage::read(letter.payload.clone(), properties, TraceHeaders::default(), cut).content
    {
        Message::Command(envelope) => envelope,
        Message::Unread(unread) => return Err(ReplayError::Undecodable(unread.reason)),
        Message::Raw(reason) => return Err(ReplayError::Undecodable(reason)),
    };
    if terms.dry_run {
        return Ok(Vec::new());
    }
    let user = envelope.command.user_id();
    adopt(conn, letter.id, &envelope).await?;
    replay(conn, user, terms).await
}

/// Makes the letter of a message without a user one of its user. When the command was decided by another message, it is
/// only closed.
async fn adopt(conn: &mut PgConnection, letter: i64, envelope: &Envelope) -> Result<(), ReplayError> {
    let header = CommandHeader::from(envelope);
    let (id, user) = (Uuid::from(header.id), Uuid::from(envelope.command.user_id()));
    days::make(conn, header.id.minted_at().date()).await?;
    let mut tx = conn.begin().await?;
    hold(&mut tx, user, id).await?;
    let recorded = sqlx::query!(
        "
        INSERT INTO commands (id, user_id, type, principal, accepted_at, status, reason)
        VALUES ($1, $2, $3, $4, $5, 'parked', $6)
        ON CONFLICT (id) DO UPDATE
        SET user_id = excluded.user_id,
            type = excluded.type,
            principal = excluded.principal,
            accepted_at = excluded.accepted_at
        WHERE commands.status = 'parked' AND commands.user_id IS NULL
        ",
        id,
        user,
        header.kind,
        header.principal,
        header.accepted_at,
        NOT_UNDERSTOOD,
    )
    .execute(&mut *tx)
    .await?;
    if recorded.rows_affected() == 0 {
        close_raw(&mut tx, letter, "replayed").await?;
        sqlx::query!(
            "
            DELETE FROM held_users
            WHERE user_id = $1 AND NOT EXISTS (SELECT FROM dead_letters WHERE user_id = $1 AND state = 'open')
            ",
            user,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        return Ok(());
    }
    let adopted = sqlx::query!(
        "
        UPDATE dead_letters
        SET command_id = $2, user_id = $3, type = $4
        WHERE id = $1 AND state = 'open' AND user_id IS NULL
        ",
        letter,
        id,
        user,
        header.kind,
    )
    .execute(&mut *tx)
    .await?;
    if adopted.rows_affected() == 0 {
        return Err(ReplayError::NotOpen);
    }
    sqlx::query!(
        "
        UPDATE held_users
        SET command_id = (
            SELECT command_id
            FROM dead_letters
            WHERE user_id = $1 AND state = 'open'
            ORDER BY id
            LIMIT 1
        )
        WHERE user_id = $1
        ",
        user,
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Gives the command, if its id is known.
async fn close_raw(conn: &mut PgConnection, letter: i64, state: &str) -> Result<Option<Uuid>, ReplayError> {
    let closed = sqlx::query_scalar!(
        "
        UPDATE dead_letters
        SET state = $2, closed_at = now()
        WHERE id = $1 AND state = 'open' AND user_id IS NULL
        RETURNING command_id
        ",
        letter,
        state,
    )
    .fetch_optional(conn)
    .await?;
    closed.ok_or(ReplayError::NotOpen)
}

struct Open {
    id: i64,
    command_id: Uuid,
    kind: String,
    payload: Vec<u8>,
    size: Option<i64>,
    traceparent: Option<String>,
    tracestate: Option<String>,
}

async fn work(
    conn: &mut PgConnection,
    user: UserId,
    discarded: Option<&Discarded>,
    terms: Terms,
) -> Result<Vec<Step>, ReplayError> {
    let mut steps = Vec::new();
    loop {
        let first = steps.is_empty();
        let more = some(conn, user, discarded, first, terms, &mut steps).await?;
        if !more || terms.dry_run {
            return Ok(steps);
        }
    }
}

/// Deals with the first letters of a user in one transaction; says whether there are more to deal with.
async fn some(
    conn: &mut PgConnection,
    user_id: UserId,
    discarded: Option<&Discarded>,
    first: bool,
    terms: Terms,
    steps: &mut Vec<Step>,
) -> Result<bool, ReplayError> {
    let user = Uuid::from(user_id);
    let mut tx = conn.begin().await?;
    let open = lock(&mut tx, user).await?;
    let began = Instant::now();
    if first && let Some(discarded) = discarded {
        check(&mut tx, &open, discarded).await?;
    }
    if open.is_empty() {
        return Ok(false);
    }
    // What the services work with; whoever owns the user's partition publishes the events.
    let work = sqlx::query!(r#"SELECT count(*) AS "partitions!", now() AS "now!" FROM partitions"#)
        .fetch_one(&mut *tx)
        .await?;
    let partitions = u16::try_from(work.partitions).unwrap_or(u16::MAX);
    let times = Times { window: terms.window, now: work.now };
    let (mut next, mut failed, mut applied) = (None, false, false);
    for (number, letter) in open.iter().enumerate() {
        if number == AT_ONCE || (number > 0 && began.elapsed() > LONGEST) {
            next = next.or(Some(letter.command_id));
            break;
        }
        let verdict = if failed {
            Verdict::Waits
        } else if discarded.is_some_and(|discarded| discarded.contains(letter.id)) {
            give_up(&mut tx, letter).await?;
            Verdict::Discarded
        } else {
            again(&mut tx, letter, &times, partitions).await?
        };
        applied |= matches!(verdict, Verdict::Decided(_));
        if let Verdict::Failed(..) = verdict {
            failed = true;
            next = Some(letter.command_id);
        }
        steps.push(Step { command_id: letter.command_id, kind: letter.kind.clone(), verdict });
    }
    match next {
        Some(next) => {
            sqlx::query!("UPDATE held_users SET command_id = $2 WHERE user_id = $1", user, next)
                .execute(&mut *tx)
                .await?;
        }
        None => {
            sqlx::query!("DELETE FROM held_users WHERE user_id = $1", user).execute(&mut *tx).await?;
        }
    }
    if applied {
        events::note_replay(&mut tx, user_id, partitions).await?;
    }
    if terms.dry_run {
        tx.rollback().await?;
    } else {
        tx.commit().await?;
    }
    Ok(next.is_some() && !failed)
}

/// Locks a user with open letters against batches and other operators; gives the first of the letters. Without the lock
/// there are none, even if a batch commits a letter right now.
async fn lock(conn: &mut PgConnection, user: Uuid) -> Result<Vec<Open>, sqlx::Error> {
    let locked = sqlx::query_scalar!(
        "
        INSERT INTO held_users (user_id, command_id)
        SELECT user_id, command_id
        FROM dead_letters
        WHERE user_id = $1 AND state = 'open'
        ORDER BY id
        LIMIT 1
        ON CONFLICT (user_id) DO UPDATE SET command_id = held_users.command_id
        RETURNING command_id
        ",
        user,
    )
    .fetch_optional(&mut *conn)
    .await?;
    if locked.is_none() {
        return Ok(Vec::new());
    }
    // A statement of its own, so that it sees what was parked while the lock was awaited.
    sqlx::query_as!(
        Open,
        r#"
        SELECT id, command_id AS "command_id!", type AS "kind!", payload, size, traceparent, tracestate
        FROM dead_letters
        WHERE user_id = $1 AND state = 'open'
        ORDER BY id
        LIMIT $2
        "#,
        user,
        i64::try_from(AT_ONCE + 1).unwrap_or(i64::MAX),
    )
    .fetch_all(conn)
    .await
}

/// Refuses to discard letters while an earlier one of their user is not among them.
async fn check(conn: &mut PgConnection, open: &[Open], discarded: &Discarded) -> Result<(), ReplayError> {
    let first = open.first().ok_or(ReplayError::NotOpen)?;
    let Discarded::These(ids) = discarded else { return Ok(()) };
    let ids: Vec<i64> = ids.iter().copied().collect();
    let found = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM dead_letters WHERE id = ANY($1) AND state = 'open'"#,
        &ids,
    )
    .fetch_one(conn)
    .await?;
    if usize::try_from(found).unwrap_or_default() != ids.len() {
        return Err(ReplayError::NotOpen);
    }
    if ids.contains(&first.id) { Ok(()) } else { Err(ReplayError::NotFirst(first.command_id)) }
}

impl Discarded {
    fn contains(&self, letter: i64) -> bool {
        match self {
            Self::These(ids) => ids.contains(&letter),
            Self::All => true,
        }
    }
}

async fn give_up(conn: &mut PgConnection, letter: &Open) -> Result<(), sqlx::Error> {
    close(conn, letter, "discarded").await?;
    sqlx::query!("UPDATE commands SET reason = $2 WHERE id = $1", letter.command_id, DISCARDED).execute(conn).await?;
    Ok(())
}

/// Tries one letter's command; what comes of it is written.
async fn again(conn: &mut PgConnection, letter: &Open, times: &Times, partitions: u16) -> Result<Verdict, ReplayError> {
    let message = letter.message();
    let (sqlstate, reason) = match &message.content {
        Message::Raw(reason) => (None, reason.clone()),
        Message::Unread(unread) => (None, unread.reason.clone()),
        Message::Command(envelope) => {
            let partition = envelope.command.user_id().partition(partitions);
            let source = Source { partition, published_after: None };
            let entry = Entry { header: envelope.as_ref().into(), message: &message, source };
            match once(conn, Candidate { entry: &entry, envelope }, times).await? {
                // A retry of a command that was discarded.
                AloneEnd::Decided { outcome: Outcome::Parked(code), .. } if code == DISCARDED => {
                    give_up(conn, letter).await?;
                    return Ok(Verdict::Discarded);
                }
                AloneEnd::Decided { outcome: Outcome::Parked(_), .. } => (None, UNKNOWN_OUTCOME.to_owned()),
                AloneEnd::Decided { outcome, .. } => {
                    close(conn, letter, "replayed").await?;
                    if !commands::decide(conn, envelope.id, &outcome).await? {
                        // Its day was dropped while it waited, or had no table; its retries behind it need its outcome.
                        days::make(conn, entry.day()).await?;
                        if commands::record(conn, &[(&entry.header, &outcome)]).await? == 0 {
                            return Err(ApplyError::Contention(None).into());
                        }
                    }
                    return Ok(Verdict::Decided(outcome));
                }
                AloneEnd::Failed { sqlstate, reason } => (Some(sqlstate), reason),
            }
        }
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
    // It keeps its place in the user's history: nothing took effect.
    let code = sqlstate.as_deref().unwrap_or(NOT_UNDERSTOOD);
    sqlx::query!("UPDATE commands SET status = 'parked', reason = $2 WHERE id = $1", letter.command_id, code)
        .execute(conn)
        .await?;
    Ok(Verdict::Failed(sqlstate, reason))
}

/// Tries a command, unless it repeats one that has an outcome.
async fn once(conn: &mut PgConnection, candidate: Candidate<'_>, times: &Times) -> Result<AloneEnd, ApplyError> {
    let Candidate { entry, envelope } = candidate;
    let (first, retries) = idempotency::claim(conn, vec![candidate], times, &HashMap::new()).await?;
    if !first.is_empty() {
        let traces = Traces::from([(envelope.id, &entry.message.trace)]);
        return try_alone(conn, candidate, &traces).await;
    }
    let mut outcomes = HashMap::new();
    idempotency::repeat(retries, &mut outcomes, &mut Letters::new(HashSet::new()));
    let outcome = outcomes.remove(&envelope.id).ok_or(ApplyError::Contention(None))?;
    Ok(AloneEnd::Decided { outcome, events: RecordedEvents::default() })
}

impl Open {
    /// What this build reads in the message.
    fn message(&self) -> IncomingMessage {
        let name = self.command_id.to_string();
        let properties = MessageProperties { message_id: Some(&name), kind: Some(&self.kind) };
        let trace = TraceHeaders { traceparent: self.traceparent.clone(), tracestate: self.tracestate.clone() };
        IncomingMessage::read(self.payload.clone(), properties, trace, self.size.map(cut_body))
    }
}

/// The defect of a message of which only the beginning is there. Properties that were refused do not matter any more: an
/// operator who replays a letter has looked at them.
fn cut_body(size: i64) -> FrameDefect {
    FrameDefect { refused: None, properties: None, size: Some(size) }
}

async fn close(conn: &mut PgConnection, letter: &Open, state: &str) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE dead_letters SET state = $2, closed_at = now() WHERE id = $1", letter.id, state)
        .execute(conn)
        .await?;
    Ok(())
}
