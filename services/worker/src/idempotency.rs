//! What makes a retried request take effect once: the first command under a key is applied, the others get its outcome.
//!
//! # Why is a key claimed before anything is applied?
//! The claim is an insert into a unique index. Another transaction that claims the same key at the same time, for whatever
//! partition, waits until this one ends, and then finds both the key and the outcome.
//!
//! # Which time does the window count by?
//! By the times at which the commands were accepted, because that is what a client knows of. A retry that comes to the
//! worker late, because its queue had to wait, still finds its key for [`BACKLOG`] longer.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::command::{CommandId, Digest, Envelope, Rejection};
use common::config::IdempotencyWindow;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::blame::ApplyError;
use crate::dead_letters::Letters;
use crate::pruning::PRUNED_AT_ONCE;
use crate::users::Outcome;

/// For how long after the window a key is still kept.
pub const BACKLOG: Duration = Duration::from_hours(24);

/// A command that is not applied, because its key was there before.
#[derive(Debug)]
pub(crate) struct Retry {
    envelope: Envelope,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    /// The outcome that an earlier transaction decided.
    Again(Outcome),
    /// The outcome that this command of the same batch is going to have.
    As(CommandId),
    /// The key was another request's.
    KeyReused,
}

/// Splits commands, in order of arrival, into those to apply and retries; the former hold their keys from now on.
///
/// # Errors
/// As the statements give them.
pub(crate) async fn claim(
    conn: &mut PgConnection,
    commands: Vec<Envelope>,
    window: IdempotencyWindow,
) -> Result<(Vec<Envelope>, Vec<Retry>), ApplyError> {
    let claimed = insert(conn, &commands, window).await?;
    let late: Vec<&Envelope> =
        commands.iter().filter(|c| c.idempotency.is_some() && !claimed.contains(&c.id.into())).collect();
    if late.is_empty() {
        return Ok((commands, Vec::new()));
    }
    let holders = holders(conn, &late).await?;
    let elsewhere = holders.values().map(|holder| holder.command_id).filter(|id| !claimed.contains(id)).collect();
    let decided = decided(conn, elsewhere).await?;
    let mut first = Vec::with_capacity(commands.len());
    let mut retries = Vec::with_capacity(late.len());
    for envelope in commands {
        match answer(&envelope, &claimed, &holders, &decided) {
            Some(answer) => retries.push(Retry { envelope, answer }),
            None => first.push(envelope),
        }
    }
    Ok((first, retries))
}

/// Adds the outcomes of the retries to those of the commands that were applied. One whose first command was just parked
/// waits behind it.
pub(crate) fn repeat(retries: Vec<Retry>, outcomes: &mut HashMap<CommandId, Outcome>, letters: &mut Letters) {
    for Retry { envelope, answer } in retries {
        let outcome = match answer {
            Answer::As(first) => match outcomes.get(&first) {
                Some(Outcome::Parked(_) | Outcome::Behind) if letters.behind(&envelope) => Some(Outcome::Behind),
                outcome => outcome.cloned(),
            },
            Answer::Again(outcome) => Some(outcome),
            Answer::KeyReused => Some(Outcome::Rejected(Rejection::KeyReused)),
        };
        outcomes.extend(outcome.map(|outcome| (envelope.id, outcome)));
    }
}

/// What a key stands for.
struct Holder {
    fingerprint: Vec<u8>,
    command_id: Uuid,
}

/// `None` for a command that is to be applied.
fn answer(
    envelope: &Envelope,
    claimed: &HashSet<Uuid>,
    holders: &HashMap<Vec<u8>, Holder>,
    decided: &HashMap<Uuid, Outcome>,
) -> Option<Answer> {
    if claimed.contains(&envelope.id.into()) {
        return None;
    }
    let idempotency = envelope.idempotency?;
    let holder = holders.get(idempotency.key.as_bytes().as_slice())?;
    if holder.command_id == Uuid::from(envelope.id) {
        // It was parked with the key in its hands.
        return None;
    }
    if holder.fingerprint != idempotency.fingerprint.as_bytes() {
        return Some(Answer::KeyReused);
    }
    if claimed.contains(&holder.command_id) {
        return CommandId::try_from(holder.command_id).ok().map(Answer::As);
    }
    // Without a row the outcome is no longer kept: there is nothing to repeat.
    decided.get(&holder.command_id).cloned().map(Answer::Again)
}

/// Claims the keys, each for its first command; gives the commands that have theirs now.
async fn insert(
    conn: &mut PgConnection,
    commands: &[Envelope],
    window: IdempotencyWindow,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let mut once: HashSet<Digest> = HashSet::new();
    // No statement may touch a row twice.
    let keyed: Vec<_> = commands
        .iter()
        .filter_map(|envelope| Some((envelope, envelope.idempotency?)))
        .filter(|(_, idempotency)| once.insert(idempotency.key))
        .collect();
    if keyed.is_empty() {
        return Ok(HashSet::new());
    }
    let keys: Vec<&[u8]> = keyed.iter().map(|(_, idempotency)| idempotency.key.as_bytes().as_slice()).collect();
    let fingerprints: Vec<&[u8]> =
        keyed.iter().map(|(_, idempotency)| idempotency.fingerprint.as_bytes().as_slice()).collect();
    let ids: Vec<Uuid> = keyed.iter().map(|(envelope, _)| envelope.id.into()).collect();
    let accepted: Vec<OffsetDateTime> = keyed.iter().map(|(envelope, _)| envelope.accepted_at).collect();
    // Sorted, so that two workers with the same keys wait for each other instead of deadlocking. A key that is old enough
    // is taken over; one that is not stays locked until its command's outcome has been read.
    let claimed = sqlx::query_scalar!(
        r#"
        INSERT INTO idempotency_keys AS held (key, fingerprint, command_id, accepted_at)
        SELECT key, fingerprint, command_id, accepted_at
        FROM unnest($1::bytea[], $2::bytea[], $3::uuid[], $4::timestamptz[])
            AS input (key, fingerprint, command_id, accepted_at)
        ORDER BY key
        ON CONFLICT (key) DO UPDATE
        SET fingerprint = excluded.fingerprint, command_id = excluded.command_id, accepted_at = excluded.accepted_at
        WHERE held.accepted_at <= excluded.accepted_at - make_interval(secs => $5)
        RETURNING command_id
        "#,
        &keys as &[&[u8]],
        &fingerprints as &[&[u8]],
        &ids,
        &accepted,
        window.0.as_secs_f64(),
    )
    .fetch_all(conn)
    .await?;
    Ok(claimed.into_iter().collect())
}

/// The first commands under the keys of these.
async fn holders(conn: &mut PgConnection, commands: &[&Envelope]) -> Result<HashMap<Vec<u8>, Holder>, sqlx::Error> {
    let idempotencies = commands.iter().filter_map(|envelope| envelope.idempotency.as_ref());
    let keys: Vec<&[u8]> = idempotencies.map(|idempotency| idempotency.key.as_bytes().as_slice()).collect();
    let rows = sqlx::query!(
        r#"
        SELECT key, fingerprint, command_id
        FROM idempotency_keys
        WHERE key = ANY($1)
        "#,
        &keys as &[&[u8]],
    )
    .fetch_all(conn)
    .await?;
    let holder = |fingerprint, command_id| Holder { fingerprint, command_id };
    Ok(rows.into_iter().map(|row| (row.key, holder(row.fingerprint, row.command_id))).collect())
}

/// The outcomes of commands that earlier transactions decided.
async fn decided(conn: &mut PgConnection, ids: Vec<Uuid>) -> Result<HashMap<Uuid, Outcome>, sqlx::Error> {
    let (Some(lowest), Some(highest)) = (ids.iter().min(), ids.iter().max()) else { return Ok(HashMap::new()) };
    // The bounds let the planner leave out the other days' tables.
    let rows = sqlx::query!(
        r#"
        SELECT id, status, reason, user_version
        FROM commands
        WHERE id = ANY($1) AND id BETWEEN $2 AND $3
        "#,
        &ids,
        lowest,
        highest,
    )
    .fetch_all(conn)
    .await?;
    let outcome = |status: &str, reason: Option<String>, version| match (status, reason) {
        ("succeeded", _) => Some(Outcome::Succeeded(version)),
        ("rejected", Some(reason)) => {
            // A reason that a newer worker wrote is for a person to look at.
            Some(Rejection::from_name(&reason).map_or(Outcome::Parked(reason), Outcome::Rejected))
        }
        ("parked", Some(reason)) => Some(Outcome::Parked(reason)),
        _ => None,
    };
    Ok(rows.into_iter().filter_map(|row| Some((row.id, outcome(&row.status, row.reason, row.user_version)?))).collect())
}

/// Deletes some of the keys that no longer count; gives how many.
///
/// # Errors
/// As the statement gives them.
pub async fn prune(conn: &mut PgConnection, window: IdempotencyWindow) -> Result<u64, sqlx::Error> {
    // What a claim or another worker has locked is left to them: nobody waits for anybody here.
    let deleted = sqlx::query!(
        r#"
        DELETE FROM idempotency_keys
        WHERE ctid = ANY(ARRAY(
            SELECT ctid
            FROM idempotency_keys
            WHERE accepted_at < now() - make_interval(secs => $1)
            ORDER BY accepted_at
            LIMIT $2
            FOR UPDATE SKIP LOCKED
        ))
        "#,
        (window.0 + BACKLOG).as_secs_f64(),
        PRUNED_AT_ONCE.cast_signed(),
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
