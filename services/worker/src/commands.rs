//! The rows of the commands: the deduplication record, the status resource and the audit trail at once.

use std::collections::HashSet;
use std::time::Duration;

use common::command::{CommandHeader, CommandId};
use common::config::Retention;
use common::db::lock_holders;
use sqlx::PgConnection;
use time::{Date, OffsetDateTime};
use tracing::warn;
use uuid::Uuid;

use crate::dead_letters;
use crate::incoming::Entry;
use crate::users::Outcome;

/// As `drop_command_days` waits.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Inserts the command rows and gives the commands that were not there yet, in order of arrival. A command of a day without a
/// table gets no row: it is parked, and its letter is what says that it was there.
pub(crate) async fn deduplicate<'m>(
    conn: &mut PgConnection,
    entries: Vec<Entry<'m>>,
    outside: &HashSet<Date>,
) -> Result<Vec<Entry<'m>>, sqlx::Error> {
    let (beyond, within): (Vec<&Entry<'_>>, Vec<_>) = entries.iter().partition(|e| outside.contains(&e.day()));
    let headers: Vec<&CommandHeader> = within.into_iter().map(|entry| &entry.header).collect();
    let mut inserted = insert(conn, &headers).await?;
    if !beyond.is_empty() {
        let ids: Vec<Uuid> = beyond.into_iter().map(|entry| entry.id().into()).collect();
        inserted.extend(dead_letters::without_letter(conn, &ids).await?);
    }
    #[cfg(feature = "mutants")]
    let inserted = crate::mutants::fresh(inserted, &headers.iter().map(|header| header.id.into()).collect::<Vec<_>>());
    Ok(entries.into_iter().filter(|entry| inserted.contains(&entry.id().into())).collect())
}

/// Inserts the rows of commands that are about to be decided; gives the ids of those that had none.
pub(crate) async fn insert(conn: &mut PgConnection, commands: &[&CommandHeader]) -> Result<HashSet<Uuid>, sqlx::Error> {
    let ids: Vec<Uuid> = commands.iter().map(|c| c.id.into()).collect();
    let user_ids: Vec<Option<Uuid>> = commands.iter().map(|c| c.user_id.map(Uuid::from)).collect();
    let types: Vec<&str> = commands.iter().map(|c| c.kind.as_str()).collect();
    let principals: Vec<&str> = commands.iter().map(|c| c.principal.as_str()).collect();
    let accepted: Vec<OffsetDateTime> = commands.iter().map(|c| c.accepted_at).collect();
    // Sorted, so that two workers with the same commands wait for each other instead of deadlocking. The position comes
    // with the outcome.
    let inserted = sqlx::query_scalar!(
        r#"
        INSERT INTO commands (id, user_id, type, principal, accepted_at, position)
        SELECT id, user_id, type, principal, accepted_at, 0
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
            AS input (id, user_id, type, principal, accepted_at)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id
        "#,
        &ids,
        &user_ids as &[Option<Uuid>],
        &types as &[&str],
        &principals as &[&str],
        &accepted,
    )
    .fetch_all(conn)
    .await?;
    Ok(inserted.into_iter().collect())
}

/// Writes the outcomes into the command rows, in this order in the users' histories. The caller holds every lock that the
/// commands need: the order of positions is that of the effects.
pub(crate) async fn decide(conn: &mut PgConnection, outcomes: &[(CommandId, Outcome)]) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = outcomes.iter().map(|(id, _)| (*id).into()).collect();
    let (Some(lowest), Some(highest)) = (ids.iter().min(), ids.iter().max()) else { return Ok(()) };
    let mut statuses = Vec::with_capacity(ids.len());
    let mut reasons = Vec::with_capacity(ids.len());
    let mut versions = Vec::with_capacity(ids.len());
    for (_, outcome) in outcomes {
        let (status, reason, version) = match outcome {
            Outcome::Succeeded(version) => ("succeeded", None, *version),
            Outcome::Rejected(rejection) => ("rejected", Some(rejection.as_str()), None),
            Outcome::Parked(code) => ("parked", Some(code.as_str()), None),
            Outcome::Behind => ("parked", Some(dead_letters::BEHIND), None),
        };
        statuses.push(status);
        reasons.push(reason);
        versions.push(version);
    }
    // The bounds let the planner leave out the other days' tables.
    sqlx::query!(
        r#"
        WITH transaction AS MATERIALIZED (
            SELECT next_command_position() AS position
        )
        UPDATE commands
        SET status = outcome.status,
            reason = outcome.reason,
            user_version = outcome.version,
            position = transaction.position + outcome.number
        FROM transaction, unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) WITH ORDINALITY
            AS outcome (id, status, reason, version, number)
        WHERE commands.id = outcome.id AND commands.id BETWEEN $5 AND $6
        "#,
        &ids,
        &statuses as &[&str],
        &reasons as &[Option<&str>],
        &versions as &[Option<i64>],
        lowest,
        highest,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes tomorrow's table, so that none has to be made while commands wait for it.
///
/// # Errors
/// As the statement gives them.
pub async fn prepare_tomorrow(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT ensure_command_day((now() AT TIME ZONE 'UTC')::date + 1)").fetch_one(conn).await.map(drop)
}

/// Drops the tables of days that are no longer kept, unless something old came into them since; gives how many. At least
/// the deployment's retention is kept, by the server's clock.
///
/// # Errors
/// As the statement gives them; SQLSTATE 55P03 when batches are under way for too long, or something else holds the table.
pub async fn drop_days(conn: &mut PgConnection, retention: Retention) -> Result<u64, sqlx::Error> {
    let days = i32::try_from(retention.0.as_secs() / (24 * 3600)).unwrap_or(i32::MAX);
    let dropped =
        sqlx::query_scalar!(r#"SELECT drop_command_days($1) AS "dropped!""#, days).fetch_one(&mut *conn).await;
    if let Err(error) = &dropped
        && error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
    {
        let holders = lock_holders(conn, LOCK_TIMEOUT).await?;
        warn!(holders, "the tables of old days cannot be dropped while others hold locks");
    }
    Ok(u64::try_from(dropped?).unwrap_or_default())
}
