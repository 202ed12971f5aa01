//! The reads of users, as SQL.

use std::time::Duration;

use common::db::{DbError, Pool, within};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::model::{User, UserStatus};
use crate::loader::{READ_DEADLINE, Rows};
use crate::paging::{Order, Paging};

/// For a connection to come free, and then for the list; a connect may come between them.
const PATIENCE: Duration = Duration::from_millis(700);
const LIST_DEADLINE: Duration = Duration::from_millis(800);

/// What a list of users asks for.
pub(crate) struct Wanted {
    /// In lower case.
    pub(crate) email: Option<String>,
    pub(crate) status: Option<UserStatus>,
}

/// A row, before its status is read.
pub(super) struct UserRow {
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

/// What a list reads on one connection.
pub(super) trait Read: Sync {
    type Found: Send;

    fn read(&self, conn: &mut PgConnection) -> impl Future<Output = Result<Self::Found, sqlx::Error>> + Send;
}

/// Reads on a connection of the pool, and once more when that turns out to be dead.
pub(super) async fn reading<R: Read>(pool: &Pool, read: &R) -> Result<R::Found, DbError> {
    // A connect has a longer deadline of its own, which is no reader's.
    let reading = tokio::time::timeout(READ_DEADLINE, async {
        match once(pool, read).await {
            // The server was restarted: what the pool holds is dead, and the read can be asked again.
            Err(error) if error.lost_connection() => {
                pool.discard_idle();
                once(pool, read).await
            }
            end => end,
        }
    });
    reading.await.unwrap_or(Err(DbError::Deadline(READ_DEADLINE)))
}

async fn once<R: Read>(pool: &Pool, read: &R) -> Result<R::Found, DbError> {
    let mut lease = pool.acquire(PATIENCE).await?;
    let found = within(LIST_DEADLINE, read.read(&mut lease)).await?;
    lease.release().await?;
    Ok(found)
}

/// The rows of one page of users, in the order of reading.
pub(crate) async fn page(pool: &Pool, wanted: &Wanted, paging: &Paging) -> Result<Vec<User>, DbError> {
    let rows = reading(pool, &(wanted, paging)).await?;
    Ok(rows.into_iter().map(User::from).collect())
}

impl Read for (&Wanted, &Paging) {
    type Found = Vec<UserRow>;

    async fn read(&self, conn: &mut PgConnection) -> Result<Vec<UserRow>, sqlx::Error> {
        let (wanted, paging) = self;
        let ((order, beyond), limit) = (paging.start(), paging.rows());
        // One statement per filter and order: with "or no filter" in one statement, the plan for all would serve each badly.
        match (&wanted.email, wanted.status, order) {
            (Some(email), status, order) => by_email(conn, email, status, order, beyond).await,
            (None, Some(status), Order::Ascending) => by_status_after(conn, status, beyond, limit).await,
            (None, Some(status), Order::Descending) => by_status_before(conn, status, beyond, limit).await,
            (None, None, Order::Ascending) => all_after(conn, beyond, limit).await,
            (None, None, Order::Descending) => all_before(conn, beyond, limit).await,
        }
    }
}

async fn all_after(conn: &mut PgConnection, after: Uuid, limit: i64) -> Result<Vec<UserRow>, sqlx::Error> {
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

async fn all_before(conn: &mut PgConnection, before: Uuid, limit: i64) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE id < $1
        ORDER BY id DESC
        LIMIT $2
        "#,
        before,
        limit,
    )
    .fetch_all(conn)
    .await
}

async fn by_status_after(
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

async fn by_status_before(
    conn: &mut PgConnection,
    status: UserStatus,
    before: Uuid,
    limit: i64,
) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE status = $1 AND id < $2
        ORDER BY id DESC
        LIMIT $3
        "#,
        status.as_str(),
        before,
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
    order: Order,
    beyond: Uuid,
) -> Result<Vec<UserRow>, sqlx::Error> {
    sqlx::query_as!(
        UserRow,
        r#"
        SELECT id, email, name, version, created_at, updated_at, suspended_at
        FROM users
        WHERE lower(email COLLATE "C") = $1
            AND ($2::text IS NULL OR status = $2)
            AND CASE WHEN $3 THEN id > $4 ELSE id < $4 END
        "#,
        email,
        status.map(UserStatus::as_str),
        order == Order::Ascending,
        beyond,
    )
    .fetch_all(conn)
    .await
}
