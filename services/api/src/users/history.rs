//! What was done to a user: the commands of its id, as entries and as SQL.
//!
//! # Why not in the order of the ids?
//! They carry the clocks of the APIs. The worker numbers commands as they take effect, and a page goes by that position,
//! which its cursors carry. A position changes only when an operator replays a parked command: it took effect then.

use common::db::{DbError, Pool};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Object};
use serde::Serialize;
use sqlx::PgConnection;
use time::serde::rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::rows::{Read, reading};
use crate::commands::CommandStatus;
use crate::contract::{EXAMPLE_COMMAND, EXAMPLE_TIME};
use crate::json::Json;
use crate::paging::{Order, Paging};

/// A command that concerned a user, and its outcome
#[derive(Debug, Object, Serialize)]
#[oai(skip_serializing_if_is_none)]
pub(crate) struct HistoryEntry {
    /// The command's id.
    pub(crate) id: Uuid,
    /// What was asked for, like `users.create`.
    #[oai(rename = "type")]
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Who asked: `key:` and the client's name, `oidc:` and the subject, or `anonymous`.
    pub(crate) principal: String,
    /// What became of it; never `pending`.
    pub(crate) status: CommandStatus,
    /// Why it was rejected or parked, as in the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The user's version after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_version: Option<i64>,
    /// When it was accepted.
    #[serde(with = "rfc3339")]
    pub(crate) accepted_at: OffsetDateTime,
    /// When it was decided.
    #[serde(with = "rfc3339")]
    pub(crate) applied_at: OffsetDateTime,
}

/// A page of a user's history, newest first
#[derive(Debug, Object, Serialize)]
#[oai(example, skip_serializing_if_is_none)]
pub(crate) struct HistoryPage {
    /// The commands, in the reverse order in which they took effect.
    pub(crate) items: Vec<HistoryEntry>,
    /// Continues with older ones; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_cursor: Option<String>,
    /// Leads back to newer ones; absent on the first page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prev_cursor: Option<String>,
}

impl Example for HistoryPage {
    fn example() -> Self {
        let entry = HistoryEntry {
            id: EXAMPLE_COMMAND,
            kind: "users.create".to_owned(),
            principal: "key:billing".to_owned(),
            status: CommandStatus::Succeeded,
            reason: None,
            user_version: Some(1),
            accepted_at: EXAMPLE_TIME,
            applied_at: EXAMPLE_TIME + Duration::milliseconds(12),
        };
        Self { items: vec![entry], next_cursor: None, prev_cursor: None }
    }
}

#[derive(ApiResponse)]
pub(crate) enum GetHistoryAnswer {
    /// A page of the history.
    #[oai(status = 200)]
    Page(Json<HistoryPage>, #[oai(header = "Link")] Option<String>),
}

/// A row, before its status is read.
pub(crate) struct CommandRow {
    id: Uuid,
    kind: String,
    principal: String,
    status: String,
    reason: Option<String>,
    user_version: Option<i64>,
    accepted_at: OffsetDateTime,
    applied_at: OffsetDateTime,
    position: i64,
}

impl CommandRow {
    /// Its position, as cursors carry it.
    pub(crate) fn cursor(&self) -> Uuid {
        // Positions are positive.
        Uuid::from_u128(u128::try_from(self.position).unwrap_or_default())
    }
}

impl From<CommandRow> for HistoryEntry {
    fn from(row: CommandRow) -> Self {
        let CommandRow { id, kind, principal, status, reason, user_version, accepted_at, applied_at, .. } = row;
        let status = match status.as_str() {
            "succeeded" => CommandStatus::Succeeded,
            "rejected" => CommandStatus::Rejected,
            _ => CommandStatus::Parked,
        };
        Self { id, kind, principal, status, reason, user_version, accepted_at, applied_at }
    }
}

/// The rows of one page, in the order of reading; `None` when neither a user nor a command has this id.
pub(crate) async fn page(pool: &Pool, user_id: Uuid, paging: &Paging) -> Result<Option<Vec<CommandRow>>, DbError> {
    reading(pool, &(user_id, paging)).await
}

impl Read for (Uuid, &Paging) {
    type Found = Option<Vec<CommandRow>>;

    async fn read(&self, conn: &mut PgConnection) -> Result<Self::Found, sqlx::Error> {
        let (user_id, paging) = *self;
        let ((order, beyond), limit) = (paging.start(), paging.rows());
        let beyond = position_of(beyond);
        let rows = match order {
            Order::Ascending => commands_after(conn, user_id, beyond, limit).await?,
            Order::Descending => commands_before(conn, user_id, beyond, limit).await?,
        };
        // A user whose commands are no longer kept has an empty history, and so has the end of every other.
        let known = !rows.is_empty() || !paging.first() || exists(conn, user_id).await?;
        Ok(known.then_some(rows))
    }
}

/// The position in a cursor; its edges lie beyond every position.
fn position_of(cursor: Uuid) -> i64 {
    i64::try_from(cursor.as_u128()).unwrap_or(i64::MAX)
}

async fn commands_before(
    conn: &mut PgConnection,
    user_id: Uuid,
    before: i64,
    limit: i64,
) -> Result<Vec<CommandRow>, sqlx::Error> {
    sqlx::query_as!(
        CommandRow,
        r#"
        SELECT id, type AS kind, principal, status, reason, user_version, accepted_at, applied_at, position
        FROM commands
        WHERE user_id = $1 AND position < $2
        ORDER BY position DESC
        LIMIT $3
        "#,
        user_id,
        before,
        limit,
    )
    .fetch_all(conn)
    .await
}

async fn commands_after(
    conn: &mut PgConnection,
    user_id: Uuid,
    after: i64,
    limit: i64,
) -> Result<Vec<CommandRow>, sqlx::Error> {
    sqlx::query_as!(
        CommandRow,
        r#"
        SELECT id, type AS kind, principal, status, reason, user_version, accepted_at, applied_at, position
        FROM commands
        WHERE user_id = $1 AND position > $2
        ORDER BY position
        LIMIT $3
        "#,
        user_id,
        after,
        limit,
    )
    .fetch_all(conn)
    .await
}

async fn exists(conn: &mut PgConnection, user_id: Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM users WHERE id = $1) AS "exists!""#, user_id)
        .fetch_one(conn)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::assert_written_as_described;

    #[test]
    fn a_history_is_written_as_the_contract_describes_it() {
        assert_written_as_described(&HistoryPage::example());
        let mut page = HistoryPage { prev_cursor: Some("x".to_owned()), ..HistoryPage::example() };
        for entry in &mut page.items {
            (entry.status, entry.reason, entry.user_version) = (CommandStatus::Parked, Some("23505".to_owned()), None);
        }
        assert_written_as_described(&page);
    }
}
