//! Watches the database over a connection of its own, for readiness and for the worker's pause.
//!
//! # Why not borrow from the pool?
//! A probe that waits for a busy pool reports a busy service as a dead one.
//!
//! # Why ask for a turn twenty times a second instead of listening?
//! sqlx hands out notifications only through a listener with a pool of its own, which connects again in silence, and tries
//! a server that refuses again and again. The question costs the server less than 0.1 ms.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::connector::{Connector, READ_ONLY};
use super::migrations::{current_version, required_version};
use super::roles::tell_wall;
use super::{DbError, Session, within};
use crate::config::DatabaseSettings;
use crate::health::{Ability, CheckFailure, Health};
use crate::membership::{Beat, Member, MembershipError, Turn};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier};

/// Between two looks, each with a heartbeat.
const INTERVAL: Duration = Duration::from_millis(500);
/// While something is on its way.
const SOON: Duration = Duration::from_millis(50);
/// Between two questions whether there was a redistribution.
const TURN_INTERVAL: Duration = Duration::from_millis(50);
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// The same over the connection that carries a lease: others take its loss for this instance's end.
const MEMBER_PROBE_DEADLINE: Duration = Duration::from_millis(2500);
/// Below the time to live of a heartbeat.
const BEAT_DEADLINE: Duration = Duration::from_secs(3);
/// How often the pool looks whether its lease has run out.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(250);
/// A server that has no connection left, or does not even say so, is not asked more often.
const LONGEST_REFUSAL: Duration = Duration::from_secs(10);
/// Between two looks whether the pool has closed.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);
/// How long connections in use may take to come back when the process ends.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// How long a process whose settings do not fit the deployment any more stays away.
const MISFIT_PAUSE: Duration = Duration::from_secs(5);

/// What a control connection asks of its session. A database that is made read-only still keeps its members; where a pooler makes
/// a heartbeat one transaction, a process that freezes in the middle of it holds up the others for a second only; and a standby
/// that is lost must not hold up heartbeats: see `membership`.
const CONTROL: [(&str, &str); 4] = [
    (READ_ONLY, "off"),
    ("idle_in_transaction_session_timeout", "1s"),
    ("statement_timeout", "4s"),
    ("synchronous_commit", "local"),
];

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
/// heartbeat of a member, and the last thing that it does is to close the member's pool and leave. Settings that do not fit
/// the deployment's end the process.
pub fn monitor(
    shutdown: &Shutdown,
    health: &Health,
    ability: Ability,
    settings: DatabaseSettings,
    role: Role,
) -> watch::Receiver<DatabaseState> {
    health.register("database", ability);
    health.register("schema", ability);
    if let Role::Member(member) = &role {
        health.register("budget", ability);
        // Reads need no clock.
        health.register("clock", Ability::Write);
        member.observe();
        shutdown.supervise("connection lease", Tier::Back, expire(member.pool().clone(), shutdown.clone()));
    }
    let (sender, receiver) = watch::channel(DatabaseState::Down("not checked yet".to_owned()));
    let watch = Watch {
        health: health.clone(),
        settings,
        role,
        sender,
        failure: None,
        connection: None,
        turn: None,
        refusals: 0,
        standby: false,
    };
    shutdown.supervise("database monitor", Tier::Back, watch.run(shutdown.clone()));
    receiver
}

/// What the control connection is for, besides watching.
#[derive(Debug)]
pub enum Role {
    /// Nothing; for tools and tests.
    Watch,
    /// Shares the connections and the partitions.
    Member(Box<Member>),
}

impl Role {
    fn member(&mut self) -> Option<&mut Member> {
        match self {
            Self::Member(member) => Some(member),
            Self::Watch => None,
        }
    }
}

/// Apart from the heartbeat, which may be waiting for a server that does not answer.
async fn expire(pool: super::Pool, shutdown: Shutdown) -> TaskResult {
    loop {
        tokio::select! {
            () = shutdown.reached(Phase::Closing) => return Ok(()),
            () = tokio::time::sleep(EXPIRY_INTERVAL) => pool.expire(),
        }
    }
}

struct Watch {
    health: Health,
    settings: DatabaseSettings,
    role: Role,
    sender: watch::Sender<DatabaseState>,
    /// Why the database is down, for callers of `/readyz`.
    failure: Option<CheckFailure>,
    connection: Option<Session>,
    /// While it arrives.
    turn: Option<Turn>,
    /// How often in a row the server had no connection left, or took too long over one.
    refusals: u32,
    /// The last server that was reached is a standby, whose connections no budget counts.
    standby: bool,
}

impl Watch {
    async fn run(mut self, shutdown: Shutdown) -> TaskResult {
        loop {
            tokio::select! {
                () = shutdown.reached(Phase::Closing) => return self.leave().await,
                () = self.arrive() => {}
            }
            let mut state = self.look().await;
            let mut away = self.refused();
            match self.beat(&state).await {
                Ok(Beat::Kept) => {}
                Ok(Beat::Away(stay)) => {
                    // Those who have room need this connection.
                    self.connection = None;
                    if let Some(member) = self.role.member() {
                        member.stop();
                    }
                    away = Some(stay);
                }
                Err(misfit @ MembershipError::Misfit(_)) => {
                    // Before the first join nothing would get better by itself; after that it must not end what works.
                    let Some(member) = self.role.member().filter(|member| member.joined_before()) else {
                        return Err(misfit.into());
                    };
                    member.misfit(misfit.to_string());
                    self.connection = None;
                    away = Some(MISFIT_PAUSE);
                }
                Err(error) => {
                    state = self.down(CheckFailure::of(&error));
                    self.lost();
                }
            }
            self.arrived().await;
            self.report(&state, away);
            self.sender.send_if_modified(|last| {
                *last != state && {
                    *last = state;
                    true
                }
            });
            tokio::select! {
                () = shutdown.reached(Phase::Closing) => return self.leave().await,
                () = self.pause(away) => {}
            }
        }
    }

    /// Keeps up the membership while the database is up.
    async fn beat(&mut self, state: &DatabaseState) -> Result<Beat, MembershipError> {
        let Some(member) = self.role.member() else { return Ok(Beat::Kept) };
        let (DatabaseState::Up, Some(connection)) = (state, &mut self.connection) else {
            member.lost();
            return Ok(Beat::Kept);
        };
        let beat = tokio::time::timeout(BEAT_DEADLINE, member.beat(connection)).await;
        beat.unwrap_or(Err(MembershipError::Deadline(BEAT_DEADLINE)))
    }

    /// Waits for its turn before it takes a connection that nobody counts.
    async fn arrive(&mut self) {
        let Some(member) = self.role.member() else { return };
        if self.connection.is_none() && self.turn.is_none() && !self.standby {
            self.health
                .set("budget", Err("waits for its turn: instances take a connection one after the other".into()));
            self.turn = member.enter().await;
        }
    }

    /// Lets the next one in, when this one has found its place, or none.
    async fn arrived(&mut self) {
        let member = self.role.member();
        let arriving =
            |turn: &mut Turn| self.connection.is_some() && !turn.over() && !member.is_some_and(|me| me.fed());
        if let Some(turn) = self.turn.take_if(|turn| !arriving(turn)) {
            turn.end().await;
        }
    }

    fn lost(&mut self) {
        self.connection = None;
        if let Some(member) = self.role.member() {
            member.lost();
        }
    }

    /// Waits until it is time for the next look, or a member has something to say or to hear.
    async fn pause(&mut self, away: Option<Duration>) {
        if let Some(away) = away {
            return tokio::time::sleep(away).await;
        }
        let Role::Member(member) = &mut self.role else { return tokio::time::sleep(INTERVAL).await };
        let soon = member.awaiting() && self.connection.is_some();
        let pause = match (soon, &self.connection) {
            (true, _) => SOON,
            (false, Some(_)) => INTERVAL,
            // Not all at the same moment, when the server comes back.
            (false, None) => INTERVAL.mul_f64(0.5 + rand::random::<f64>()),
        };
        let next = Instant::now() + pause;
        loop {
            tokio::select! {
                () = member.asked() => return,
                () = tokio::time::sleep_until(next.min(Instant::now() + TURN_INTERVAL)) => {}
            }
            let Some(connection) = &mut self.connection else {
                if Instant::now() >= next {
                    return;
                }
                continue;
            };
            // The look finds out why, when it gave no answer.
            let called = tokio::time::timeout(PROBE_DEADLINE, member.called(connection)).await;
            if Instant::now() >= next || !matches!(called, Ok(Ok(false))) {
                return;
            }
        }
    }

    /// How long to leave a server alone that has no connection left.
    fn refused(&self) -> Option<Duration> {
        let doubled = Duration::from_secs(1) * 2_u32.saturating_pow(self.refusals.checked_sub(1)?);
        Some(doubled.min(LONGEST_REFUSAL).mul_f64(0.5 + rand::random::<f64>() / 2.0))
    }

    async fn leave(mut self) -> TaskResult {
        let Role::Member(member) = &mut self.role else { return Ok(()) };
        let pool = member.pool().clone();
        pool.close().await;
        let _ = tokio::time::timeout(DRAIN_DEADLINE, async {
            while pool.status().open > 0 {
                tokio::time::sleep(DRAIN_INTERVAL).await;
            }
        })
        .await;
        if let Some(connection) = &mut self.connection
            && !matches!(tokio::time::timeout(PROBE_DEADLINE, member.leave(connection)).await, Ok(Ok(())))
        {
            // The others see that its session is gone.
            tracing::warn!("left without saying so");
        }
        Ok(())
    }

    async fn look(&mut self) -> DatabaseState {
        let had_one = self.connection.is_some();
        // Taken out, so that a probe that fails leaves no connection behind.
        let probed = match self.connection.take() {
            Some(open) => {
                let lease = matches!(self.role, Role::Member(_));
                probe(open, if lease { MEMBER_PROBE_DEADLINE } else { PROBE_DEADLINE }).await
            }
            None => match self.open().await {
                Ok(open) => first_probe(open, &self.settings).await,
                Err(error) => Err(error),
            },
        };
        let late = |error: &DbError| matches!(error, DbError::Deadline(_)) && !had_one;
        let full = probed.as_ref().is_err_and(|error| error.refused_for_number() || late(error));
        self.standby = matches!(probed, Err(DbError::Standby(_)));
        self.refusals = if full { self.refusals.saturating_add(1) } else { 0 };
        let needed = required_version();
        match probed {
            Err(error) => self.down(error.check()),
            Ok((open, found)) => {
                self.connection = Some(open);
                if found < needed { DatabaseState::SchemaTooOld { found, needed } } else { DatabaseState::Up }
            }
        }
    }

    fn down(&mut self, failure: CheckFailure) -> DatabaseState {
        let reason = failure.to_string();
        self.failure = Some(failure);
        DatabaseState::Down(reason)
    }

    async fn open(&mut self) -> Result<Session, DbError> {
        let Role::Member(member) = &self.role else {
            return Connector::new(&self.settings, "rollcall-monitor", &[])?.connect().await;
        };
        let connector = Connector::new(&self.settings, &member.control_name(), &CONTROL)?;
        connector.connect().await
    }

    fn report(&mut self, state: &DatabaseState, away: Option<Duration>) {
        let (database, schema) = match state {
            DatabaseState::Down(reason) => {
                let failure = self.failure.take().unwrap_or_else(|| reason.clone().into());
                (Err(failure), Err("the database does not answer".into()))
            }
            DatabaseState::SchemaTooOld { found, needed } => (
                Ok("answers".to_owned()),
                Err(format!(
                    "version {found} is older than {needed}, which this build needs; run `rollcall migrate run`"
                )
                .into()),
            ),
            DatabaseState::Up => (Ok("answers".to_owned()), Ok(format!("has at least version {}", required_version()))),
        };
        self.health.set("database", database);
        self.health.set("schema", schema);
        if let Some(member) = self.role.member() {
            self.health.set("budget", member.check(away).map_err(CheckFailure::from));
            self.health.set("clock", member.clock().check().map_err(CheckFailure::from));
        }
    }
}

async fn first_probe(mut session: Session, settings: &DatabaseSettings) -> Result<(Session, i64), DbError> {
    let standby: bool = within(PROBE_DEADLINE, async {
        session.begin().await?;
        tell_wall(session.connection_mut()).await?;
        let asking = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(session.connection_mut());
        let standby = asking.await?;
        session.end().await?;
        Ok(standby)
    })
    .await?;
    if standby {
        return Err(DbError::Standby(settings.url.address()));
    }
    probe(session, PROBE_DEADLINE).await
}

async fn probe(mut session: Session, deadline: Duration) -> Result<(Session, i64), DbError> {
    let version = within(deadline, async {
        session.begin().await?;
        let version = current_version(session.connection_mut()).await?;
        session.end().await?;
        Ok(version)
    })
    .await?;
    Ok((session, version))
}
