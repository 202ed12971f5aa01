//! The rows of the commands: the deduplication record, the status resource and the audit trail at once.

use std::time::Duration;

use common::command::{CommandHeader, CommandId};
use common::config::Retention;
use common::db::lock_holders;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use crate::dead_letters;
use crate::users::Outcome;

/// As `drop_command_days` waits.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Outcome in the columns of a command's row.
#[derive(Debug, Clone, Copy)]
struct OutcomeColumns<'a> {
    status: &'static str,
    reason: Option<&'a str>,
    user_version: Option<i64>,
}

impl<'a> From<&'a Outcome> for OutcomeColumns<'a> {
    fn from(outcome: &'a Outcome) -> Self {
        let (status, reason, user_version) = match outcome {
            Outcome::Succeeded(version) => ("succeeded", None, *version),
            Outcome::Rejected(rejection) => ("rejected", Some(rejection.as_str()), None),
            Outcome::Parked(code) => ("parked", Some(code.as_str()), None),
            Outcome::Behind => ("parked", Some(dead_letters::BEHIND), None),
        };
        Self { status, reason, user_version }
    }
}

/// Writes the rows of commands with their outcomes, in this order in the users' histories; gives how many had no row yet. The
/// caller holds every lock that the commands need: the order of positions is that of the effects.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn record(
    conn: &mut PgConnection,
    commands: &[(&CommandHeader, &Outcome)],
) -> Result<usize, sqlx::Error> {
    let (headers, outcomes): (Vec<&CommandHeader>, Vec<OutcomeColumns<'_>>) =
        commands.iter().map(|(header, outcome)| (*header, OutcomeColumns::from(*outcome))).unzip();
    if headers.is_empty() {
        return Ok(0);
    }
    let ids: Vec<Uuid> = headers.iter().map(|header| header.id.into()).collect();
    let user_ids: Vec<Option<Uuid>> = headers.iter().map(|header| header.user_id.map(Uuid::from)).collect();
    let types: Vec<&str> = headers.iter().map(|header| header.kind.as_str()).collect();
    let principals: Vec<&str> = headers.iter().map(|header| header.principal.as_str()).collect();
    let accepted: Vec<OffsetDateTime> = headers.iter().map(|header| header.accepted_at).collect();
    let statuses: Vec<&str> = outcomes.iter().map(|outcome| outcome.status).collect();
    let reasons: Vec<Option<&str>> = outcomes.iter().map(|outcome| outcome.reason).collect();
    let versions: Vec<Option<i64>> = outcomes.iter().map(|outcome| outcome.user_version).collect();
    // Sorted, so that two workers with the same commands wait for each other instead of deadlocking.
    let recorded = sqlx::query!(
        r#"
        WITH transaction AS MATERIALIZED (
            SELECT next_command_position() AS position
        )
        INSERT INTO commands
            (id, user_id, type, principal, accepted_at, status, reason, user_version, position)
        SELECT
            input.id, input.user_id, input.type, input.principal, input.accepted_at, input.status, input.reason,
            input.user_version, transaction.position + input.number
        FROM transaction, unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::bigint[]
        ) WITH ORDINALITY
            AS input (id, user_id, type, principal, accepted_at, status, reason, user_version, number)
        ORDER BY input.id
        ON CONFLICT DO NOTHING
        "#,
        &ids,
        &user_ids as &[Option<Uuid>],
        &types as &[&str],
        &principals as &[&str],
        &accepted,
        &statuses as &[&str],
        &reasons as &[Option<&str>],
        &versions as &[Option<i64>],
    )
    .execute(conn)
    .await?;
    Ok(usize::try_from(recorded.rows_affected()).unwrap_or(usize::MAX))
}

/// Writes the outcome of a command that was parked into its row; false if it has no row any more. Its effect comes now, and
/// so does its place in the user's history.
///
/// # Errors
/// As the statement gives them.
pub(crate) async fn decide(conn: &mut PgConnection, id: CommandId, outcome: &Outcome) -> Result<bool, sqlx::Error> {
    let OutcomeColumns { status, reason, user_version } = outcome.into();
    let decided = sqlx::query!(
        "
        UPDATE commands
        SET status = $2,
            reason = $3,
            user_version = $4,
            applied_at = now(),
            position = next_command_position()
        WHERE id = $1
        ",
        Uuid::from(id),
        status,
        reason,
        user_version,
    )
    .execute(conn)
    .await?;
    Ok(decided.rows_affected() == 1)
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
