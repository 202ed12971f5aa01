//! Change events: written in the transaction that makes the change; `relay` publishes them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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
    /// The type, such as `users.created`.
    pub kind: &'static str,
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

/// Records the events of changes, each with the partition of its command; a user's changes come in order.
///
/// # Errors
/// As the statement gives them.
pub async fn record(
    conn: &mut PgConnection,
    changes: Vec<(&Change, u16)>,
    traces: &Traces<'_>,
) -> Result<Vec<RecordedEvent>, sqlx::Error> {
    #[cfg(feature = "mutants")]
    let changes = crate::mutants::recorded(changes);
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = changes.iter().map(|(change, _)| change.command_id.into()).collect();
    let partitions: Vec<i32> = changes.iter().map(|(_, partition)| i32::from(*partition)).collect();
    let types: Vec<&str> = changes.iter().map(|(change, _)| change.kind).collect();
    let users: Vec<Uuid> = changes.iter().map(|(change, _)| change.user_id.into()).collect();
    let versions: Vec<i64> = changes.iter().map(|(change, _)| change.version).collect();
    let data: Vec<&str> = changes.iter().map(|(change, _)| change.user.as_ref()).collect();
    let trace = |change: &Change| traces.get(&change.command_id);
    let parents: Vec<Option<&str>> =
        changes.iter().map(|(change, _)| trace(change)?.traceparent.as_deref()).collect();
    let states: Vec<Option<&str>> = changes.iter().map(|(change, _)| trace(change)?.tracestate.as_deref()).collect();
    // Positions are taken in the order of the input.
    let rows = sqlx::query!(
        r#"
        INSERT INTO events (id, partition, type, user_id, user_version, data, traceparent, tracestate)
        SELECT id, partition, type, user_id, version, data::jsonb, traceparent, tracestate
        FROM unnest(
            $1::uuid[], $2::integer[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::text[], $8::text[]
        ) WITH ORDINALITY
            AS input (id, partition, type, user_id, version, data, traceparent, tracestate, number)
        ORDER BY number
        RETURNING position, id, occurred_at
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
            kind: change.kind,
            user_id: change.user_id.into(),
            data: Arc::clone(&change.user),
            occurred_at,
            traceparent: trace.and_then(|trace| trace.traceparent.clone()),
            tracestate: trace.and_then(|trace| trace.tracestate.clone()),
        })
    });
    Ok(recorded.collect())
}

/// Deletes some of the events that were published longer ago than `kept`; gives how many.
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
            WHERE published_at < now() - make_interval(secs => $2)
            ORDER BY published_at
            LIMIT $1
            FOR UPDATE SKIP LOCKED
        ))
        "#,
        PRUNED_AT_ONCE.cast_signed(),
        kept.as_secs_f64(),
    )
    .execute(conn)
    .await?;
    Ok(deleted.rows_affected())
}
