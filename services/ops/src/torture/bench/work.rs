//! Work of PostgreSQL: transactions, rows that were written, write-ahead log and, where they are counted, statements.
//!
//! The log's position is exact. The other counters are reported by each session at most once a second, so their differences
//! are good to a few percent: a load that follows its warm-up gains at its begin about what it misses at its end.

use std::collections::BTreeMap;

use sqlx::{Executor, PgConnection, Row};

use super::figure;

/// Counters of the whole server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    transactions: i64,
    rows: i64,
    wal_bytes: i64,
    statements: Option<i64>,
}

/// Makes the server count statements, if its library was loaded at the start.
pub(super) async fn count_statements(connection: &mut PgConnection) -> sqlx::Result<()> {
    connection.execute("CREATE EXTENSION pg_stat_statements").await.map(drop)
}

impl Work {
    pub(super) async fn now(connection: &mut PgConnection, statements: bool) -> sqlx::Result<Self> {
        let row = connection
            .fetch_one(
                "SELECT
                     sum(xact_commit)::bigint,
                     sum(tup_inserted + tup_updated + tup_deleted)::bigint,
                     (pg_current_wal_insert_lsn() - '0/0')::bigint
                 FROM pg_stat_database",
            )
            .await?;
        let statements = if statements {
            // Every one of these, BEGIN and COMMIT included, is a round trip.
            let row = connection.fetch_one("SELECT sum(calls)::bigint FROM pg_stat_statements").await?;
            Some(row.try_get(0)?)
        } else {
            None
        };
        Ok(Self { transactions: row.try_get(0)?, rows: row.try_get(1)?, wal_bytes: row.try_get(2)?, statements })
    }

    /// What was done since `before`, for each of so many requests or commands.
    pub(super) fn each(self, before: Self, count: f64) -> BTreeMap<String, f64> {
        let share = |after: i64, before: i64| figure(after.saturating_sub(before).unsigned_abs()) / count.max(1.0);
        let mut each = BTreeMap::from([
            ("transactions".to_owned(), share(self.transactions, before.transactions)),
            ("rows".to_owned(), share(self.rows, before.rows)),
            ("wal_bytes".to_owned(), share(self.wal_bytes, before.wal_bytes)),
        ]);
        if let (Some(after), Some(before)) = (self.statements, before.statements) {
            each.insert("statements".to_owned(), share(after, before));
        }
        each
    }
}
