//! The rows of commands, and of which commands there will be none.

use std::collections::HashSet;

use common::command::{CommandId, Rejection};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Decided, Decision};
use crate::loader::Rows;

/// A command that is younger than this is not lost yet: the shortest `UNKNOWN_AFTER_SECONDS`.
const YOUNG: time::Duration = time::Duration::seconds(20);

/// Reads the outcomes of many commands; pending ones are left out.
pub(crate) fn decided<'c>(conn: &'c mut PgConnection, ids: &'c [Uuid]) -> Rows<'c, Decided> {
    Box::pin(async move {
        let mut decided = rows(conn, ids).await?;
        let found: HashSet<Uuid> = decided.iter().map(|(id, _)| *id).collect();
        let young = OffsetDateTime::now_utc() - YOUNG;
        let old = |id: &CommandId| id.minted_at() < young;
        let without_row = ids.iter().filter(|id| !found.contains(id));
        let mut lost: Vec<CommandId> = without_row.filter_map(|id| CommandId::try_from(*id).ok()).filter(old).collect();
        if lost.is_empty() {
            return Ok(decided);
        }
        let decided_through = decided_through(conn).await?;
        lost.retain(|id| decided_through.is_some_and(|through| id.minted_at() < through));
        // Once more: whatever the marks cover is visible after they were read.
        let ids: Vec<Uuid> = lost.iter().map(|id| (*id).into()).collect();
        let late = rows(conn, &ids).await?;
        lost.retain(|id| !late.iter().any(|(found, _)| *found == Uuid::from(*id)));
        decided.extend(late);
        decided.extend(lost.into_iter().map(|id| (id.into(), Decided::unknown(id))));
        Ok(decided)
    })
}

/// Before when everything that was accepted is decided, in every partition; `None` while that is not known of one.
async fn decided_through(conn: &mut PgConnection) -> Result<Option<OffsetDateTime>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"
        SELECT CASE WHEN bool_and(decided_through IS NOT NULL) THEN min(decided_through) END AS decided_through
        FROM partitions
        "#
    )
    .fetch_one(conn)
    .await
}

async fn rows(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<(Uuid, Decided)>, sqlx::Error> {
    let (Some(lowest), Some(highest)) = (ids.iter().min(), ids.iter().max()) else { return Ok(Vec::new()) };
    // The bounds let the planner leave out the other days' tables.
    let rows = sqlx::query!(
        r#"
        SELECT
            id, user_id, type AS kind, principal, accepted_at, applied_at, status, reason, user_version,
            CASE
                WHEN reason = 'behind-another' THEN (
                    SELECT command_id
                    FROM held_users
                    WHERE held_users.user_id = commands.user_id
                )
            END AS blocked_by
        FROM commands
        WHERE id = ANY($1) AND id BETWEEN $2 AND $3
        "#,
        ids,
        lowest,
        highest,
    )
    .fetch_all(conn)
    .await?;
    let decided = rows.into_iter().map(|row| {
        let decision = match (row.status.as_str(), row.reason.as_deref().and_then(Rejection::from_name)) {
            ("succeeded", _) => Decision::Succeeded,
            ("rejected", Some(rejection)) => Decision::Rejected(rejection),
            // Parked, or rejected for a reason that a newer worker wrote: either way a person has to look.
            _ => Decision::Parked,
        };
        let decided = Decided {
            id: row.id,
            user_id: row.user_id,
            kind: Some(row.kind),
            principal: Some(row.principal),
            accepted_at: row.accepted_at,
            applied_at: Some(row.applied_at),
            reason: row.reason,
            blocked_by: row.blocked_by,
            user_version: row.user_version,
            decision,
        };
        (row.id, decided)
    });
    Ok(decided.collect())
}
