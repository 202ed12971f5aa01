//! A connection and what one use of it may be: anything, or, behind a pooler that lends the server's sessions by the
//! transaction, one transaction.
//!
//! # Why are prepared statements closed before each commit?
//! The client library prepares what it runs, under names that it counts for itself. The next transaction may run on a
//! session of the server that does not know a name, or knows it from somebody else. Statements without a name would not do
//! either: between preparing and running one the pooler may change the session, unless a transaction holds it.

use sqlx::{AssertSqlSafe, Connection, Database, PgConnection, Postgres, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

type Transactions = <Postgres as Database>::TransactionManager;

/// One connection. Between [`begin`](Self::begin) and [`end`](Self::end) it can be used like any other; transactions in
/// between become savepoints where the use itself is one.
#[derive(Debug)]
pub(crate) struct Session {
    connection: PgConnection,
    /// How a use begins, behind a pooler.
    pooled: Option<String>,
}

impl Session {
    pub(super) fn new(connection: PgConnection, pooled: Option<String>) -> Self {
        Self { connection, pooled }
    }

    /// Whether the server's session is another one for each use.
    pub(crate) fn pooled(&self) -> bool {
        self.pooled.is_some()
    }

    /// Before a use. A session whose use does not end must be dropped.
    pub(crate) async fn begin(&mut self) -> Result<(), sqlx::Error> {
        match &self.pooled {
            None => Ok(()),
            Some(begin) => {
                let begin = AssertSqlSafe(begin.clone()).into_sql_str();
                Transactions::begin(&mut self.connection, Some(begin)).await
            }
        }
    }

    /// After a use: behind a pooler, this is what commits it.
    pub(crate) async fn end(&mut self) -> Result<(), sqlx::Error> {
        if self.pooled() {
            self.connection.clear_cached_statements().await?;
            Transactions::commit(&mut self.connection).await?;
        }
        Ok(())
    }

    pub(crate) fn connection(&self) -> &PgConnection {
        &self.connection
    }

    pub(crate) fn connection_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// The connection itself, unless there is a pooler.
    pub(super) fn into_connection(self) -> Option<PgConnection> {
        (!self.pooled()).then_some(self.connection)
    }

    /// Says goodbye to the server.
    pub(super) async fn close(self) {
        // It notices a closed socket too, only later.
        let _ = self.connection.close().await;
    }
}
