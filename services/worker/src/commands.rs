//! The rows of the commands: the deduplication record, the status resource and the audit trail at once.

use std::collections::{HashMap, HashSet};

use common::command::{CommandId, Envelope};
use common::config::Retention;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::dead_letters;
use crate::users::Outcome;

/// Inserts the command rows and gives the commands that were not there yet, in order of arrival.
pub(crate) async fn deduplicate(conn: &mut PgConnection, commands: &[Envelope]) -> Result<Vec<Envelope>, sqlx::Error> {
    let mut once = HashSet::new();
    // A message can come twice in one batch when a publisher repeats it.
    let commands: Vec<&Envelope> = commands.iter().filter(|c| once.insert(c.id)).collect();
    let ids: Vec<Uuid> = commands.iter().map(|c| c.id.into()).collect();
    let user_ids: Vec<Uuid> = commands.iter().map(|c| c.command.user_id().into()).collect();
    let types: Vec<&str> = commands.iter().map(|c| c.command.wire_name()).collect();
    let principals: Vec<&str> = commands.iter().map(|c| c.principal.as_str()).collect();
    let accepted: Vec<OffsetDateTime> = commands.iter().map(|c| c.accepted_at).collect();
    // Sorted, so that two workers with the same commands wait for each other instead of deadlocking.
    let inserted: HashSet<Uuid> = sqlx::query_scalar!(
        r#"
        INSERT INTO commands (id, user_id, type, principal, accepted_at)
        SELECT id, user_id, type, principal, accepted_at
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
            AS input (id, user_id, type, principal, accepted_at)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id
        "#,
        &ids,
        &user_ids,
        &types as &[&str],
        &principals as &[&str],
        &accepted,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .collect();
    #[cfg(feature = "mutants")]
    let inserted = crate::mutants::fresh(inserted, &ids);
    Ok(commands.into_iter().filter(|c| inserted.contains(&c.id.into())).cloned().collect())
}

/// Writes the outcomes into the command rows.
pub(crate) async fn decide(conn: &mut PgConnection, outcomes: &HashMap<CommandId, Outcome>) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = outcomes.keys().map(|id| (*id).into()).collect();
    let (Some(lowest), Some(highest)) = (ids.iter().min(), ids.iter().max()) else { return Ok(()) };
    let mut statuses = Vec::with_capacity(ids.len());
    let mut reasons = Vec::with_capacity(ids.len());
    let mut versions = Vec::with_capacity(ids.len());
    for outcome in outcomes.values() {
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
        UPDATE commands
        SET status = outcome.status, reason = outcome.reason, user_version = outcome.version
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS outcome (id, status, reason, version)
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

/// Drops the tables of days that are no longer kept; gives how many. What a worker still decides is younger by a day at
/// least.
///
/// # Errors
/// As the statement gives them; SQLSTATE 55P03 when batches are under way for too long.
pub async fn drop_days(conn: &mut PgConnection, retention: Retention) -> Result<u64, sqlx::Error> {
    // The server's clock decides, as it does for everything that is pruned.
    let dropped = sqlx::query_scalar!(
        r#"
        SELECT drop_command_days(((now() - make_interval(secs => $1)) AT TIME ZONE 'UTC')::date - 1) AS "dropped!"
        "#,
        retention.0.as_secs_f64(),
    )
    .fetch_one(conn)
    .await?;
    Ok(u64::try_from(dropped).unwrap_or_default())
}
