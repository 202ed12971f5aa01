//! What each command does to the users: one set-based statement per kind, one outcome per command.
//!
//! Every statement judges and changes at once: rows that may not change come back with their reason, and nothing raises.
//! Commands of one call concern different users and claim different e-mail addresses ([`waves`](crate::waves) sees to it).

mod representation;

use std::collections::HashMap;
use std::sync::Arc;

use common::command::{Command, CommandId, CreateUser, Email, Envelope, Name, Rejection, UpdateUser, UserId};
use common::event;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::blame::ApplyError;

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Applied; the user's version afterwards, unless the user is gone.
    Succeeded(Option<i64>),
    /// Changed nothing, for a reason that the client can act on.
    Rejected(Rejection),
    /// Could not be applied; an SQLSTATE or a word says why, and an operator has to look.
    Parked(String),
    /// Was not tried: an earlier command of its user is parked, and it waits behind that one.
    Behind,
}

/// Change that a command made.
#[derive(Debug, Clone)]
pub struct Change {
    /// The command.
    pub command_id: CommandId,
    /// The user that was changed.
    pub user_id: UserId,
    /// The type of its event.
    pub kind: &'static str,
    /// The user's version after the change; a deletion counts as one more.
    pub version: i64,
    /// The user after the change, as JSON: the representation of the API; of a deleted user only `id` and `version`.
    pub user: Arc<str>,
}

/// What a wave did.
#[derive(Debug, Default)]
pub struct WaveEnd {
    /// The outcome of each command.
    pub outcomes: HashMap<CommandId, Outcome>,
    /// The changes, in the order of the wave.
    pub changes: Vec<Change>,
}

/// A command as the set-based statements take it.
type Of<'a, T> = (&'a Envelope, &'a T);

/// What a statement found for one user.
struct Judged {
    id: Uuid,
    reason: Option<String>,
    /// The version after the command; of a deleted user the last one.
    version: Option<i64>,
    /// Whether the command made that version.
    changed: bool,
    // The user's row after a change that left one.
    email: Option<String>,
    name: Option<String>,
    status: Option<String>,
    created_at: Option<OffsetDateTime>,
    updated_at: Option<OffsetDateTime>,
    suspended_at: Option<OffsetDateTime>,
}

/// Applies one wave; the caller records its events. Deletes and updates come before creates: they can set free an address that a
/// create claims.
///
/// # Errors
/// As the statements give them; then nothing of the wave is applied once the transaction is rolled back.
pub async fn apply_wave(conn: &mut PgConnection, wave: &[&Envelope]) -> Result<WaveEnd, ApplyError> {
    let (mut creates, mut updates) = (Vec::new(), Vec::new());
    let (mut deletes, mut suspends, mut reactivates) = (Vec::new(), Vec::new(), Vec::new());
    for envelope in wave {
        match &envelope.command {
            Command::CreateUser(create) => creates.push((*envelope, create)),
            Command::UpdateUser(update) => updates.push((*envelope, update)),
            Command::DeleteUser(_) => deletes.push(*envelope),
            Command::SuspendUser(_) => suspends.push(*envelope),
            Command::ReactivateUser(_) => reactivates.push(*envelope),
        }
    }
    let mut judged = Vec::with_capacity(wave.len());
    if !deletes.is_empty() {
        judged.extend(delete(conn, &deletes).await?);
    }
    if !updates.is_empty() {
        judged.extend(update(conn, &updates).await?);
    }
    if !suspends.is_empty() {
        judged.extend(change_status(conn, &suspends, "suspended", Rejection::AlreadySuspended).await?);
    }
    if !reactivates.is_empty() {
        judged.extend(change_status(conn, &reactivates, "active", Rejection::NotSuspended).await?);
    }
    if !creates.is_empty() {
        judged.extend(create(conn, &creates).await?);
    }
    wave_end(wave, judged)
}

async fn create(conn: &mut PgConnection, commands: &[Of<'_, CreateUser>]) -> Result<Vec<Judged>, sqlx::Error> {
    let ids: Vec<Uuid> = commands.iter().map(|(_, create)| create.user_id.into()).collect();
    let emails: Vec<&str> = commands.iter().map(|(_, create)| create.email.as_str()).collect();
    let names: Vec<&str> = commands.iter().map(|(_, create)| create.name.as_str()).collect();
    // In the order of the unique index, so that two workers wait for each other instead of deadlocking.
    sqlx::query_as!(
        Judged,
        r#"
        WITH input AS (
            SELECT id, email, name
            FROM unnest($1::uuid[], $2::text[], $3::text[]) AS input (id, email, name)
        ),
        created AS (
            INSERT INTO users (id, email, name, version)
            SELECT input.id, email, name, coalesce(deleted_users.version, 0) + 1
            FROM input
            LEFT JOIN deleted_users ON deleted_users.id = input.id
            ORDER BY lower(email COLLATE "C")
            ON CONFLICT DO NOTHING
            RETURNING id, version, email, name, status, created_at, updated_at, suspended_at
        )
        SELECT
            input.id AS "id!",
            CASE
                WHEN created.id IS NOT NULL THEN NULL
                WHEN users.id IS NOT NULL THEN 'user-exists'
                ELSE 'email-taken'
            END AS reason,
            created.version AS "version?",
            created.id IS NOT NULL AS "changed!",
            created.email AS "email?",
            created.name AS "name?",
            created.status AS "status?",
            created.created_at AS "created_at?",
            created.updated_at AS "updated_at?",
            created.suspended_at AS "suspended_at?"
        FROM input
        LEFT JOIN created ON created.id = input.id
        LEFT JOIN users ON users.id = input.id
        "#,
        &ids,
        &emails as &[&str],
        &names as &[&str],
    )
    .fetch_all(conn)
    .await
}

async fn update(conn: &mut PgConnection, commands: &[Of<'_, UpdateUser>]) -> Result<Vec<Judged>, sqlx::Error> {
    let ids: Vec<Uuid> = commands.iter().map(|(_, update)| update.user_id.into()).collect();
    let versions: Vec<Option<i64>> = commands.iter().map(|(envelope, _)| envelope.if_match).collect();
    let emails: Vec<Option<&str>> =
        commands.iter().map(|(_, update)| update.email.as_ref().map(Email::as_str)).collect();
    let names: Vec<Option<&str>> = commands.iter().map(|(_, update)| update.name.as_ref().map(Name::as_str)).collect();
    let reservations = reserve_emails(conn, &ids, &emails).await?;
    // Each reservation is deleted before its user is changed: the change reads it from there.
    sqlx::query_as!(
        Judged,
        r#"
        WITH released AS (
            DELETE FROM users
            WHERE id = ANY($5)
            RETURNING lower(email COLLATE "C") AS email
        ),
        judged AS (
            SELECT
                input.id,
                input.email,
                input.name,
                users.version,
                -- Changes nothing: no version and no event.
                coalesce(input.email, users.email) = users.email
                    AND coalesce(input.name, users.name) = users.name AS same,
                CASE
                    WHEN users.id IS NULL THEN 'user-not-found'
                    WHEN input.if_match <> users.version THEN 'version-lost'
                    WHEN lower(input.email COLLATE "C") <> lower(users.email COLLATE "C") AND released.email IS NULL
                        THEN 'email-taken'
                END AS reason
            FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[]) AS input (id, if_match, email, name)
            LEFT JOIN users ON users.id = input.id
            LEFT JOIN released ON released.email = lower(input.email COLLATE "C")
        ),
        changed AS (
            UPDATE users
            SET email = coalesce(judged.email, users.email),
                name = coalesce(judged.name, users.name),
                version = users.version + 1,
                updated_at = now()
            FROM judged
            WHERE users.id = judged.id
                AND users.version = judged.version
                AND judged.reason IS NULL
                AND NOT judged.same
            RETURNING
                users.id, users.version, users.email, users.name, users.status, users.created_at, users.updated_at,
                users.suspended_at
        )
        SELECT
            judged.id AS "id!",
            judged.reason,
            CASE WHEN judged.same THEN judged.version ELSE changed.version END AS "version?",
            changed.id IS NOT NULL AS "changed!",
            changed.email AS "email?",
            changed.name AS "name?",
            changed.status AS "status?",
            changed.created_at AS "created_at?",
            changed.updated_at AS "updated_at?",
            changed.suspended_at AS "suspended_at?"
        FROM judged
        LEFT JOIN changed ON changed.id = judged.id
        "#,
        &ids,
        &versions as &[Option<i64>],
        &emails as &[Option<&str>],
        &names as &[Option<&str>],
        &reservations,
    )
    .fetch_all(conn)
    .await
}

/// Reserves the addresses that users change to and nobody has, each by a row that is deleted in this transaction; gives the ids
/// of those rows.
///
/// An UPDATE that finds its address taken raises, and the server logs the address. An INSERT can wait for another transaction
/// that has it and then do nothing. After it, other transactions wait for this one, also once the row is deleted.
async fn reserve_emails(
    conn: &mut PgConnection,
    users: &[Uuid],
    emails: &[Option<&str>],
) -> Result<Vec<Uuid>, sqlx::Error> {
    if emails.iter().all(Option::is_none) {
        return Ok(Vec::new());
    }
    // In the order of the unique index, as creates are.
    sqlx::query_scalar!(
        r#"
        INSERT INTO users (id, email, name)
        SELECT gen_random_uuid(), input.email, ''
        FROM unnest($1::uuid[], $2::text[]) AS input (id, email)
        JOIN users ON users.id = input.id
        WHERE lower(input.email COLLATE "C") <> lower(users.email COLLATE "C")
        ORDER BY lower(input.email COLLATE "C")
        ON CONFLICT DO NOTHING
        RETURNING id
        "#,
        users,
        emails as &[Option<&str>],
    )
    .fetch_all(conn)
    .await
}

async fn delete(conn: &mut PgConnection, commands: &[&Envelope]) -> Result<Vec<Judged>, sqlx::Error> {
    let (ids, versions) = targets(commands);
    let rows = sqlx::query!(
        r#"
        WITH judged AS (
            SELECT
                input.id,
                users.version,
                CASE
                    WHEN users.id IS NULL THEN 'user-not-found'
                    WHEN input.if_match <> users.version THEN 'version-lost'
                END AS reason
            FROM unnest($1::uuid[], $2::bigint[]) AS input (id, if_match)
            LEFT JOIN users ON users.id = input.id
        ),
        changed AS (
            DELETE FROM users
            USING judged
            WHERE users.id = judged.id AND users.version = judged.version AND judged.reason IS NULL
            RETURNING users.id, users.version + 1 AS version
        ),
        remembered AS (
            INSERT INTO deleted_users (id, version)
            SELECT id, version
            FROM changed
            ON CONFLICT (id) DO UPDATE SET version = excluded.version, deleted_at = now()
        )
        SELECT
            judged.id AS "id!",
            judged.reason,
            changed.version AS "version?",
            changed.id IS NOT NULL AS "changed!"
        FROM judged
        LEFT JOIN changed ON changed.id = judged.id
        "#,
        &ids,
        &versions as &[Option<i64>],
    )
    .fetch_all(conn)
    .await?;
    let judged = rows.into_iter().map(|row| Judged {
        id: row.id,
        reason: row.reason,
        version: row.version,
        changed: row.changed,
        email: None,
        name: None,
        status: None,
        created_at: None,
        updated_at: None,
        suspended_at: None,
    });
    Ok(judged.collect())
}

/// Makes users `status`, which rejects those who are that already with `already`.
async fn change_status(
    conn: &mut PgConnection,
    commands: &[&Envelope],
    status: &str,
    already: Rejection,
) -> Result<Vec<Judged>, sqlx::Error> {
    let (ids, versions) = targets(commands);
    sqlx::query_as!(
        Judged,
        r#"
        WITH judged AS (
            SELECT
                input.id,
                users.version,
                CASE
                    WHEN users.id IS NULL THEN 'user-not-found'
                    WHEN input.if_match <> users.version THEN 'version-lost'
                    WHEN users.status = $3 THEN $4
                END AS reason
            FROM unnest($1::uuid[], $2::bigint[]) AS input (id, if_match)
            LEFT JOIN users ON users.id = input.id
        ),
        changed AS (
            UPDATE users
            SET status = $3,
                suspended_at = CASE WHEN $3 = 'suspended' THEN now() END,
                version = users.version + 1,
                updated_at = now()
            FROM judged
            WHERE users.id = judged.id AND users.version = judged.version AND judged.reason IS NULL
            RETURNING
                users.id, users.version, users.email, users.name, users.status, users.created_at, users.updated_at,
                users.suspended_at
        )
        SELECT
            judged.id AS "id!",
            judged.reason,
            changed.version AS "version?",
            changed.id IS NOT NULL AS "changed!",
            changed.email AS "email?",
            changed.name AS "name?",
            changed.status AS "status?",
            changed.created_at AS "created_at?",
            changed.updated_at AS "updated_at?",
            changed.suspended_at AS "suspended_at?"
        FROM judged
        LEFT JOIN changed ON changed.id = judged.id
        "#,
        &ids,
        &versions as &[Option<i64>],
        status,
        already.as_str(),
    )
    .fetch_all(conn)
    .await
}

fn targets(commands: &[&Envelope]) -> (Vec<Uuid>, Vec<Option<i64>>) {
    commands.iter().map(|envelope| (Uuid::from(envelope.command.user_id()), envelope.if_match)).unzip()
}

fn wave_end(wave: &[&Envelope], judged: Vec<Judged>) -> Result<WaveEnd, ApplyError> {
    let mut by_user: HashMap<UserId, Judged> =
        judged.into_iter().filter_map(|judged| Some((UserId::try_from(judged.id).ok()?, judged))).collect();
    let mut end = WaveEnd::default();
    for envelope in wave {
        // Judged fit to change, yet not changed: something outside the worker changed the row meanwhile.
        let judged = by_user.remove(&envelope.command.user_id()).ok_or(ApplyError::Contention(None))?;
        end.changes.extend(judged.change(envelope));
        let outcome = match (judged.reason.as_deref().and_then(Rejection::from_name), judged.version) {
            (Some(rejection), _) => Outcome::Rejected(rejection),
            (None, None) => return Err(ApplyError::Contention(None)),
            (None, Some(version)) => {
                let gone = matches!(envelope.command, Command::DeleteUser(_));
                Outcome::Succeeded((!gone).then_some(version))
            }
        };
        end.outcomes.insert(envelope.id, outcome);
    }
    Ok(end)
}

impl Judged {
    fn change(&self, envelope: &Envelope) -> Option<Change> {
        let version = self.version.filter(|_| self.changed)?;
        Some(Change {
            command_id: envelope.id,
            user_id: envelope.command.user_id(),
            kind: event::type_of(&envelope.command),
            version,
            user: representation::of(self, version),
        })
    }
}
