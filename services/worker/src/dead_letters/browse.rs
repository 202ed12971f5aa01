//! What an operator sees of the letters.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// Which letters to list; every member that is given has to fit.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this user.
    pub user_id: Option<Uuid>,
    /// With this wire name.
    pub kind: Option<String>,
    /// With this text in their reason, in whatever case.
    pub reason: Option<String>,
    /// With this SQLSTATE.
    pub sqlstate: Option<String>,
    /// Seen since.
    pub since: Option<OffsetDateTime>,
}

/// An open letter that waits behind no other, or any letter when it was asked for by its id.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its number.
    pub id: i64,
    /// The command; none when its id could not be read.
    pub command_id: Option<Uuid>,
    /// The user; none when it could not be read.
    pub user_id: Option<Uuid>,
    /// The wire name.
    pub kind: Option<String>,
    /// The message's body.
    pub payload: Vec<u8>,
    /// The octets of its AMQP properties, if they could not be parsed.
    pub properties: Option<Vec<u8>>,
    /// The size of its body in bytes, if only the beginning was kept.
    pub size: Option<i64>,
    /// Why it could not be applied.
    pub reason: String,
    /// The SQLSTATE, if a statement raised.
    pub sqlstate: Option<String>,
    /// How often it failed.
    pub attempts: i32,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// W3C trace context.
    pub tracestate: Option<String>,
    /// When it was recorded.
    pub first_seen_at: OffsetDateTime,
    /// When it failed last.
    pub last_seen_at: OffsetDateTime,
    /// `open`, `replayed` or `discarded`.
    pub state: String,
    /// How many open letters of its user are behind it.
    pub behind: i64,
}

/// Open letters that wait behind no other, oldest first.
///
/// # Errors
/// As the statement gives them.
pub async fn list(conn: &mut PgConnection, filter: &Filter, limit: i64) -> Result<Vec<Letter>, sqlx::Error> {
    sqlx::query_as!(
        Letter,
        r#"
        SELECT
            id, letter.command_id, letter.user_id, type AS kind, payload, properties, size, reason, sqlstate, attempts,
            traceparent, tracestate, first_seen_at, last_seen_at, state,
            (
                SELECT count(*)
                FROM dead_letters AS later
                WHERE later.user_id = letter.user_id AND later.state = 'open' AND later.id > letter.id
            ) AS "behind!"
        FROM dead_letters AS letter
        LEFT JOIN held_users ON held_users.user_id = letter.user_id
        WHERE state = 'open'
            AND (letter.user_id IS NULL OR letter.command_id = held_users.command_id)
            AND ($1::uuid IS NULL OR letter.user_id = $1)
            AND ($2::text IS NULL OR type = $2)
            AND ($3::text IS NULL OR strpos(lower(reason), lower($3)) > 0)
            AND ($4::text IS NULL OR sqlstate = $4)
            AND ($5::timestamptz IS NULL OR last_seen_at >= $5)
        ORDER BY id
        LIMIT $6
        "#,
        filter.user_id,
        filter.kind,
        filter.reason,
        filter.sqlstate,
        filter.since,
        limit,
    )
    .fetch_all(conn)
    .await
}

/// A letter by its number, or by the id of its command.
///
/// # Errors
/// As the statement gives them.
pub async fn find(
    conn: &mut PgConnection,
    id: Option<i64>,
    command_id: Option<Uuid>,
) -> Result<Option<Letter>, sqlx::Error> {
    sqlx::query_as!(
        Letter,
        r#"
        SELECT
            id, command_id, user_id, type AS kind, payload, properties, size, reason, sqlstate, attempts, traceparent,
            tracestate, first_seen_at, last_seen_at, state,
            (
                SELECT count(*)
                FROM dead_letters AS later
                WHERE later.user_id = letter.user_id AND later.state = 'open' AND later.id > letter.id
            ) AS "behind!"
        FROM dead_letters AS letter
        WHERE id = $1 OR command_id = $2
        "#,
        id,
        command_id,
    )
    .fetch_optional(conn)
    .await
}

/// The commands that wait behind an open letter of the user, in order, with their wire names.
///
/// # Errors
/// As the statement gives them.
pub async fn behind(conn: &mut PgConnection, letter: &Letter) -> Result<Vec<(Uuid, String)>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"
        SELECT command_id AS "command_id!", type AS "kind!"
        FROM dead_letters
        WHERE user_id = $1 AND state = 'open' AND id > $2
        ORDER BY id
        "#,
        letter.user_id,
        letter.id,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.command_id, row.kind)).collect())
}

/// How many letters are open, those that wait behind another included.
///
/// # Errors
/// As the statement gives them.
pub async fn open_letters(conn: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM dead_letters WHERE state = 'open'"#).fetch_one(conn).await
}
