//! Locks on tables: which sessions are in the way of a statement that waited for one in vain.

use std::time::Duration;

use sqlx::PgConnection;

/// Sessions whose transactions have held locks on tables for at least this long, for an error message: each with its process,
/// role, application, and the lock. When a transaction began is hidden from roles without rights on its own; then it is named
/// too.
///
/// # Errors
/// As sqlx gives them.
pub async fn lock_holders(conn: &mut PgConnection, held_for: Duration) -> Result<String, sqlx::Error> {
    let holders: Vec<String> = sqlx::query_scalar(
        "
        SELECT format(
            'process %s of the role %s, %s: %s on %s',
            pid, usename, nullif(application_name, ''), string_agg(DISTINCT mode, ', '), string_agg(DISTINCT relname, ', ')
        )
        FROM pg_locks
        JOIN pg_stat_activity USING (pid)
        JOIN pg_class ON pg_class.oid = relation
        WHERE locktype = 'relation'
            AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND relkind IN ('r', 'p')
            AND relnamespace <> 'pg_catalog'::regnamespace
            AND pid <> pg_backend_pid()
            AND coalesce(xact_start, '-infinity') <= clock_timestamp() - make_interval(secs => $1)
        GROUP BY pid, usename, application_name, xact_start
        ORDER BY xact_start
        LIMIT 5
        ",
    )
    .bind(held_for.as_secs_f64())
    .fetch_all(conn)
    .await?;
    Ok(if holders.is_empty() { "none of them is left".to_owned() } else { holders.join("; ") })
}
