//! What makes a retried request take effect once: the first command under a key is applied, the others get its outcome.
//!
//! # Why is a key claimed before anything is applied?
//! The claim is an insert into a unique index. Another transaction that claims the same key at the same time, for whatever
//! partition, waits until this one ends, and then finds both the key and the outcome.
//!
//! # Which time does the window count by?
//! By the times at which the commands were accepted, because that is what a client knows of. They are the clocks of APIs, so
//! each is taken only within what the database's clock knows of it: a command was not accepted in the future, nor before
//! its queue was last seen empty. A retry that had to wait in its queue is still one, whichever of the two is applied
//! first; the key is kept for [`BACKLOG`] longer for it.
//!
//! # Why does a key remember the command of an earlier window?
//! Commands of two windows can come in the other order: the first was parked, or its partition was paused. It takes effect
//! all the same, and its own retries find it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::command::{CommandId, Digest, Rejection};
use common::config::IdempotencyWindow;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::blame::ApplyError;
use crate::dead_letters::{DISCARDED, Letters, NOT_UNDERSTOOD, UNKNOWN_OUTCOME};
use crate::incoming::{Candidate, Entry};
use crate::pruning::PRUNED_AT_ONCE;
use crate::users::Outcome;

/// For how long after the window a key is still kept.
pub const BACKLOG: Duration = Duration::from_hours(24);

/// What a transaction knows of the times of its commands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) window: IdempotencyWindow,
    /// Of the transaction, by the database's clock.
    pub(crate) now: OffsetDateTime,
}

impl Times {
    /// When a command was accepted.
    fn accepted_at(&self, Candidate { entry, envelope }: Candidate<'_>) -> OffsetDateTime {
        let after = entry.source.published_after;
        let accepted_at = after.map_or(envelope.accepted_at, |after| envelope.accepted_at.max(after));
        accepted_at.min(self.now)
    }

    /// Whether one of two commands under a key is a retry of the other.
    fn together(&self, one: OffsetDateTime, other: OffsetDateTime) -> bool {
        (one - other).abs() < self.window.0
    }

    /// Splits a batch where a key comes again after its window: that command claims it once the first is applied.
    pub(crate) fn rounds<'e, 'm>(&self, entries: &'e [Entry<'m>]) -> Vec<&'e [Entry<'m>]> {
        let (mut rounds, mut begin) = (Vec::new(), 0);
        let mut firsts: HashMap<Digest, OffsetDateTime> = HashMap::new();
        for (at, entry) in entries.iter().enumerate() {
            let Some(envelope) = entry.message.envelope() else { continue };
            let Some(idempotency) = envelope.idempotency else { continue };
            let accepted_at = self.accepted_at(Candidate { entry, envelope });
            let first = *firsts.entry(idempotency.key).or_insert(accepted_at);
            if !self.together(first, accepted_at) {
                rounds.push(&entries[begin..at]);
                begin = at;
                firsts = HashMap::from([(idempotency.key, accepted_at)]);
            }
        }
        rounds.push(&entries[begin..]);
        rounds
    }
}

/// A command that is not applied, because its key was there before.
#[derive(Debug)]
pub(crate) struct Retry<'e> {
    entry: &'e Entry<'e>,
    answer: Answer,
}

impl Retry<'_> {
    /// The retry's own id.
    pub(crate) fn id(&self) -> CommandId {
        self.entry.id()
    }
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

/// Splits commands, in order of arrival, into those to apply and retries; the former hold their keys from now on. `applied`
/// has the outcomes of this transaction that are not in their rows yet.
///
/// # Errors
/// As the statements give them.
pub(crate) async fn claim<'e>(
    conn: &mut PgConnection,
    commands: Vec<Candidate<'e>>,
    times: &Times,
    applied: &HashMap<CommandId, Outcome>,
) -> Result<(Vec<Candidate<'e>>, Vec<Retry<'e>>), ApplyError> {
    let mut claimed = insert(conn, &commands, times).await?;
    let late: Vec<Candidate<'e>> = commands
        .iter()
        .filter(|c| c.envelope.idempotency.is_some() && !claimed.contains(&c.envelope.id.into()))
        .copied()
        .collect();
    if late.is_empty() {
        return Ok((commands, Vec::new()));
    }
    let mut keys = keys(conn, &late).await?;
    for name in claim_other_window(&late, &mut keys, &mut claimed, times) {
        if let Some(key) = keys.get(&name) {
            write(conn, &name, key).await?;
        }
    }
    claimed.extend(applied.keys().copied().map(Uuid::from));
    let holders = keys.values().flat_map(|key| [Some(&key.current), key.earlier.as_ref()]).flatten();
    let elsewhere = holders.map(|holder| holder.command_id).filter(|id| !claimed.contains(id)).collect();
    let decided = decided(conn, elsewhere).await?;
    let mut first = Vec::with_capacity(commands.len());
    let mut retries = Vec::with_capacity(late.len());
    for candidate in commands {
        match answer(candidate, &claimed, &keys, &decided, times) {
            Some(answer) => retries.push(Retry { entry: candidate.entry, answer }),
            None => first.push(candidate),
        }
    }
    Ok((first, retries))
}

/// Adds the outcomes of the retries to those of the commands that were applied. One whose first command was just parked
/// waits behind it. One whose first command has an outcome that this version does not know is a dead letter itself.
pub(crate) fn repeat(retries: Vec<Retry<'_>>, outcomes: &mut HashMap<CommandId, Outcome>, letters: &mut Letters) {
    for Retry { entry, answer } in retries {
        let outcome = match answer {
            Answer::As(first) => match outcomes.get(&first) {
                Some(Outcome::Parked(_) | Outcome::Behind) if letters.behind(entry) => Some(Outcome::Behind),
                outcome => outcome.cloned(),
            },
            Answer::Again(Outcome::Parked(code)) if code != DISCARDED => {
                if letters.behind(entry) {
                    Some(Outcome::Behind)
                } else {
                    letters.guilty(entry, None, UNKNOWN_OUTCOME, 1);
                    Some(Outcome::Parked(NOT_UNDERSTOOD.to_owned()))
                }
            }
            Answer::Again(outcome) => Some(outcome),
            Answer::KeyReused => Some(Outcome::Rejected(Rejection::KeyReused)),
        };
        outcomes.extend(outcome.map(|outcome| (entry.id(), outcome)));
    }
}

/// What a key stands for in one window.
#[derive(Debug, Clone)]
struct Holder {
    fingerprint: Vec<u8>,
    command_id: Uuid,
    accepted_at: OffsetDateTime,
}

/// A key that was there.
#[derive(Debug)]
struct Key {
    current: Holder,
    earlier: Option<Holder>,
}

impl Key {
    /// The first command of the window in which another was accepted: the last one before it, or else, as clocks differ, the
    /// next one after it.
    fn holder(&self, accepted_at: OffsetDateTime, times: &Times) -> Option<&Holder> {
        let holders = [Some(&self.current), self.earlier.as_ref()].into_iter().flatten();
        holders
            .filter(|holder| times.together(holder.accepted_at, accepted_at))
            .min_by_key(|holder| (holder.accepted_at > accepted_at, (holder.accepted_at - accepted_at).abs()))
    }

    /// A command that was parked with the key in its hands.
    fn is_held_by(&self, id: Uuid) -> bool {
        self.current.command_id == id || self.earlier.as_ref().is_some_and(|earlier| earlier.command_id == id)
    }
}

/// `None` for a command that is to be applied.
fn answer(
    candidate: Candidate<'_>,
    claimed: &HashSet<Uuid>,
    keys: &HashMap<Vec<u8>, Key>,
    decided: &HashMap<Uuid, Outcome>,
    times: &Times,
) -> Option<Answer> {
    let (id, idempotency) = (Uuid::from(candidate.envelope.id), candidate.envelope.idempotency?);
    let key = keys.get(idempotency.key.as_bytes().as_slice())?;
    if claimed.contains(&id) || key.is_held_by(id) {
        return None;
    }
    let holder = key.holder(times.accepted_at(candidate), times)?;
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
    commands: &[Candidate<'_>],
    times: &Times,
) -> Result<HashSet<Uuid>, sqlx::Error> {
    let mut once: HashSet<Digest> = HashSet::new();
    // No statement may touch a row twice.
    let keyed: Vec<_> = commands
        .iter()
        .filter_map(|candidate| Some((*candidate, candidate.envelope.idempotency?)))
        .filter(|(_, idempotency)| once.insert(idempotency.key))
        .collect();
    if keyed.is_empty() {
        return Ok(HashSet::new());
    }
    let keys: Vec<&[u8]> = keyed.iter().map(|(_, idempotency)| idempotency.key.as_bytes().as_slice()).collect();
    let fingerprints: Vec<&[u8]> =
        keyed.iter().map(|(_, idempotency)| idempotency.fingerprint.as_bytes().as_slice()).collect();
    let ids: Vec<Uuid> = keyed.iter().map(|(candidate, _)| candidate.envelope.id.into()).collect();
    let accepted: Vec<OffsetDateTime> = keyed.iter().map(|(candidate, _)| times.accepted_at(*candidate)).collect();
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
        SET fingerprint = excluded.fingerprint,
            command_id = excluded.command_id,
            accepted_at = excluded.accepted_at,
            claimed_at = now(),
            earlier_fingerprint = held.fingerprint,
            earlier_command_id = held.command_id,
            earlier_accepted_at = held.accepted_at
        WHERE held.accepted_at <= excluded.accepted_at - make_interval(secs => $5)
            AND held.command_id <> excluded.command_id
        RETURNING command_id
        "#,
        &keys as &[&[u8]],
        &fingerprints as &[&[u8]],
        &ids,
        &accepted,
        times.window.0.as_secs_f64(),
    )
    .fetch_all(conn)
    .await?;
    Ok(claimed.into_iter().collect())
}

/// The keys of these commands, all of them held.
async fn keys(conn: &mut PgConnection, commands: &[Candidate<'_>]) -> Result<HashMap<Vec<u8>, Key>, sqlx::Error> {
    let idempotencies = commands.iter().filter_map(|candidate| candidate.envelope.idempotency.as_ref());
    let keys: Vec<&[u8]> = idempotencies.map(|idempotency| idempotency.key.as_bytes().as_slice()).collect();
    let rows = sqlx::query!(
        r#"
        SELECT
            key, fingerprint, command_id, accepted_at,
            earlier_fingerprint, earlier_command_id, earlier_accepted_at
        FROM idempotency_keys
        WHERE key = ANY($1)
        "#,
        &keys as &[&[u8]],
    )
    .fetch_all(conn)
    .await?;
    let holder = |fingerprint, command_id, accepted_at| Holder { fingerprint, command_id, accepted_at };
    let keys = rows.into_iter().map(|row| {
        let earlier = row.earlier_fingerprint.zip(row.earlier_command_id).zip(row.earlier_accepted_at);
        let earlier = earlier.map(|((fingerprint, id), accepted_at)| holder(fingerprint, id, accepted_at));
        (row.key, Key { current: holder(row.fingerprint, row.command_id, row.accepted_at), earlier })
    });
    Ok(keys.collect())
}

/// Gives keys to first commands of another window than that of the key's command; gives the keys that changed. A key remembers
/// two windows, the latest ones.
fn claim_other_window(
    late: &[Candidate<'_>],
    keys: &mut HashMap<Vec<u8>, Key>,
    claimed: &mut HashSet<Uuid>,
    times: &Times,
) -> Vec<Vec<u8>> {
    let mut changed = Vec::new();
    for candidate in late {
        let envelope = candidate.envelope;
        let Some(idempotency) = &envelope.idempotency else { continue };
        let (name, accepted_at) = (idempotency.key.as_bytes().as_slice(), times.accepted_at(*candidate));
        let Some(key) = keys.get_mut(name) else { continue };
        let command_id = Uuid::from(envelope.id);
        if key.is_held_by(command_id) || key.holder(accepted_at, times).is_some() {
            continue;
        }
        let holder = Holder { fingerprint: idempotency.fingerprint.as_bytes().to_vec(), command_id, accepted_at };
        claimed.insert(command_id);
        if accepted_at > key.current.accepted_at {
            key.earlier = Some(std::mem::replace(&mut key.current, holder));
        } else if key.earlier.as_ref().is_none_or(|earlier| earlier.accepted_at < accepted_at) {
            key.earlier = Some(holder);
        } else {
            continue;
        }
        changed.push(name.to_vec());
    }
    changed
}

/// Writes a key, whose row is locked already. Rare.
async fn write(conn: &mut PgConnection, name: &[u8], Key { current, earlier }: &Key) -> Result<(), sqlx::Error> {
    let earlier = earlier.as_ref();
    sqlx::query!(
        "
        UPDATE idempotency_keys
        SET fingerprint = $2,
            command_id = $3,
            accepted_at = $4,
            claimed_at = CASE WHEN command_id = $3 THEN claimed_at ELSE now() END,
            earlier_fingerprint = $5,
            earlier_command_id = $6,
            earlier_accepted_at = $7
        WHERE key = $1
        ",
        name,
        current.fingerprint,
        current.command_id,
        current.accepted_at,
        earlier.map(|holder| holder.fingerprint.as_slice()),
        earlier.map(|holder| holder.command_id),
        earlier.map(|holder| holder.accepted_at),
    )
    .execute(conn)
    .await?;
    Ok(())
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
            WHERE claimed_at < now() - make_interval(secs => $1)
            ORDER BY claimed_at
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
