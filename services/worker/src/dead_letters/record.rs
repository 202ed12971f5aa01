//! Recording letters: within the batch's transaction, or on their own when there is no batch.

use std::collections::HashSet;

use common::command::{CommandId, Envelope, UserId};
use common::config::Retention;
use common::telemetry::TraceHeaders;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{BEHIND, Traces};
use crate::pruning::PRUNED_AT_ONCE;

/// Longer reasons are cut: a row is no place for a stack trace.
const LONGEST_REASON: usize = 1000;

/// The letters of one batch, each user's in order of arrival, and the users that are held so far.
#[derive(Debug)]
pub(crate) struct Letters {
    held: HashSet<UserId>,
    letters: Vec<NewLetter>,
}

#[derive(Debug)]
struct NewLetter {
    envelope: Envelope,
    reason: String,
    sqlstate: Option<String>,
    attempts: i32,
}

/// A message that is no command of ours.
#[derive(Debug, Clone, Copy)]
pub struct RawMessage<'a> {
    /// As it came.
    pub payload: &'a [u8],
    /// Why it is none.
    pub reason: &'a str,
    /// Where it came from.
    pub trace: &'a TraceHeaders,
}

impl Letters {
    /// None yet, with the users that are held already.
    pub(crate) fn new(held: HashSet<UserId>) -> Self {
        Self { held, letters: Vec::new() }
    }

    /// Parks the command if its user is held, and says whether it is.
    pub(crate) fn behind(&mut self, envelope: &Envelope) -> bool {
        let held = self.held.contains(&envelope.command.user_id());
        #[cfg(feature = "mutants")]
        let held = crate::mutants::held(held);
        if held {
            let (envelope, reason) = (envelope.clone(), BEHIND.to_owned());
            self.letters.push(NewLetter { envelope, reason, sqlstate: None, attempts: 0 });
        }
        held
    }

    /// Notes a command that cannot be applied; its user is held from here on.
    pub(crate) fn guilty(&mut self, envelope: &Envelope, sqlstate: Option<String>, reason: &str, attempts: i32) {
        self.held.insert(envelope.command.user_id());
        self.letters.push(NewLetter { envelope: envelope.clone(), reason: cut(reason), sqlstate, attempts });
    }

    /// How many commands were found guilty.
    pub(crate) fn dead(&self) -> usize {
        self.letters.iter().filter(|letter| letter.attempts > 0).count()
    }

    /// Writes the letters, and holds the users of the guilty ones.
    pub(crate) async fn record(self, conn: &mut PgConnection, traces: &Traces) -> Result<(), sqlx::Error> {
        let letters = self.letters;
        if letters.is_empty() {
            return Ok(());
        }
        let mut heads: Vec<(Uuid, Uuid)> = letters
            .iter()
            .filter(|letter| letter.attempts > 0)
            .map(|letter| (letter.envelope.command.user_id().into(), letter.envelope.id.into()))
            .collect();
        heads.sort_unstable();
        let (users, commands): (Vec<Uuid>, Vec<Uuid>) = heads.into_iter().unzip();
        sqlx::query!(
            "
            INSERT INTO held_users (user_id, command_id)
            SELECT user_id, command_id
            FROM unnest($1::uuid[], $2::uuid[]) AS input (user_id, command_id)
            ORDER BY user_id
            -- Held meanwhile by another transaction: changes nothing, but waits for an operator who is about to end that.
            ON CONFLICT (user_id) DO UPDATE SET command_id = held_users.command_id
            ",
            &users,
            &commands,
        )
        .execute(&mut *conn)
        .await?;
        insert(conn, &letters, traces).await
    }
}

/// The users of these commands that are held, locked against operators until the end of the transaction.
pub(crate) async fn held_users(conn: &mut PgConnection, commands: &[Envelope]) -> Result<HashSet<UserId>, sqlx::Error> {
    let users: Vec<Uuid> = commands.iter().map(|c| c.command.user_id().into()).collect();
    let held = sqlx::query_scalar!(
        "
        SELECT user_id
        FROM held_users
        WHERE user_id = ANY($1)
        ORDER BY user_id
        FOR SHARE
        ",
        &users,
    )
    .fetch_all(conn)
    .await?;
    Ok(held.into_iter().filter_map(|id| UserId::try_from(id).ok()).collect())
}

/// Records a message that is no command. One that comes again while its letter is open is only counted.
///
/// # Errors
/// As the statement gives them.
pub async fn record_raw(conn: &mut PgConnection, message: RawMessage<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "
        INSERT INTO dead_letters (payload, reason, attempts, traceparent, tracestate)
        VALUES ($1, $2, 1, $3, $4)
        ON CONFLICT (content_hash) WHERE command_id IS NULL AND state = 'open'
        DO UPDATE SET attempts = dead_letters.attempts + 1, last_seen_at = now()
        ",
        message.payload,
        cut(message.reason),
        message.trace.traceparent.as_deref(),
        message.trace.tracestate.as_deref(),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records a command that no batch will see again, as `parked` for `code`, in a transaction of its own, and says whether
/// it did: a command that was decided before stays as it is. Its user is held; if it was held before, the command goes last.
///
/// # Errors
/// As the statements give them; then nothing is recorded.
pub async fn record_undelivered(
    conn: &mut PgConnection,
    envelope: &Envelope,
    code: &str,
    reason: &str,
    trace: &TraceHeaders,
) -> Result<bool, sqlx::Error> {
    let (id, user) = (Uuid::from(envelope.id), Uuid::from(envelope.command.user_id()));
    sqlx::query!("SELECT ensure_command_day($1)", envelope.id.minted_at().date()).execute(&mut *conn).await?;
    let mut tx = conn.begin().await?;
    let inserted = sqlx::query!(
        "
        INSERT INTO commands (id, user_id, type, principal, accepted_at, status, reason)
        VALUES ($1, $2, $3, $4, $5, 'parked', $6)
        ON CONFLICT DO NOTHING
        ",
        id,
        user,
        envelope.command.wire_name(),
        envelope.principal.as_str(),
        envelope.accepted_at,
        code,
    )
    .execute(&mut *tx)
    .await?;
    let fresh = inserted.rows_affected() == 1;
    if fresh {
        // Changes nothing when the user is held, but waits for an operator who is about to end that.
        sqlx::query!(
            "
            INSERT INTO held_users (user_id, command_id)
            VALUES ($1, $2)
            ON CONFLICT (user_id) DO UPDATE SET command_id = held_users.command_id
            ",
            user,
            id,
        )
        .execute(&mut *tx)
        .await?;
        let letter = NewLetter { envelope: envelope.clone(), reason: cut(reason), sqlstate: None, attempts: 1 };
        insert(&mut tx, &[letter], &Traces::from([(envelope.id, trace.clone())])).await?;
    }
    sqlx::query!("DELETE FROM suspects WHERE command_id = $1", id).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(fresh)
}

async fn insert(conn: &mut PgConnection, letters: &[NewLetter], traces: &Traces) -> Result<(), sqlx::Error> {
    let of = |letter: &NewLetter| -> Option<&TraceHeaders> { traces.get::<CommandId>(&letter.envelope.id) };
    let commands: Vec<Uuid> = letters.iter().map(|l| l.envelope.id.into()).collect();
    let users: Vec<Uuid> = letters.iter().map(|l| l.envelope.command.user_id().into()).collect();
    let types: Vec<&str> = letters.iter().map(|l| l.envelope.command.wire_name()).collect();
    let payloads: Vec<Vec<u8>> = letters.iter().map(|l| l.envelope.encode()).collect();
    let reasons: Vec<&str> = letters.iter().map(|l| l.reason.as_str()).collect();
    let sqlstates: Vec<Option<&str>> = letters.iter().map(|l| l.sqlstate.as_deref()).collect();
    let attempts: Vec<i32> = letters.iter().map(|l| l.attempts).collect();
    let parents: Vec<Option<&str>> = letters.iter().map(|l| of(l)?.traceparent.as_deref()).collect();
    let states: Vec<Option<&str>> = letters.iter().map(|l| of(l)?.tracestate.as_deref()).collect();
    // Numbered so that each user's are in the order of arrival.
    sqlx::query!(
        "
        INSERT INTO dead_letters
            (command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate)
        SELECT command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate
        FROM unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::text[]
        ) WITH ORDINALITY
            AS input (command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate, position)
        ORDER BY position
        ",
        &commands,
        &users,
        &types as &[&str],
        &payloads,
        &reasons as &[&str],
        &sqlstates as &[Option<&str>],
        &attempts,
        &parents as &[Option<&str>],
        &states as &[Option<&str>],
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes some of the letters that were closed longer ago than commands are kept; gives how many.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn prune(conn: &mut PgConnection, retention: Retention) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        "
        DELETE FROM dead_letters
        WHERE ctid = ANY(ARRAY(
            SELECT ctid
            FROM dead_letters
            WHERE closed_at < now() - make_interval(secs => $1)
            LIMIT $2
            FOR UPDATE SKIP LOCKED
        ))
        ",
        retention.0.as_secs_f64(),
        PRUNED_AT_ONCE.cast_signed(),
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}

/// As much of a reason as a row takes; PostgreSQL stores no NUL.
pub(super) fn cut(reason: &str) -> String {
    reason.chars().filter(|c| *c != '\0').take(LONGEST_REASON).collect()
}
