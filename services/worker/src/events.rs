//! Change events: written in the transaction that makes the change; `relay` publishes them.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use common::command::UserId;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::dead_letters::Traces;
use crate::pruning::PRUNED_AT_ONCE;
use crate::users::Change;

/// An event that was written into the outbox.
#[derive(Debug, Clone)]
pub struct RecordedEvent {
    /// The key of its row.
    pub position: i64,
    /// The command's id.
    pub id: Uuid,
    /// The partition of the command, whose owner publishes the event.
    pub partition: u16,
    /// The type, such as `users.created`; of an event in the table perhaps one of a later release.
    pub kind: Cow<'static, str>,
    /// The user that was changed.
    pub user_id: Uuid,
    /// The user after the change, as JSON.
    pub data: Arc<str>,
    /// When it was changed, by the database's clock.
    pub occurred_at: OffsetDateTime,
    /// W3C trace context of the command's message.
    pub traceparent: Option<String>,
    /// W3C trace state of the command's message.
    pub tracestate: Option<String>,
}

/// Events of a transaction.
#[derive(Debug, Default)]
pub struct RecordedEvents {
    /// Each user's in order.
    pub events: Vec<RecordedEvent>,
    /// How many transactions of replays have recorded events of the partitions concerned, by a snapshot that was taken when the transaction
    /// held the locks of all users that it changes: it shows every replay of theirs.
    pub(crate) replays: BTreeMap<u16, i64>,
}

impl RecordedEvents {
    /// Adds later events of the same transaction.
    pub(crate) fn extend(&mut self, later: Self) {
        self.events.extend(later.events);
        self.replays.extend(later.replays);
    }
}

/// The rows at the low end of the table among which pruning looks for those that were published long ago.
const PRUNING_WINDOW: i64 = 10_000;

/// Records the events of changes, each with the partition of its command; a user's changes come in order.
///
/// # Errors
/// As the statement gives them.
pub async fn record(
    conn: &mut PgConnection,
    changes: Vec<(&Change, u16)>,
    traces: &Traces<'_>,
) -> Result<RecordedEvents, sqlx::Error> {
    #[cfg(feature = "mutants")]
    let changes = crate::mutants::recorded(changes);
    if changes.is_empty() {
        return Ok(RecordedEvents::default());
    }
    let ids: Vec<Uuid> = changes.iter().map(|(change, _)| change.command_id.into()).collect();
    let partitions: Vec<i32> = changes.iter().map(|(_, partition)| i32::from(*partition)).collect();
    let types: Vec<&str> = changes.iter().map(|(change, _)| change.kind).collect();
    let users: Vec<Uuid> = changes.iter().map(|(change, _)| change.user_id.into()).collect();
    let versions: Vec<i64> = changes.iter().map(|(change, _)| change.version).collect();
    let data: Vec<&str> = changes.iter().map(|(change, _)| change.user.as_ref()).collect();
    let trace = |change: &Change| traces.get(&change.command_id);
    let parents: Vec<Option<&str>> = changes.iter().map(|(change, _)| trace(change)?.traceparent.as_deref()).collect();
    let states: Vec<Option<&str>> = changes.iter().map(|(change, _)| trace(change)?.tracestate.as_deref()).collect();
    // Positions are taken in the order of the input.
    let rows = sqlx::query!(
        r#"
        WITH recorded AS (
            INSERT INTO events (id, partition, type, user_id, user_version, data, traceparent, tracestate)
            SELECT id, partition, type, user_id, version, data::json, traceparent, tracestate
            FROM unnest(
                $1::uuid[], $2::integer[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::text[]
            ) WITH ORDINALITY
                AS input (id, partition, type, user_id, version, data, traceparent, tracestate, number)
            ORDER BY number
            RETURNING position, id, partition, occurred_at
        )
        SELECT
            position AS "position!",
            id AS "id!",
            recorded.partition AS "partition!",
            occurred_at AS "occurred_at!",
            coalesce(replays, 0) AS "replays!"
        FROM recorded
        LEFT JOIN partition_replays ON partition_replays.partition = recorded.partition
        "#,
        &ids,
        &partitions,
        &types as &[&str],
        &users,
        &versions,
        &data as &[&str],
        &parents as &[Option<&str>],
        &states as &[Option<&str>],
    )
    .fetch_all(conn)
    .await?;
    let replays = rows.iter().filter_map(|row| Some((u16::try_from(row.partition).ok()?, row.replays))).collect();
    let positions: HashMap<Uuid, (i64, OffsetDateTime)> =
        rows.into_iter().map(|row| (row.id, (row.position, row.occurred_at))).collect();
    let recorded = changes.into_iter().filter_map(|(change, partition)| {
        let id = change.command_id.into();
        let (position, occurred_at) = *positions.get(&id)?;
        let trace = traces.get(&change.command_id);
        Some(RecordedEvent {
            position,
            id,
            partition,
            kind: Cow::Borrowed(change.kind),
            user_id: change.user_id.into(),
            data: Arc::clone(&change.user),
            occurred_at,
            traceparent: trace.and_then(|trace| trace.traceparent.clone()),
            tracestate: trace.and_then(|trace| trace.tracestate.clone()),
        })
    });
    Ok(RecordedEvents { events: recorded.collect(), replays })
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
            FROM events
            WHERE position <= (
                    SELECT max(position)
                    FROM (SELECT position FROM events ORDER BY position LIMIT $3) AS lowest
                )
                AND published_at < now() - make_interval(secs => $2)
            ORDER BY position
            LIMIT $1
            FOR UPDATE SKIP LOCKED
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
