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
    state: DayState,
}

/// What a day's table says of commands that have no row in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DayState {
    /// They were not decided before.
    Kept,
    /// Retention dropped the table before: they may have been.
    Dropped,
    /// There is none, and none is made: this deployment can have no commands of that day.
    Outside,
}

/// The days of a batch that need care.
#[derive(Debug, Default)]
pub(crate) struct BatchDays {
    /// Days whose outcomes are not kept: commands may have been applied before.
    pub(crate) dropped: HashSet<Date>,
    /// Those of them that have no table: their commands get no row.
    pub(crate) outside: HashSet<Date>,
}

impl CommandDays {
    /// Makes sure that each day has a table, unless it can have none.
    pub(crate) async fn ensure(
        &mut self,
        conn: &mut PgConnection,
        days: HashSet<Date>,
    ) -> Result<BatchDays, sqlx::Error> {
        self.known.retain(|_, day| day.asked_at.elapsed() < MEMORY);
        let mut batch = BatchDays::default();
        for day in days {
            let known = match self.known.get(&day) {
                Some(known) => *known,
                None => KnownDay { asked_at: Instant::now(), state: ensure(conn, day).await? },
            };
            self.known.insert(day, known);
            if known.state != DayState::Kept {
                batch.dropped.insert(day);
            }
            if known.state == DayState::Outside {
                batch.outside.insert(day);
            }
        }
        Ok(batch)
    }

    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }
}

/// Makes sure that a day has a table, unless it can have none.
pub(crate) async fn ensure(conn: &mut PgConnection, day: Date) -> Result<DayState, sqlx::Error> {
    let dropped = sqlx::query_scalar!("SELECT ensure_command_day($1)", day).fetch_one(conn).await?;
    Ok(match dropped {
        Some(false) => DayState::Kept,
        Some(true) => DayState::Dropped,
        None => DayState::Outside,
    })
}

/// Makes sure that any day has a table, for what an operator replays.
pub(crate) async fn make(conn: &mut PgConnection, day: Date) -> Result<(), sqlx::Error> {
    sqlx::query!("SELECT make_command_day($1)", day).fetch_one(conn).await.map(drop)
}
