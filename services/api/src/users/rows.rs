//! The reads of users, as SQL.

use std::time::Duration;

use common::db::{DbError, Pool, within};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::model::{User, UserStatus};
use crate::loader::{READ_DEADLINE, Rows};

/// For a connection to come free, and then for the list; a connect may come between them.
const PATIENCE: Duration = Duration::from_millis(700);
const LIST_DEADLINE: Duration = Duration::from_millis(800);

/// What a list asks for.
pub(crate) struct Wanted {
    /// In lower case.
    pub(crate) email: Option<String>,
    pub(crate) status: Option<UserStatus>,
    pub(crate) after: Uuid,
    pub(crate) limit: i64,
}

/// A row, before its status is read.
struct UserRow {
    id: Uuid,
    email: String,
    name: String,
    version: i64,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
    suspended_at: Option<OffsetDateTime>,
}

impl From<UserRow> for User {
    fn from(row: UserRow) -> Self {
        // A check constraint keeps both columns in step.
        let status = if row.suspended_at.is_some() { UserStatus::Suspended } else { UserStatus::Active };
        let UserRow { id, email, name, version, created_at, updated_at, suspended_at } = row;
        Self { id, email, name, status, version, created_at, updated_at, suspended_at }
    }
}

/// The rows of many users.
pub(crate) fn by_ids<'c>(conn: &'c mut PgConnection, ids: &'c [Uuid]) -> Rows<'c, User> {
    Box::pin(async move {
        let rows = sqlx::query_as!(
            UserRow,
            r#"
            SELECT id, email, name, version, created_at, updated_at, suspended_at
            FROM users
            WHERE id = ANY($1)
            "#,
            ids,
        )
        .fetch_all(conn)
        .await?;
        Ok(rows.into_iter().map(|row| (row.id, row.into())).collect())
    })
}

/// One page.
pub(crate) async fn page(pool: &Pool, wanted: &Wanted) -> Result<Vec<User>, DbError> {
    // A connect has a longer deadline of its own, which is no reader's.
    let reading = tokio::time::timeout(READ_DEADLINE, async {
        match read_page(pool, wanted).await {
            // The server was restarted: what the pool holds is dead, and the read can be asked again.
            Err(error) if error.lost_connection() => {
                pool.discard_idle();
                read_page(pool, wanted).await
            }
            end => end,
        }
    });
    reading.await.unwrap_or(Err(DbError::Deadline(READ_DEADLINE)))
}

async fn read_page(pool: &Pool, wanted: &Wanted) -> Result<Vec<User>, DbError> {
    let mut lease = pool.acquire(PATIENCE).await?;
    // One statement per filter: with "or no filter" in one statement, the plan for all would serve each badly.
    let rows = within(LIST_DEADLINE, async {
        match (&wanted.email, wanted.status) {
            (Some(email), status) => by_email(&mut lease, email, status, wanted.after).await,
            (None, Some(status)) => by_status(&mut lease, status, wanted.after, wanted.limit).await,
            (None, None) => all(&mut lease, wanted.after, wanted.limit).await,
        }
    })
    .await?;
    lease.release().await?;
    Ok(rows.into_iter().map(User::from).collect())
}

async fn all(conn: &mut PgConnection, after: Uuid, limit: i64) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE id > $1
        ORDER BY id
        LIMIT $2
        "#,
        after,
        limit,
    )
    .fetch_all(conn)
    .await
}

async fn by_status(
    conn: &mut PgConnection,
    status: UserStatus,
    after: Uuid,
    limit: i64,
) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE status = $1 AND id > $2
        ORDER BY id
        LIMIT $3
        "#,
        status.as_str(),
        after,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// At most one row: the address is unique. `email` is in lower case already.
async fn by_email(
    conn: &mut PgConnection,
    email: &str,
    status: Option<UserStatus>,
    after: Uuid,
) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE lower(email COLLATE "C") = $1 AND ($2::text IS NULL OR status = $2) AND id > $3
        "#,
        email,
        status.map(UserStatus::as_str),
        after,
    )
    .fetch_all(conn)
    .await
}
