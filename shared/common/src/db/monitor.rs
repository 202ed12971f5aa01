//! Watches the database over a connection of its own, for readiness and for the worker's pause.
//!
//! # Why not borrow from the pool?
//! A probe that waits for a busy pool reports a busy service as a dead one.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::watch;

use super::migrations::{current_version, required_version};
use super::{DbError, connect, within};
use crate::config::DatabaseSettings;
use crate::health::{Ability, Health};
use crate::shutdown::{Phase, Shutdown, Tier, chain};

const INTERVAL: Duration = Duration::from_millis(500);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// What the last look at the database showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseState {
    /// Not looked yet, or it did not answer.
    Down(String),
    /// It answers, but its schema is older than this build needs.
    SchemaTooOld {
        /// The schema's version.
        found: i64,
        /// The version that this build needs.
        needed: i64,
    },
    /// It answers, and its schema will do.
    Up,
}

/// Looks at the database twice a second until the process closes, and reports to `health`.
pub fn monitor(
    shutdown: &Shutdown,
    health: &Health,
    ability: Ability,
    settings: DatabaseSettings,
) -> watch::Receiver<DatabaseState> {
    health.register("database", ability);
    health.register("schema", ability);
    let (sender, receiver) = watch::channel(DatabaseState::Down("not checked yet".to_owned()));
    let health = health.clone();
    let closing = shutdown.clone();
    shutdown.supervise("database monitor", Tier::Back, async move {
        let mut connection = None;
        loop {
            let state = look(&mut connection, &settings).await;
            report(&health, &state);
            sender.send_if_modified(|last| {
                *last != state && {
                    *last = state;
                    true
                }
            });
            tokio::select! {
                () = closing.reached(Phase::Closing) => return Ok(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
    receiver
}

async fn look(connection: &mut Option<PgConnection>, settings: &DatabaseSettings) -> DatabaseState {
    // Taken out, so that a probe that fails leaves no connection behind.
    let probed = match connection.take() {
        Some(open) => probe(open).await,
        None => match connect(settings, "rollcall-monitor").await {
            Ok(open) => probe(open).await,
            Err(error) => Err(error),
        },
    };
    let needed = required_version();
    match probed {
        Err(error) => DatabaseState::Down(chain(&error)),
        Ok((open, found)) => {
            *connection = Some(open);
            if found < needed { DatabaseState::SchemaTooOld { found, needed } } else { DatabaseState::Up }
        }
    }
}

async fn probe(mut connection: PgConnection) -> Result<(PgConnection, i64), DbError> {
    let version = within(PROBE_DEADLINE, current_version(&mut connection)).await?;
    Ok((connection, version))
}

fn report(health: &Health, state: &DatabaseState) {
    let (database, schema) = match state {
        DatabaseState::Down(reason) => (Err(reason.clone()), Err("the database does not answer".to_owned())),
        DatabaseState::SchemaTooOld { found, needed } => (
            Ok("answers".to_owned()),
            Err(format!("version {found} is older than {needed}, which this build needs; run `rollcall migrate run`")),
        ),
        DatabaseState::Up => (Ok("answers".to_owned()), Ok(format!("has at least version {}", required_version()))),
    };
    health.set("database", database);
    health.set("schema", schema);
}
