//! Change events: written in the transaction that makes the change; `relay` publishes them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::command::{Envelope, UserId};
use common::event;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::dead_letters::Traces;
use crate::pruning::PRUNED_AT_ONCE;

/// The rows at the low end of the table among which pruning looks for those that were published long ago.
const PRUNING_WINDOW: i64 = 10_000;

/// An event that is in the table, with all that its message needs.
#[derive(Debug, Clone)]
pub struct RecordedEvent {
    pub(crate) position: i64,
    pub(crate) id: Uuid,
    pub(crate) partition: u16,
    /// A type of this release, or the name that a later one wrote into the table.
    pub(crate) kind: Cow<'static, str>,
    pub(crate) user_id: Uuid,
    /// JSON text.
    pub(crate) data: Arc<str>,
    pub(crate) occurred_at: OffsetDateTime,
    pub(crate) traceparent: Option<String>,
    pub(crate) tracestate: Option<String>,
}

/// What the events of a transaction have in common.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The partition of the commands, whose owner publishes the events.
    pub partition: u16,
    /// The trace contexts of the commands' messages.
    pub traces: &'a Traces,
    /// Takes what is recorded, for a publisher in this process.
    pub recorded: Option<&'a Mutex<Vec<RecordedEvent>>>,
}

/// Records what commands of different users have just changed; each comes with its user's version after the change.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn record(
    conn: &mut PgConnection,
    changes: &[(&Envelope, i64)],
    origin: Origin<'_>,
) -> Result<(), sqlx::Error> {
    #[cfg(feature = "mutants")]
    let changes = &crate::mutants::recorded(changes);
    if changes.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = changes.iter().map(|(c, _)| c.id.into()).collect();
    let types: Vec<&str> = changes.iter().map(|(c, _)| event::type_of(&c.command)).collect();
    let users: Vec<Uuid> = changes.iter().map(|(c, _)| c.command.user_id().into()).collect();
    let versions: Vec<i64> = changes.iter().map(|(_, version)| *version).collect();
    let trace = |envelope: &Envelope| origin.traces.get(&envelope.id);
    let parents: Vec<Option<&str>> = changes.iter().map(|(c, _)| trace(c)?.traceparent.as_deref()).collect();
    let states: Vec<Option<&str>> = changes.iter().map(|(c, _)| trace(c)?.tracestate.as_deref()).collect();
    // A user that is not there was deleted just now. The members are those of the API's representation,
    // and instants are written as it writes them.
    let rows = sqlx::query!(
        r#"
        INSERT INTO events (id, partition, type, user_id, user_version, data, traceparent, tracestate)
        SELECT
            input.id, $1, input.type, input.user_id, input.version,
            CASE
                WHEN users.id IS NULL THEN json_build_object('id', input.user_id, 'version', input.version)
                ELSE json_strip_nulls(json_build_object(
                    'id', users.id,
                    'email', users.email,
                    'name', users.name,
                    'status', users.status,
                    'version', users.version,
                    'created_at', to_jsonb(users.created_at AT TIME ZONE 'UTC') #>> '{}' || 'Z',
                    'updated_at', to_jsonb(users.updated_at AT TIME ZONE 'UTC') #>> '{}' || 'Z',
                    'suspended_at', to_jsonb(users.suspended_at AT TIME ZONE 'UTC') #>> '{}' || 'Z'
                ))
            END,
            input.traceparent, input.tracestate
        FROM unnest($2::uuid[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::text[])
            AS input (id, type, user_id, version, traceparent, tracestate)
        LEFT JOIN users ON users.id = input.user_id
        RETURNING position, id, data::text AS "data!", occurred_at
        "#,
        i32::from(origin.partition),
        &ids,
        &types as &[&str],
        &users,
        &versions,
        &parents as &[Option<&str>],
        &states as &[Option<&str>],
    )
    .fetch_all(conn)
    .await?;
    let Some(recorded) = origin.recorded else { return Ok(()) };
    let envelopes: HashMap<Uuid, &Envelope> = changes.iter().map(|(c, _)| (c.id.into(), *c)).collect();
    let mut events: Vec<RecordedEvent> = rows
        .into_iter()
        .filter_map(|row| {
            let envelope = envelopes.get(&row.id)?;
            Some(RecordedEvent {
                position: row.position,
                id: row.id,
                partition: origin.partition,
                kind: event::type_of(&envelope.command).into(),
                user_id: envelope.command.user_id().into(),
                data: row.data.into(),
                occurred_at: row.occurred_at,
                traceparent: trace(envelope).and_then(|trace| trace.traceparent.clone()),
                tracestate: trace(envelope).and_then(|trace| trace.tracestate.clone()),
            })
        })
        .collect();
    events.sort_unstable_by_key(|event| event.position);
    recorded.lock().unwrap_or_else(PoisonError::into_inner).append(&mut events);
    Ok(())
}

/// Notes that the transaction replays commands of a user's partition. The last statement before the commit: another replay
/// of the partition waits for it.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn note_replay(conn: &mut PgConnection, user: UserId, partitions: u16) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "
        INSERT INTO partition_replays (partition, replays)
        VALUES ($1, 1)
        ON CONFLICT (partition) DO UPDATE SET replays = partition_replays.replays + 1
        ",
        i32::from(user.partition(partitions)),
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// How many transactions of replays have recorded events of each of these partitions, by a snapshot of this moment. Asked
/// by a batch that holds the locks of all users that it changes: so it sees every replay of theirs.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn replays(conn: &mut PgConnection, partitions: &[u16]) -> Result<Vec<(u16, i64)>, sqlx::Error> {
    let numbers: Vec<i32> = partitions.iter().copied().map(i32::from).collect();
    let rows = sqlx::query!(
        r#"
        SELECT number AS "number!", coalesce(replays, 0) AS "replays!"
        FROM unnest($1::integer[]) AS number
        LEFT JOIN partition_replays ON partition = number
        "#,
        &numbers,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.number.try_into().ok()?, row.replays))).collect())
}

/// Deletes some of the events that were published longer ago than `kept`, in the order of their positions; gives how many. It
/// looks at the lowest positions only: as long as all of those are unpublished, nothing is deleted.
///
/// # Errors
/// As the statement gives them.
pub async fn prune(conn: &mut PgConnection, kept: Duration) -> Result<u64, sqlx::Error> {
    let deleted = sqlx::query!(
        r#"
        DELETE FROM events
        WHERE position = ANY(ARRAY(
            SELECT position
            FROM (
                SELECT position, published_at
                FROM events
                ORDER BY position
                LIMIT $3
            ) AS lowest
            WHERE published_at < now() - make_interval(secs => $2)
            LIMIT $1
        ))
        "#,
        PRUNED_AT_ONCE.cast_signed(),
        kept.as_secs_f64(),
        PRUNING_WINDOW,
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
