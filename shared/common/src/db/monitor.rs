//! Watches the database over a connection of its own, for readiness and for the worker's pause.
//!
//! # Why not borrow from the pool?
//! A probe that waits for a busy pool reports a busy service as a dead one.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::watch;

use super::migrations::{current_version, required_version};
use super::roles::tell_wall;
use super::{DbError, connect, within};
use crate::config::DatabaseSettings;
use crate::health::{Ability, Health};
use crate::membership::{Member, MembershipError, check_partitions};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};

const INTERVAL: Duration = Duration::from_millis(500);
/// While ownership is on its way.
const SOON: Duration = Duration::from_millis(100);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// Below the time to live of a heartbeat.
const BEAT_DEADLINE: Duration = Duration::from_secs(3);

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

/// Looks at the database twice a second until the process closes, and reports to `health`. The same connection carries the
/// heartbeat of a member. A deployment with another number of partitions ends the process.
pub fn monitor(
    shutdown: &Shutdown,
    health: &Health,
    ability: Ability,
    settings: DatabaseSettings,
    role: Role,
) -> watch::Receiver<DatabaseState> {
    health.register("database", ability);
    health.register("schema", ability);
    let (sender, receiver) = watch::channel(DatabaseState::Down("not checked yet".to_owned()));
    let watch = Watch { health: health.clone(), settings, role, sender, connection: None };
    shutdown.supervise("database monitor", Tier::Back, watch.run(shutdown.clone()));
    receiver
}

/// What the control connection is for, besides watching.
#[derive(Debug)]
pub enum Role {
    /// Nothing; for tools and tests.
    Watch,
    /// Publishes to this many partitions.
    Publisher(u16),
    /// Owns partitions.
    Member(Box<Member>),
}

impl Role {
    fn member(&mut self) -> Option<&mut Member> {
        match self {
            Self::Member(member) => Some(member),
            Self::Watch | Self::Publisher(_) => None,
        }
    }
}

struct Watch {
    health: Health,
    settings: DatabaseSettings,
    role: Role,
    sender: watch::Sender<DatabaseState>,
    connection: Option<PgConnection>,
}

impl Watch {
    async fn run(mut self, shutdown: Shutdown) -> TaskResult {
        loop {
            let mut state = self.look().await;
            if let Some(failure) = self.beat(&state).await? {
                state = DatabaseState::Down(failure);
            }
            report(&self.health, &state);
            self.sender.send_if_modified(|last| {
                *last != state && {
                    *last = state;
                    true
                }
            });
            let soon = self.role.member().is_some_and(|member| member.awaiting()) && self.connection.is_some();
            tokio::select! {
                () = shutdown.reached(Phase::Closing) => return self.leave().await,
                () = tokio::time::sleep(if soon { SOON } else { INTERVAL }) => {}
                () = asked(self.role.member()) => {}
            }
        }
    }

    /// Keeps up the membership while the database is up; gives why that failed, if it did.
    async fn beat(&mut self, state: &DatabaseState) -> Result<Option<String>, MembershipError> {
        let (DatabaseState::Up, Some(connection)) = (state, &mut self.connection) else {
            if let Some(member) = self.role.member() {
                member.lost();
            }
            return Ok(None);
        };
        let beat = async {
            match &mut self.role {
                Role::Watch => Ok(()),
                Role::Publisher(partitions) => check_partitions(connection, *partitions).await,
                Role::Member(member) => member.beat(connection).await,
            }
        };
        let failure = match tokio::time::timeout(BEAT_DEADLINE, beat).await {
            Ok(Ok(())) => return Ok(None),
            Ok(Err(misfit @ MembershipError::Misfit(_))) => return Err(misfit),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("the heartbeat was not answered within {BEAT_DEADLINE:?}"),
        };
        if let Some(member) = self.role.member() {
            member.lost();
        }
        self.connection = None;
        Ok(Some(failure))
    }

    async fn leave(mut self) -> TaskResult {
        if let (Some(member), Some(connection)) = (self.role.member(), &mut self.connection)
            && !matches!(tokio::time::timeout(PROBE_DEADLINE, member.leave(connection)).await, Ok(Ok(())))
        {
            // The others see that its session is gone.
            tracing::warn!("left without saying so");
        }
        Ok(())
    }

    async fn look(&mut self) -> DatabaseState {
        let name = self.role.member().map_or_else(|| "rollcall-monitor".to_owned(), |member| member.control_name());
        look(&mut self.connection, &self.settings, &name).await
    }
}

async fn asked(member: Option<&mut Member>) {
    match member {
        Some(member) => member.asked().await,
        None => std::future::pending().await,
    }
}

async fn look(connection: &mut Option<PgConnection>, settings: &DatabaseSettings, name: &str) -> DatabaseState {
    // Taken out, so that a probe that fails leaves no connection behind.
    let probed = match connection.take() {
        Some(open) => probe(open).await,
        None => match connect(settings, name).await {
            Ok(open) => first_probe(open).await,
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

async fn first_probe(mut connection: PgConnection) -> Result<(PgConnection, i64), DbError> {
    within(PROBE_DEADLINE, tell_wall(&mut connection)).await?;
    probe(connection).await
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
