//! One batch in one transaction: fence, deduplicate, park what is held, waves, outcomes, commit.
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

use common::command::{CommandId, Envelope};
use common::config::Retention;
use common::db::{DbError, Pool};
use sqlx::{Connection, PgConnection};
use time::{Date, OffsetDateTime};
use tracing::warn;
use uuid::Uuid;

use crate::alone::{Tried, try_alone};
use crate::blame::ApplyError;
use crate::dead_letters::{self, Letters, Traces};
use crate::delivery::kept;
use crate::flood::FloodGuard;
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
    ensured_days: HashSet<Date>,
}

impl Applier {
    /// An applier over the worker's pool, under the worker's guard.
    pub fn new(pool: Pool, guard: FloodGuard, retention: Retention) -> Self {
        Self { fence: None, pool, guard, retention, ensured_days: HashSet::new() }
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
            let mut tx = lease.begin().await?;
            hold(&mut tx, self.fence).await?;
            let fresh = deduplicate(&mut tx, commands).await?;
            let mut letters = Letters::new(dead_letters::held_users(&mut tx, &fresh).await?);
            let outcomes = match mode {
                Mode::Together => together(&mut tx, fresh.clone(), &mut letters).await?,
                Mode::OneByOne => one_by_one(&mut tx, &fresh, &mut letters).await?,
                Mode::GiveUp => give_up(&fresh, &mut letters),
            };
            let in_order = || fresh.iter().filter_map(|c| outcomes.get(&c.id));
            if let Some(dead) = self.guard.flood(in_order()) {
                return Err(ApplyError::Flood(dead));
            }
            letters.record(&mut tx, traces).await?;
            decide(&mut tx, &outcomes).await?;
            tx.commit().await?;
            self.guard.note(in_order());
            Ok::<_, ApplyError>(outcomes)
        };
        let outcomes =
            tokio::time::timeout(BATCH_DEADLINE, work).await.map_err(|_| DbError::Deadline(BATCH_DEADLINE))??;
        lease.release();
        self.ensured_days.extend(days);
        Ok(outcomes)
    }
}

#[derive(Clone, Copy)]
enum Mode {
    Together,
    OneByOne,
    GiveUp,
}

/// Holds the ownership of the partition until the end of the transaction: whoever takes it over waits for that.
async fn hold(conn: &mut PgConnection, fence: Option<Fence>) -> Result<(), ApplyError> {
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

/// Inserts the command rows and gives the commands that were not there yet, in order of arrival.
async fn deduplicate(conn: &mut PgConnection, commands: &[Envelope]) -> Result<Vec<Envelope>, sqlx::Error> {
    let mut once = HashSet::new();
    // A message can come twice in one batch when a publisher repeats it.
    let commands: Vec<&Envelope> = commands.iter().filter(|c| once.insert(c.id)).collect();
    let ids: Vec<Uuid> = commands.iter().map(|c| c.id.into()).collect();
    let user_ids: Vec<Uuid> = commands.iter().map(|c| c.command.user_id().into()).collect();
    let types: Vec<&str> = commands.iter().map(|c| c.command.wire_name()).collect();
    let principals: Vec<&str> = commands.iter().map(|c| c.principal.as_str()).collect();
    let accepted: Vec<OffsetDateTime> = commands.iter().map(|c| c.accepted_at).collect();
    // Sorted, so that two workers with the same commands wait for each other instead of deadlocking.
    let inserted: HashSet<Uuid> = sqlx::query_scalar!(
        r#"
        INSERT INTO commands (id, user_id, type, principal, accepted_at)
        SELECT id, user_id, type, principal, accepted_at
        FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[])
            AS input (id, user_id, type, principal, accepted_at)
        ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id
        "#,
        &ids,
        &user_ids,
        &types as &[&str],
        &principals as &[&str],
        &accepted,
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .collect();
    Ok(commands.into_iter().filter(|c| inserted.contains(&c.id.into())).cloned().collect())
}

async fn together(
    conn: &mut PgConnection,
    commands: Vec<Envelope>,
    letters: &mut Letters,
) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
    let (behind, free): (Vec<_>, Vec<_>) = commands.into_iter().partition(|envelope| letters.behind(envelope));
    let mut outcomes = HashMap::with_capacity(behind.len() + free.len());
    outcomes.extend(behind.iter().map(|envelope| (envelope.id, Outcome::Behind)));
    for wave in waves(&free) {
        outcomes.extend(users::apply_wave(conn, &wave).await?);
    }
    Ok(outcomes)
}

async fn one_by_one(
    conn: &mut PgConnection,
    commands: &[Envelope],
    letters: &mut Letters,
) -> Result<HashMap<CommandId, Outcome>, ApplyError> {
    let mut outcomes = HashMap::with_capacity(commands.len());
    for envelope in commands {
        let outcome = if letters.behind(envelope) {
            Outcome::Behind
        } else {
            match try_alone(conn, envelope).await? {
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
        if letters.behind(envelope) {
            return (envelope.id, Outcome::Behind);
        }
        letters.guilty(envelope, None, "its worker ended whenever it was tried", MOST_ATTEMPTS);
        (envelope.id, Outcome::Parked(dead_letters::WORKER_ENDED.to_owned()))
    };
    commands.iter().map(outcome).collect()
}

/// Writes the outcomes into the command rows.
pub(crate) async fn decide(conn: &mut PgConnection, outcomes: &HashMap<CommandId, Outcome>) -> Result<(), sqlx::Error> {
    let ids: Vec<Uuid> = outcomes.keys().map(|id| (*id).into()).collect();
    let (Some(lowest), Some(highest)) = (ids.iter().min(), ids.iter().max()) else { return Ok(()) };
    let mut statuses = Vec::with_capacity(ids.len());
    let mut reasons = Vec::with_capacity(ids.len());
    let mut versions = Vec::with_capacity(ids.len());
    for outcome in outcomes.values() {
        let (status, reason, version) = match outcome {
            Outcome::Succeeded(version) => ("succeeded", None, *version),
            Outcome::Rejected(rejection) => ("rejected", Some(rejection.as_str()), None),
            Outcome::Parked(code) => ("parked", Some(code.as_str()), None),
            Outcome::Behind => ("parked", Some(dead_letters::BEHIND), None),
        };
        statuses.push(status);
        reasons.push(reason);
        versions.push(version);
    }
    // The bounds let the planner leave out the other days' tables.
    sqlx::query!(
        r#"
        UPDATE commands
        SET status = outcome.status, reason = outcome.reason, user_version = outcome.version
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS outcome (id, status, reason, version)
        WHERE commands.id = outcome.id AND commands.id BETWEEN $5 AND $6
        "#,
        &ids,
        &statuses as &[&str],
        &reasons as &[Option<&str>],
        &versions as &[Option<i64>],
        lowest,
        highest,
    )
    .execute(conn)
    .await?;
    Ok(())
}
