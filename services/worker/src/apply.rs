//! One batch in one transaction: fence, deduplicate, park what is held, claim idempotency keys,
//! waves with their events, outcomes, commit.
//!
//! # Why insert the command rows first?
//! The insert is the deduplication: a row that does not come back was decided before. If another worker is deciding the
//! same command right now, the insert waits for it, so the two never both apply it.
//!
//! # Why twice?
//! Together first, which is quick. If the data of one command makes a statement fail, the whole batch is done again one by
//! one under savepoints, so that the guilty command never takes its neighbours along.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::command::{Command, CommandId, CreateUser, Digest, Email, Envelope, Idempotency, Name, Principal, UserId};
use common::config::{IdempotencyWindow, Retention};
use common::db::{DbError, Pool};
use sqlx::{Connection, PgConnection};
use time::{Date, OffsetDateTime};
use tracing::warn;
use uuid::Uuid;

use crate::alone::{Tried, try_alone};
use crate::blame::ApplyError;
use crate::commands::{decide, deduplicate};
use crate::dead_letters::{self, Letters, Traces};
use crate::delivery::kept;
use crate::events::Origin;
use crate::flood::FloodGuard;
use crate::idempotency;
use crate::suspects::MOST_ATTEMPTS;
use crate::users::{self, Outcome};
use crate::waves::waves;

/// Partitions share the pool, so a batch may have to wait for several others.
const ACQUIRE_PATIENCE: Duration = Duration::from_secs(30);
/// For a whole batch; a transaction that takes longer is abandoned with its connection.
const BATCH_DEADLINE: Duration = Duration::from_secs(30);

/// What a transaction checks before anything else: that this instance still owns the partition under this epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// This instance.
    pub instance: Uuid,
    /// The partition.
    pub partition: u16,
    /// The epoch of its ownership.
    pub epoch: i64,
}

/// Applies batches. Each partition has its own.
#[derive(Debug)]
pub struct Applier {
    fence: Option<Fence>,
    pool: Pool,
    guard: FloodGuard,
    retention: Retention,
    window: IdempotencyWindow,
    ensured_days: HashSet<Date>,
}

impl Applier {
    /// An applier over the worker's pool, under the worker's guard.
    pub fn new(pool: Pool, guard: FloodGuard, retention: Retention, window: IdempotencyWindow) -> Self {
        Self { fence: None, pool, guard, retention, window, ensured_days: HashSet::new() }
    }

    /// Sets the fence of the batches to come; without one nothing is applied.
    pub fn fence(&mut self, fence: Fence) {
        self.fence = Some(fence);
    }

    /// Whether the command's row could be kept: its time is neither before the retention nor in the future.
    pub fn keeps(&self, id: CommandId) -> bool {
        kept(id, self.retention)
    }

    /// Applies a batch and gives the outcome of each command in it that had not been decided before.
    ///
    /// # Errors
    /// Every kind but [`ApplyError::Command`], unless even the row of a command cannot be written; then nothing was applied.
    pub async fn apply(&mut self, commands: &[Envelope]) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        self.apply_traced(commands, &Traces::new()).await
    }

    /// The same for messages whose trace contexts a dead letter keeps.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn apply_traced(
        &mut self,
        commands: &[Envelope],
        traces: &Traces,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        let together = self.transaction(commands, traces, Mode::Together).await;
        match together {
            Err(ApplyError::Command { sqlstate, .. }) => {
                warn!(sqlstate, commands = commands.len(), "a batch failed; applying its commands one by one");
                self.transaction(commands, traces, Mode::OneByOne).await
            }
            end => end,
        }
    }

    /// Makes a command that ended its worker too often a dead letter, without trying it.
    pub(crate) async fn give_up(
        &mut self,
        command: &Envelope,
        traces: &Traces,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        self.transaction(std::slice::from_ref(command), traces, Mode::GiveUp).await
    }

    /// Tries the whole of a transaction with a command of its own and undoes it: says whether a batch would go through,
    /// without taking one out of its queue.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn probe(&self) -> Result<(), ApplyError> {
        let (Ok(email), Ok(name)) = (Email::parse("probe@rollcall.invalid"), Name::parse("Probe")) else {
            return Ok(());
        };
        let (id, user_id) = (CommandId::mint(), UserId::mint());
        let digest = Digest::of_key(&Principal::anonymous(), &id.to_string());
        let envelope = Envelope {
            id,
            accepted_at: OffsetDateTime::now_utc(),
            principal: Principal::anonymous(),
            if_match: None,
            idempotency: Some(Idempotency { key: digest, fingerprint: digest }),
            command: Command::CreateUser(CreateUser { user_id, email, name }),
        };
        let mut lease = self.pool.acquire(ACQUIRE_PATIENCE).await?;
        let work = async {
            let mut tx = lease.begin().await?;
            hold(&mut tx, self.fence).await?;
            sqlx::query!("SELECT ensure_command_day($1)", id.minted_at().date()).execute(&mut *tx).await?;
            self.work(&mut tx, &[envelope], &Traces::new(), Mode::Together).await?;
            tx.rollback().await?;
            Ok::<_, ApplyError>(())
        };
        tokio::time::timeout(BATCH_DEADLINE, work).await.map_err(|_| DbError::Deadline(BATCH_DEADLINE))??;
        lease.release().await?;
        Ok(())
    }

    async fn transaction(
        &mut self,
        commands: &[Envelope],
        traces: &Traces,
        mode: Mode,
    ) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
        // Dropped on every early return, which closes the connection and so ends whatever ran on it.
        let mut lease = self.pool.acquire(ACQUIRE_PATIENCE).await?;
        let days: HashSet<Date> = commands.iter().map(|c| c.id.minted_at().date()).collect();
        let work = async {
            for day in days.difference(&self.ensured_days) {
                sqlx::query!("SELECT ensure_command_day($1)", day).execute(&mut *lease).await?;
            }
            #[cfg(feature = "mutants")]
            crate::mutants::hide(&mut lease).await?;
            let mut tx = lease.begin().await?;
            hold(&mut tx, self.fence).await?;
            let applied = self.work(&mut tx, commands, traces, mode).await?;
            tx.commit().await?;
            Ok::<_, ApplyError>(applied)
        };
        let Applied { outcomes, tried, dead } =
            tokio::time::timeout(BATCH_DEADLINE, work).await.map_err(|_| DbError::Deadline(BATCH_DEADLINE))??;
        lease.release().await?;
        self.guard.note(tried, dead);
        self.ensured_days.extend(days);
        Ok(outcomes)
    }

    /// What happens to the commands between the fence and the commit.
    async fn work(
        &self,
        conn: &mut PgConnection,
        commands: &[Envelope],
        traces: &Traces,
        mode: Mode,
    ) -> Result<Applied, ApplyError> {
        let Fence { partition, .. } = self.fence.ok_or(ApplyError::Fenced)?;
        let origin = Origin { partition, traces };
        let fresh = deduplicate(conn, commands).await?;
        #[cfg(feature = "mutants")]
        let fresh = crate::mutants::ordered(fresh);
        let mut letters = Letters::new(dead_letters::held_users(conn, &fresh).await?);
        let (behind, free): (Vec<_>, Vec<_>) = fresh.into_iter().partition(|envelope| letters.behind(envelope));
        // A retry of a parked command is of the same user, so it waits too, and claims its key when its turn comes.
        let (first, retries) = idempotency::claim(conn, free, self.window).await?;
        let mut outcomes = match mode {
            Mode::Together => together(conn, &first, origin).await?,
            Mode::OneByOne => one_by_one(conn, &first, &mut letters, origin).await?,
            Mode::GiveUp => give_up(&first, &mut letters),
        };
        outcomes.extend(behind.iter().map(|envelope| (envelope.id, Outcome::Behind)));
        idempotency::repeat(retries, &mut outcomes, &mut letters);
        let (tried, dead) = (first.len(), letters.dead());
        if let Some(dead) = self.guard.flood(tried, dead) {
            return Err(ApplyError::Flood(dead));
        }
        letters.record(conn, traces).await?;
        decide(conn, &outcomes).await?;
        Ok(Applied { outcomes, tried, dead })
    }
}

/// What came of the work of a transaction.
struct Applied {
    outcomes: HashMap<CommandId, Outcome>,
    /// Commands that were neither parked behind another nor retries.
    tried: usize,
    /// Those of them that became dead letters.
    dead: usize,
}

#[derive(Clone, Copy)]
enum Mode {
    Together,
    OneByOne,
    GiveUp,
}

/// Holds the ownership of the partition until the end of the transaction: whoever takes it over waits for that.
async fn hold(conn: &mut PgConnection, fence: Option<Fence>) -> Result<(), ApplyError> {
    #[cfg(feature = "mutants")]
    if crate::mutants::unfenced() {
        return Ok(());
    }
    let Some(Fence { instance, partition, epoch }) = fence else { return Err(ApplyError::Fenced) };
    let held = sqlx::query_scalar!(
        r#"
        SELECT epoch
        FROM partitions
        WHERE number = $1 AND owner = $2 AND epoch = $3
        FOR KEY SHARE
        "#,
        i32::from(partition),
        instance,
        epoch,
    )
    .fetch_optional(conn)
    .await?;
    held.map(|_| ()).ok_or(ApplyError::Fenced)
}

async fn together(
    conn: &mut PgConnection,
    commands: &[Envelope],
    origin: Origin<'_>,
) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
    let mut outcomes = HashMap::with_capacity(commands.len());
    for wave in waves(commands) {
        outcomes.extend(users::apply_wave(conn, &wave, origin).await?);
    }
    Ok(outcomes)
}

async fn one_by_one(
    conn: &mut PgConnection,
    commands: &[Envelope],
    letters: &mut Letters,
    origin: Origin<'_>,
) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
    let mut outcomes = HashMap::with_capacity(commands.len());
    for envelope in commands {
        let outcome = if letters.behind(envelope) {
            Outcome::Behind
        } else {
            match try_alone(conn, envelope, origin).await? {
                Tried::Decided(outcome) => outcome,
                Tried::Guilty { sqlstate, reason } => {
                    letters.guilty(envelope, Some(sqlstate.clone()), &reason, 1);
                    Outcome::Parked(sqlstate)
                }
            }
        };
        outcomes.insert(envelope.id, outcome);
    }
    Ok(outcomes)
}

fn give_up(commands: &[Envelope], letters: &mut Letters) -> HashMap<CommandId, Outcome> {
    let outcome = |envelope: &Envelope| {
        letters.guilty(envelope, None, "its worker ended whenever it was tried", MOST_ATTEMPTS);
        (envelope.id, Outcome::Parked(dead_letters::WORKER_ENDED.to_owned()))
    };
    commands.iter().map(outcome).collect()
}
