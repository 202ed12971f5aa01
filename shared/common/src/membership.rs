//! Membership: how many connections this instance may open, and which partitions it owns, under which fencing epoch.
//! `migrations/0003` has the protocol.
//!
//! # Why rows and not advisory locks?
//! A lock tells the database that somebody holds it; a row with an epoch lets every transaction check that it still is
//! this instance. A process that was frozen past its lease wakes up believing in it, and commits nothing.
//!
//! # Why is a lost control connection a lost membership?
//! The others see that its session is gone and need not wait for its lease, but for less than a second: see `pace`. So this
//! instance must stop, too: it owns nothing and opens no connection more. Those that it has it may use until its lease runs out.
//!
//! # Why may heartbeats be lost at a failover?
//! A control session commits without waiting for a synchronous standby (`synchronous_commit = local`): otherwise the loss of a
//! standby would stop every heartbeat, and with them all reads. So a standby that is promoted may know older owners, epochs and
//! grants than the old primary did. It knows a prefix of the old primary's log, and that is what keeps the promises:
//!
//! - A batch waits for the standby when it commits. Its fence read the owner and the epoch in the same log, so a standby that has
//!   the batch has the epoch under which it was applied, and every earlier one. An epoch that is lost was that of no batch whose
//!   commit was confirmed, and whose messages were acknowledged: it is as if the partition had not changed hands.
//! - The new primary may give a lost epoch away again. The fence compares the owner, too, and a worker that believes in the lost
//!   one commits nothing under it: no transaction survives a failover, and a new one is refused unless the row names it.
//! - A grant that is lost was used over sessions of the old primary, which are gone. A member opens nothing after its control
//!   connection ended, until it has joined again and heard what the new primary grants.
//!
//! What clients rely on at once, the row of the deployment and the broker's mark, waits for the standby like any other commit.
//! All of this holds for a standby that is synchronous. One that lags loses commits, whatever a control session does.
//!
//! # What is different behind a pooler?
//! A pooler that lends sessions by the transaction decides by itself how many it opens, and whose they are cannot be seen.
//! So a member whose pool leads through one asks for no share and uses what its own settings allow. When its control connection
//! leads through one too, only the clock tells that it is gone.

mod demand;
mod deployment;
mod door;
mod holdings;
mod pace;
mod protocol;
mod share;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use self::demand::Demand;
use self::deployment::Deployment;
use self::door::Door;
pub(crate) use self::door::Turn;
pub use self::holdings::{Holding, Holdings, Ownership};
use self::pace::Pace;
pub use self::protocol::MembershipError;
use self::protocol::{Admission, Application, BeatAnswer};
pub use self::share::{API, Claim, Share, Standing, WORKER};
use crate::broker::Identity;
use crate::command::CommandIdKey;
use crate::config::ServiceSettings;
use crate::db::{DatabaseClock, DbError, Heard, Pool, PoolStatus, Session};

/// Between the end of a lease by this process's clock and by the server's.
const MARGIN: Duration = Duration::from_secs(1);

/// The heartbeat's side. It lives in the database monitor, on the control connection.
#[derive(Debug)]
pub struct Member {
    instance: Uuid,
    claim: Claim,
    deployment: Deployment,
    clock: DatabaseClock,
    /// Whose sessions the pool's are, where the URL says so.
    pool_role: Option<String>,
    pool: Pool,
    door: Door,
    demand: Demand,
    pace: Pace,
    /// For how long an answer counts, as the server was told.
    counts: Duration,
    standing: Arc<Mutex<Standing>>,
    joined: Option<Joined>,
    awaiting: bool,
    /// The redistribution that was last heard of.
    turn: i64,
    ownership: watch::Sender<Ownership>,
    letting_go: mpsc::UnboundedReceiver<u16>,
    let_go: BTreeSet<u16>,
    reaching: watch::Receiver<bool>,
    /// What the others know of it.
    consumes: bool,
    /// A mark that the broker has and the deployment may take.
    claimed: Option<Uuid>,
}

#[derive(Debug, Clone, Copy)]
struct Joined {
    epoch: i64,
    /// For how long a heartbeat holds, by this process's clock.
    lives: Duration,
    /// Whether it joined without asking for a share, because its pool leads through a pooler.
    shareless: bool,
}

/// What came of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beat {
    /// It takes part.
    Kept,
    /// There is no room: give back the control connection and ask again after this.
    Away(Duration),
}

impl Member {
    /// An instance that has not joined yet, and its pool, which lends nothing before. A service that publishes no events has
    /// no source of them.
    ///
    /// # Errors
    /// [`DbError::Connect`] when sqlx cannot read the URL.
    pub fn new(
        claim: Claim,
        settings: &ServiceSettings,
        event_source: Option<&str>,
        session: &[(&str, &str)],
    ) -> Result<(Self, Holdings, Pool), DbError> {
        let instance = Uuid::now_v7();
        // Under this name the others count its sessions, and end them when they reap it.
        let pool = Pool::leased(&settings.database, &format!("rollcall/{instance}"), session)?;
        let (ownership, owned) = watch::channel(Ownership::new());
        let (sender, letting_go) = mpsc::unbounded_channel();
        let (reaches, reaching) = watch::channel(true);
        let holdings = Holdings { instance, ownership: owned, letting_go: sender, reaching: reaches };
        let member = Self {
            instance,
            claim,
            deployment: Deployment::new(settings, event_source),
            clock: DatabaseClock::default(),
            pool_role: settings.database.url.user.clone(),
            pool: pool.clone(),
            door: Door::new(&settings.broker),
            demand: Demand::default(),
            pace: Pace::default(),
            counts: Duration::ZERO,
            standing: Arc::new(Mutex::new(Standing::Outside)),
            joined: None,
            awaiting: true,
            turn: 0,
            ownership,
            letting_go,
            let_go: BTreeSet::new(),
            reaching,
            consumes: true,
            claimed: None,
        };
        Ok((member, holdings, pool))
    }

    /// What the connections to the broker wait for and compare.
    pub fn identity(&self) -> Identity {
        self.deployment.identity()
    }

    /// The database's clock, as heartbeats read it.
    pub fn clock(&self) -> DatabaseClock {
        self.clock.clone()
    }

    /// The key of the deployment for the ids of commands, from the first join on.
    pub fn command_ids(&self) -> watch::Receiver<Option<CommandIdKey>> {
        self.deployment.command_ids()
    }

    /// Whether it was a member of the deployment before.
    pub(crate) fn joined_before(&self) -> bool {
        self.deployment.joined_before().is_some()
    }

    /// Waits until it may open the control connection.
    pub(crate) async fn enter(&self) -> Option<Turn> {
        self.door.enter().await
    }

    /// Whether it has something of its own, and so the places that are kept for arrivals are free again.
    pub(crate) fn fed(&self) -> bool {
        match self.standing() {
            Standing::Member(share) => share.granted >= self.claim.floor,
            // Its connections are a pooler's: nothing else will come.
            Standing::Shareless(_) => true,
            Standing::Outside | Standing::TurnedAway(_) => false,
        }
    }

    /// The name of the control connection.
    pub(crate) fn control_name(&self) -> String {
        format!("rollcall-control/{}", self.instance)
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Reports the share as metrics, for the life of the process.
    pub(crate) fn observe(&self) {
        share::observe(&self.standing);
    }

    /// What `/readyz` says of the budget; `away` until it asks again.
    pub(crate) fn check(&self, away: Option<Duration>) -> Result<String, String> {
        match self.pace.too_slow() {
            Some(took) => {
                Err(format!("the database answers after {:.1} s, too late to open connections", took.as_secs_f64()))
            }
            None => self.standing().check(away),
        }
    }

    /// How it stands with the budget.
    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until this instance has something to say that should not wait for the next heartbeat: a partition is let go,
    /// the pool has shrunk, or the broker can be marked.
    pub(crate) async fn asked(&mut self) {
        tokio::select! {
            candidate = self.deployment.claimed() => self.claimed = Some(candidate),
            partition = self.letting_go.recv() => match partition {
                Some(partition) => {
                    self.let_go.insert(partition);
                }
                None => std::future::pending().await,
            },
            () = self.pool.shrunk() => {}
        }
    }

    /// Whether something is about to come: then the next heartbeat should be soon.
    pub(crate) fn awaiting(&self) -> bool {
        self.awaiting
    }

    /// Whether there was a redistribution since the last heartbeat.
    pub(crate) async fn called(&mut self, session: &mut Session) -> Result<bool, MembershipError> {
        let asked_at = Instant::now();
        session.begin().await?;
        let turn = protocol::turn(session.connection_mut()).await?;
        session.end().await?;
        self.pace.note(asked_at.elapsed());
        if self.joined.is_some_and(|joined| !joined.shareless) {
            self.pool.heard(Heard { at: asked_at, counts: self.counts });
        }
        Ok(turn != self.turn)
    }

    /// Joins, or beats; lets go what was asked for; publishes what is owned.
    pub(crate) async fn beat(&mut self, session: &mut Session) -> Result<Beat, MembershipError> {
        session.begin().await?;
        let beat = self.take_part(session).await?;
        session.end().await?;
        Ok(beat)
    }

    async fn take_part(&mut self, session: &mut Session) -> Result<Beat, MembershipError> {
        // The pool finds out by its first connection, which can be later than the join.
        let shareless = self.pool.through_pooler();
        let joined = match self.joined {
            Some(joined) if joined.shareless == shareless => joined,
            _ => match self.join(session, shareless).await? {
                Ok(joined) => joined,
                Err(away) => return Ok(Beat::Away(away)),
            },
        };
        // First what takes the membership's lock before any other: behind a pooler all of this is one transaction.
        self.offer(session).await?;
        if !self.say(session, joined).await? {
            warn!(instance = %self.instance, "reaped: the heartbeat came too late");
            // One turn without anything, so that every loop stops before something is owned anew.
            self.lost();
            self.pool.resize(0);
            return Ok(Beat::Kept);
        }
        let partitions = protocol::partitions(session.connection_mut(), self.instance).await?;
        self.awaiting |= partitions.iter().any(|one| !one.already);
        let owned = partitions.into_iter().filter(|one| one.already);
        self.publish(owned.map(|one| (one.partition, one.holding)).collect());
        Ok(Beat::Kept)
    }

    /// Lets go what was asked for, and says whether it could have more.
    async fn offer(&mut self, session: &mut Session) -> Result<(), MembershipError> {
        while let Ok(partition) = self.letting_go.try_recv() {
            self.let_go.insert(partition);
        }
        if !self.let_go.is_empty() {
            protocol::release(session.connection_mut(), self.instance, self.let_go.iter().copied()).await?;
            self.let_go.clear();
        }
        let consumes = *self.reaching.borrow();
        if consumes != self.consumes {
            protocol::set_consumes(session.connection_mut(), self.instance, consumes).await?;
            self.consumes = consumes;
        }
        self.claimed = self.claimed.or_else(|| self.deployment.claim());
        if let Some(candidate) = self.claimed {
            let mark = protocol::mark_broker(session.connection_mut(), candidate).await?;
            self.deployment.marked(mark);
            self.claimed = None;
        }
        Ok(())
    }

    /// Takes part; without room it gives how long to stay away.
    async fn join(
        &mut self,
        session: &mut Session,
        shareless: bool,
    ) -> Result<Result<Joined, Duration>, MembershipError> {
        let (floor, most) = if shareless { (0, 0) } else { (self.claim.floor, self.pool.most()) };
        let asking = Application {
            instance: self.instance,
            service: self.claim.service,
            settings: self.deployment.settings(),
            joined_before: self.deployment.joined_before(),
            weight: self.claim.weight,
            floor,
            most,
            pool_role: self.pool_role.as_deref(),
            own_session: !session.pooled(),
        };
        let (epoch, lives) = match protocol::join(session.connection_mut(), &asking).await? {
            Admission::Joined { epoch, lives } => (epoch, lives),
            Admission::TurnedAway { reason, away } => {
                self.stand(Standing::TurnedAway(reason));
                return Ok(Err(away));
            }
        };
        let row = protocol::deployment(session.connection_mut()).await?;
        info!(instance = %self.instance, epoch, deployment = %row.id, "joined");
        if row.computed && !self.joined_before() {
            info!(
                budget = row.budget,
                arithmetic = row.arithmetic,
                "the connection budget is computed as if nobody else needed more of the server later; set \
                 DATABASE_CONNECTION_BUDGET where others use it, too"
            );
        }
        self.deployment.joined(row.id);
        self.deployment.marked(row.broker_mark);
        // Whatever was open belonged to an earlier membership; the others have ended it.
        self.pool.discard_idle();
        let joined = Joined { epoch, lives, shareless };
        (self.joined, self.consumes) = (Some(joined), true);
        Ok(Ok(joined))
    }

    /// Beats and obeys the answer; false when this instance was reaped.
    async fn say(&mut self, session: &mut Session, joined: Joined) -> Result<bool, MembershipError> {
        self.demand.note(self.pool.take_peak());
        loop {
            // The lease runs from before the question: the server counts from later.
            let asked_at = Instant::now();
            let status = self.pool.status();
            let held = if joined.shareless { 0 } else { status.size.max(status.open) };
            let demand = self.demand.peak().min(self.pool.most());
            let who = (self.instance, joined.epoch);
            let counts = self.pace.counts();
            if counts < self.counts {
                // Before the server believes it.
                self.counts = counts;
                self.pool.heard_for(counts);
            }
            let connection = session.connection_mut();
            let answer = protocol::beat(connection, who, held, status, demand, Pace::grace(counts)).await?;
            self.counts = counts;
            let Some(BeatAnswer { granted, target, soon, budget, instances, turn, sessions, broker_mark, now }) =
                answer
            else {
                return Ok(false);
            };
            self.clock.note(now, asked_at);
            self.deployment.marked(broker_mark);
            self.awaiting = soon;
            self.turn = turn;
            let until = asked_at + joined.lives.saturating_sub(MARGIN);
            if joined.shareless {
                self.stand(Standing::Shareless(self.pool.most()));
                self.pool.obey(self.pool.most(), until, None);
                return Ok(true);
            }
            self.stand(Standing::Member(Share { granted, target, budget, instances }));
            let number = |count: i32| usize::try_from(count).unwrap_or_default();
            self.pool.correct(status, asked_at, number(sessions));
            self.pool.obey(number(granted.min(target)), until, Some(Heard { at: asked_at, counts }));
            // What could be given back at once is: somebody waits for it.
            let PoolStatus { size, open, .. } = self.pool.status();
            if granted <= target || size.max(open) >= number(granted) {
                return Ok(true);
            }
            // Behind a pooler the locks of one heartbeat must not be there for the next.
            session.end().await?;
            session.begin().await?;
        }
    }

    /// Stops everything: somebody else may own it by now.
    pub(crate) fn lost(&mut self) {
        self.stand(Standing::Outside);
        self.stop();
    }

    /// The same for one whose settings do not fit the deployment any more.
    pub(crate) fn misfit(&mut self, reason: String) {
        self.stand(Standing::TurnedAway(reason));
        self.stop();
    }

    /// The same for one who was turned away, and knows why.
    pub(crate) fn stop(&mut self) {
        if self.joined.take().is_some() {
            self.pool.hold();
        }
        self.awaiting = true;
        self.let_go.clear();
        self.publish(Ownership::new());
    }

    /// Leaves for good, after the pool was closed.
    pub(crate) async fn leave(&mut self, session: &mut Session) -> Result<(), MembershipError> {
        if self.joined.take().is_some() {
            session.begin().await?;
            protocol::leave(session.connection_mut(), self.instance).await?;
            session.end().await?;
        }
        Ok(())
    }

    fn stand(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn publish(&self, ownership: Ownership) {
        self.ownership.send_if_modified(|before| {
            let changed = *before != ownership;
            *before = ownership;
            changed
        });
    }
}
