//! Change events: written in the transaction that makes the change; `relay` publishes them.

use std::time::Duration;

use common::command::Envelope;
use common::event;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::dead_letters::Traces;
use crate::pruning::PRUNED_AT_ONCE;

/// What the events of a transaction have in common.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The partition of the commands, whose owner publishes the events.
    pub partition: u16,
    /// The trace contexts of the commands' messages.
    pub traces: &'a Traces,
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
    sqlx::query!(
        r#"
        INSERT INTO events (id, partition, type, user_id, user_version, data, traceparent, tracestate)
        SELECT
            input.id, $1, input.type, input.user_id, input.version,
            CASE
                WHEN users.id IS NULL THEN jsonb_build_object('id', input.user_id, 'version', input.version)
                ELSE jsonb_strip_nulls(jsonb_build_object(
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
        "#,
        i32::from(origin.partition),
        &ids,
        &types as &[&str],
        &users,
        &versions,
        &parents as &[Option<&str>],
        &states as &[Option<&str>],
    )
    .execute(conn)
    .await?;
    Ok(())
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
