//! Tables of the days: which of them this worker knows to be there.
//!
//! What is known is asked again after a minute, and forgotten when a transaction fails: a table can vanish under a running
//! worker (a restore, a failover to a replica that lagged over midnight).

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::PgConnection;
use time::Date;
use tokio::time::Instant;

/// The server notes to the hour when a table was used, and drops none that was used within a day.
const MEMORY: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(crate) struct CommandDays {
    known: HashMap<Date, KnownDay>,
}

#[derive(Debug, Clone, Copy)]
struct KnownDay {
    asked_at: Instant,
    /// Retention dropped its table before.
    dropped: bool,
}

impl CommandDays {
    /// Makes sure that each day has a table; gives those whose table retention dropped before.
    pub(crate) async fn ensure(
        &mut self,
        conn: &mut PgConnection,
        days: HashSet<Date>,
    ) -> Result<HashSet<Date>, sqlx::Error> {
        self.known.retain(|_, day| day.asked_at.elapsed() < MEMORY);
        let mut dropped = HashSet::new();
        for day in days {
            let known = match self.known.get(&day) {
                Some(known) => *known,
                None => KnownDay { asked_at: Instant::now(), dropped: ensure(conn, day).await? },
            };
            self.known.insert(day, known);
            if known.dropped {
                dropped.insert(day);
            }
        }
        Ok(dropped)
    }

    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }
}

/// Makes sure that a day has a table; says whether retention dropped it before.
pub(crate) async fn ensure(conn: &mut PgConnection, day: Date) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT ensure_command_day($1) AS "dropped!""#, day).fetch_one(conn).await
}
