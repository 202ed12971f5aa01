//! Recording letters: within the batch's transaction, or on their own when there is no batch.

use std::collections::HashSet;

use common::broker::FrameDefect;
use common::command::{CommandHeader, Message, UserId};
use common::config::Retention;
use common::telemetry::TraceHeaders;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::BEHIND;
use crate::days::{self, DayState};
use crate::incoming::{Entry, IncomingMessage};
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
    header: CommandHeader,
    body: Vec<u8>,
    trace: TraceHeaders,
    reason: String,
    sqlstate: Option<String>,
    attempts: i32,
    defect: Option<FrameDefect>,
}

impl NewLetter {
    fn of(
        header: CommandHeader,
        message: &IncomingMessage,
        sqlstate: Option<String>,
        reason: &str,
        attempts: i32,
    ) -> Self {
        let (body, trace, defect) = (message.body.clone(), message.trace.clone(), message.defect.clone());
        Self { header, body, trace, reason: cut(reason), sqlstate, attempts, defect }
    }
}

/// A message without a readable id.
#[derive(Debug, Clone, Copy)]
pub struct RawMessage<'a> {
    /// As it came.
    pub payload: &'a [u8],
    /// Why it is no command.
    pub reason: &'a str,
    /// Where it came from.
    pub trace: &'a TraceHeaders,
    /// Why it did not arrive as it was published, if it did not.
    pub defect: Option<&'a FrameDefect>,
}

impl<'a> RawMessage<'a> {
    /// The message, if it is a raw one.
    pub(crate) fn of(message: &'a IncomingMessage) -> Option<Self> {
        match &message.content {
            Message::Raw(reason) => {
                Some(Self { payload: &message.body, reason, trace: &message.trace, defect: message.defect.as_ref() })
            }
            Message::Command(_) | Message::Unread(_) => None,
        }
    }
}

impl Letters {
    /// None yet, with the users that are held already.
    pub(crate) fn new(held: HashSet<UserId>) -> Self {
        Self { held, letters: Vec::new() }
    }

    /// Whether commands of this user are parked.
    pub(crate) fn holds(&self, user: UserId) -> bool {
        let held = self.held.contains(&user);
        #[cfg(feature = "mutants")]
        let held = crate::mutants::held(held);
        held
    }

    /// Parks the command if its user is held, and says whether it is.
    pub(crate) fn behind(&mut self, entry: &Entry<'_>) -> bool {
        let held = entry.user_id().is_some_and(|user| self.holds(user));
        if held {
            self.letters.push(NewLetter::of(entry.header.clone(), entry.message, None, BEHIND, 0));
        }
        held
    }

    /// Notes a command that cannot be applied; its user is held from here on.
    pub(crate) fn guilty(&mut self, entry: &Entry<'_>, sqlstate: Option<String>, reason: &str, attempts: i32) {
        self.held.extend(entry.user_id());
        self.letters.push(NewLetter::of(entry.header.clone(), entry.message, sqlstate, reason, attempts));
    }

    /// How many commands were found guilty.
    pub(crate) fn dead(&self) -> usize {
        self.letters.iter().filter(|letter| letter.attempts > 0).count()
    }

    /// Writes the letters, and holds the users of the guilty ones.
    pub(crate) async fn record(self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        let letters = self.letters;
        if letters.is_empty() {
            return Ok(());
        }
        let mut heads: Vec<(Uuid, Uuid)> = letters
            .iter()
            .filter(|letter| letter.attempts > 0)
            .filter_map(|letter| Some((letter.header.user_id?.into(), letter.header.id.into())))
            .collect();
        // Of a user with two only the first counts, and no statement may touch a row twice.
        heads.sort_by_key(|(user, _)| *user);
        heads.dedup_by_key(|(user, _)| *user);
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
        insert(conn, &letters).await
    }
}

/// Which of these commands have no letter, open or closed.
pub(crate) async fn without_letter(conn: &mut PgConnection, commands: &[Uuid]) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        SELECT input.id AS "id!"
        FROM unnest($1::uuid[]) AS input (id)
        WHERE NOT EXISTS (SELECT FROM dead_letters WHERE command_id = input.id)
        "#,
        commands,
    )
    .fetch_all(conn)
    .await
}

/// Records a message that is no command, and gives the number of its letter. One with the same body that comes while the
/// letter is open is only counted.
///
/// # Errors
/// As the statement gives them.
pub async fn record_raw(conn: &mut PgConnection, message: RawMessage<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        "
        INSERT INTO dead_letters (payload, reason, attempts, traceparent, tracestate, properties, size)
        VALUES ($1, $2, 1, $3, $4, $5, $6)
        ON CONFLICT (content_hash) WHERE command_id IS NULL AND state = 'open'
        DO UPDATE SET attempts = dead_letters.attempts + 1, last_seen_at = now()
        RETURNING id
        ",
        message.payload,
        cut(message.reason),
        message.trace.traceparent.as_deref(),
        message.trace.tracestate.as_deref(),
        message.defect.and_then(|defect| defect.properties.as_deref()),
        message.defect.and_then(|defect| defect.size),
    )
    .fetch_one(conn)
    .await
}

/// Records a command that no batch will see again, as `parked` for `code`, in a transaction of its own, and says whether
/// it did: a command that was decided before stays as it is. Its user is held; if it was held before, the command goes last.
///
/// # Errors
/// As the statements give them; then nothing is recorded.
pub async fn record_undelivered(
    conn: &mut PgConnection,
    message: &IncomingMessage,
    code: &str,
    reason: &str,
) -> Result<bool, sqlx::Error> {
    let Some(header) = message.header() else { return Ok(false) };
    let (id, user) = (Uuid::from(header.id), header.user_id.map(Uuid::from));
    let day = days::ensure(conn, header.id.minted_at().date()).await?;
    let reason = if day == DayState::Kept {
        reason.to_owned()
    } else {
        format!("{reason}; the records of its day are not kept: it may have been applied")
    };
    let mut tx = conn.begin().await?;
    let fresh = if day == DayState::Outside {
        !without_letter(&mut tx, &[id]).await?.is_empty()
    } else {
        let inserted = sqlx::query!(
            "
            INSERT INTO commands (id, user_id, type, principal, accepted_at, status, reason)
            VALUES ($1, $2, $3, $4, $5, 'parked', $6)
            ON CONFLICT DO NOTHING
            ",
            id,
            user,
            header.kind,
            header.principal,
            header.accepted_at,
            code,
        );
        inserted.execute(&mut *tx).await?.rows_affected() == 1
    };
    if fresh {
        if let Some(user) = user {
            hold(&mut tx, user, id).await?;
        }
        insert(&mut tx, &[NewLetter::of(header, message, None, &reason, 1)]).await?;
    }
    sqlx::query!("DELETE FROM suspects WHERE command_id = $1", id).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(fresh)
}

/// Holds a user for a command. Changes nothing when the user is held, but waits for an operator who is about to end that.
pub(super) async fn hold(conn: &mut PgConnection, user: Uuid, command: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "
        INSERT INTO held_users (user_id, command_id)
        VALUES ($1, $2)
        ON CONFLICT (user_id) DO UPDATE SET command_id = held_users.command_id
        ",
        user,
        command,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert(conn: &mut PgConnection, letters: &[NewLetter]) -> Result<(), sqlx::Error> {
    let commands: Vec<Uuid> = letters.iter().map(|l| l.header.id.into()).collect();
    let users: Vec<Option<Uuid>> = letters.iter().map(|l| l.header.user_id.map(Uuid::from)).collect();
    let types: Vec<&str> = letters.iter().map(|l| l.header.kind.as_str()).collect();
    let payloads: Vec<&[u8]> = letters.iter().map(|l| l.body.as_slice()).collect();
    let reasons: Vec<&str> = letters.iter().map(|l| l.reason.as_str()).collect();
    let sqlstates: Vec<Option<&str>> = letters.iter().map(|l| l.sqlstate.as_deref()).collect();
    let attempts: Vec<i32> = letters.iter().map(|l| l.attempts).collect();
    let parents: Vec<Option<&str>> = letters.iter().map(|l| l.trace.traceparent.as_deref()).collect();
    let states: Vec<Option<&str>> = letters.iter().map(|l| l.trace.tracestate.as_deref()).collect();
    let defects: Vec<Option<&FrameDefect>> = letters.iter().map(|l| l.defect.as_ref()).collect();
    let properties: Vec<Option<&[u8]>> = defects.iter().map(|d| d.and_then(|d| d.properties.as_deref())).collect();
    let sizes: Vec<Option<i64>> = defects.iter().map(|d| d.and_then(|d| d.size)).collect();
    // Numbered so that each user's are in the order of arrival.
    sqlx::query!(
        "
        INSERT INTO dead_letters
            (command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate, properties, size)
        SELECT
            command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate, properties, size
        FROM unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::text[],
            $10::bytea[], $11::bigint[]
        ) WITH ORDINALITY AS input (
            command_id, user_id, type, payload, reason, sqlstate, attempts, traceparent, tracestate, properties, size,
            position
        )
        ORDER BY position
        -- Recorded before, and its row dropped with its day since.
        ON CONFLICT (command_id) DO NOTHING
        ",
        &commands,
        &users as &[Option<Uuid>],
        &types as &[&str],
        &payloads as &[&[u8]],
        &reasons as &[&str],
        &sqlstates as &[Option<&str>],
        &attempts,
        &parents as &[Option<&str>],
        &states as &[Option<&str>],
        &properties as &[Option<&[u8]>],
        &sizes as &[Option<i64>],
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
