//! The dead letters: in the end none is open, nobody is held, and no command is suspected of anything.

use std::fmt;

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Broken, Verdict};

/// How many there were.
#[derive(Debug, Default)]
pub(super) struct Letters {
    /// A statement refused the command.
    guilty: usize,
    /// Never tried, because an earlier command of the user was open.
    behind: usize,
    /// By a worker or by the broker, because it came back too often.
    given_up: usize,
}

impl fmt::Display for Letters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guilty, behind, given_up } = self;
        let all = guilty + behind + given_up;
        write!(f, "{all} dead letters: {guilty} guilty, {behind} behind another, {given_up} given up")
    }
}

/// A letter's row.
#[derive(Debug, sqlx::FromRow)]
struct Letter {
    id: i64,
    command_id: Option<Uuid>,
    reason: String,
    sqlstate: Option<String>,
    attempts: i32,
    open: bool,
}

/// Everything was replayed, and what holds users and suspects commands was taken back.
pub(super) async fn judge(verdict: &mut Verdict, connection: &mut PgConnection) -> anyhow::Result<()> {
    let letters: Vec<Letter> = sqlx::query_as(
        "SELECT id, command_id, reason, sqlstate, attempts, state = 'open' AS open FROM dead_letters ORDER BY id",
    )
    .fetch_all(&mut *connection)
    .await?;
    for Letter { id, command_id, reason, sqlstate, attempts, open } in letters {
        let kind = match (sqlstate, attempts) {
            (Some(_), _) => &mut verdict.letters.guilty,
            (None, 0) => &mut verdict.letters.behind,
            (None, _) => &mut verdict.letters.given_up,
        };
        *kind += 1;
        if open {
            let command = command_id.map_or("no command".to_owned(), |id| format!("command {id}"));
            verdict.found(Broken::Stuck, format!("dead letter {id} of {command} is open: {reason}"));
        }
    }
    let held: Vec<Uuid> = sqlx::query_scalar("SELECT user_id FROM held_users").fetch_all(&mut *connection).await?;
    for user in held {
        verdict.found(Broken::Stuck, format!("user {user} is held"));
    }
    let suspects: Vec<(Uuid, i32)> =
        sqlx::query_as("SELECT command_id, attempts FROM suspects").fetch_all(connection).await?;
    for (command, attempts) in suspects {
        verdict.found(Broken::Stuck, format!("command {command} is suspected after {attempts} attempts"));
    }
    Ok(())
}
