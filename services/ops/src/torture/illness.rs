//! Names that the database does not take while it is ill, and the operator who replays what became a dead letter of it.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::PgConnection;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use worker::dead_letters::open_letters;

use super::system::System;

/// What makes a name one of them; the trigger has it, too.
pub(crate) const INDIGESTIBLE: &str = "indigestible";
/// For an operator who is not killed.
pub(crate) const OPERATOR_DEADLINE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(300);

/// Makes the database ill. Its schema is that of `verdict::observe`.
pub(crate) async fn infect(connection: &mut PgConnection) -> sqlx::Result<()> {
    let statements = [
        "CREATE TABLE torture.health (ill boolean NOT NULL)",
        "INSERT INTO torture.health (ill) VALUES (true)",
        // Data exception, invalid parameter value: the fault is the command's.
        "CREATE FUNCTION torture.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF (SELECT ill FROM torture.health) THEN
                 RAISE EXCEPTION 'the name % is not to be had today', NEW.name USING ERRCODE = '22023';
             END IF;
             RETURN NEW;
         END
         $$",
        // Not of other columns: a user who has such a name since a cure can be suspended.
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OF name ON users
         FOR EACH ROW WHEN (strpos(NEW.name, 'indigestible') > 0) EXECUTE FUNCTION torture.refuse()",
    ];
    for statement in statements {
        sqlx::query(statement).execute(&mut *connection).await?;
    }
    Ok(())
}

/// From here on the database takes every name, until it is ill again.
pub(crate) async fn cure(system: &System) -> anyhow::Result<()> {
    set(&mut system.database().await?, false).await
}

/// Cures, replays all letters under load, and makes ill again. An operator who takes longer than `patience` is killed.
pub(super) async fn operate(system: &System, patience: Duration) -> anyhow::Result<&'static str> {
    let mut connection = system.database().await?;
    set(&mut connection, false).await?;
    let replayed = replay(system, patience).await?;
    set(&mut connection, true).await?;
    Ok(match replayed {
        Some(true) => "letters replayed",
        Some(false) => "letters not replayed",
        None => "operator killed",
    })
}

/// Replays until no letter is open, or until patience ends.
pub(super) async fn recover(system: &System, connection: &mut PgConnection, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while open_letters(connection).await? > 0 && Instant::now() < deadline {
        replay(system, OPERATOR_DEADLINE).await?;
        sleep(PAUSE).await;
    }
    Ok(())
}

async fn set(connection: &mut PgConnection, ill: bool) -> anyhow::Result<()> {
    sqlx::query("UPDATE torture.health SET ill = $1").bind(ill).execute(connection).await?;
    Ok(())
}

/// As an operator does it; says whether every letter went through, unless it was killed.
async fn replay(system: &System, patience: Duration) -> anyhow::Result<Option<bool>> {
    let mut operator = Command::new(std::env::current_exe()?)
        .args(["dead-letters", "replay", "--all", "--yes"])
        .env("DATABASE_URL", system.stack.postgres.url())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("failed to start an operator")?;
    if let Ok(status) = timeout(patience, operator.wait()).await {
        return Ok(Some(status?.success()));
    }
    operator.kill().await?;
    Ok(None)
}
