//! Reads every promise and every row afterwards, and decides. What the clients were told is compared with the rows: first
//! each operation for itself and against its neighbours, then each user's versions as a whole.

mod audit;
mod events;
mod expired;
mod letters;
mod operations;
mod pauses;
mod queues;
mod rows;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use common::command::{DEFAULT_PARTITIONS, UserId};
use uuid::Uuid;

use super::illness;
use super::promises::Promises;
use super::schedule::Expiry;
use super::system::System;
pub(crate) use audit::observe;
pub(crate) use events::subscribe;
use letters::Letters;
use pauses::Pause;
use queues::Queues;
use rows::{Rows, settle};

/// How many broken promises of a kind are shown one by one.
const SHOWN: usize = 10;

/// How a promise can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Broken {
    /// Promised, and it has no outcome, though nothing is left to apply.
    Lost,
    /// It took effect more than once.
    Twice,
    /// It was applied before one that was promised before it was asked for.
    Reordered,
    /// An outcome that the state of the user does not explain, or that differs from what a client was told.
    Wrong,
    /// Applied by a worker that no longer owned the partition.
    Unfenced,
    /// Something does not move, is not ready or does not end.
    Stuck,
    /// A process that must not take part was ready, accepted a write, or did not say what is wrong with it.
    Admitted,
}

const KINDS: [(Broken, &str); 7] = [
    (Broken::Lost, "lost"),
    (Broken::Twice, "twice"),
    (Broken::Reordered, "reordered"),
    (Broken::Wrong, "wrong"),
    (Broken::Unfenced, "unfenced"),
    (Broken::Stuck, "stuck"),
    (Broken::Admitted, "admitted"),
];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    accepted: usize,
    refused: u64,
    unknown: u64,
    commands: usize,
    /// Change events that were recorded, and messages that a subscriber received of them.
    events: usize,
    received: usize,
    letters: Letters,
    pause: Option<Pause>,
    /// Services that ended by themselves.
    ended: u32,
    /// Partitions that still have something to apply.
    waiting: BTreeSet<u16>,
    broken: BTreeMap<Broken, Vec<String>>,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(crate) fn kept(&self) -> bool {
        self.broken.is_empty()
    }

    /// Whether a promise was broken in this way.
    #[cfg(feature = "mutants")]
    pub(crate) fn has(&self, broken: Broken) -> bool {
        self.broken.contains_key(&broken)
    }

    /// Adds what was wrong with processes.
    pub(crate) fn add_stuck(&mut self, complaints: Vec<String>) {
        for complaint in complaints {
            self.found(Broken::Stuck, complaint);
        }
    }

    /// Adds what the faults found while they lasted.
    pub(crate) fn add(&mut self, findings: Vec<(Broken, String)>) {
        for (broken, what) in findings {
            self.found(broken, what);
        }
    }

    /// A promise has no outcome.
    fn unkept(&mut self, command: Uuid, user: Uuid) {
        let partition = UserId::try_from(user).map(|user| user.partition(DEFAULT_PARTITIONS));
        let waits = partition.is_ok_and(|partition| self.waiting.contains(&partition));
        let broken = if waits { Broken::Stuck } else { Broken::Lost };
        self.found(broken, format!("command {command} of user {user} has no outcome"));
    }

    fn found(&mut self, broken: Broken, what: String) {
        self.broken.entry(broken).or_default().push(what);
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "accepted   {}", self.accepted)?;
        writeln!(f, "refused    {} (503, nothing promised)", self.refused)?;
        writeln!(f, "unknown    {} (504 or no answer, nothing promised)", self.unknown)?;
        writeln!(f, "applied    {} commands, retries and those of unknown fate included", self.commands)?;
        writeln!(f, "events     {}, received in {} messages", self.events, self.received)?;
        writeln!(f, "letters    {}", self.letters)?;
        match &self.pause {
            Some(pause) => writeln!(f, "pause      {pause}")?,
            None => writeln!(f, "pause      none")?,
        }
        writeln!(f, "ended      {} services by themselves, and started again", self.ended)?;
        for (kind, name) in KINDS {
            let found = self.broken.get(&kind).map(Vec::as_slice).unwrap_or_default();
            writeln!(f, "{name:<10} {}", found.len())?;
            for one in found.iter().take(SHOWN) {
                writeln!(f, "  {one}")?;
            }
        }
        write!(f, "{}", if self.kept() { "every promise was kept" } else { "PROMISES WERE BROKEN" })
    }
}

/// Waits until nothing moves any more and replays all dead letters, then compares.
pub(crate) async fn judge(
    system: &System,
    promises: &Promises,
    expired: &[(Uuid, Expiry)],
    patience: Duration,
) -> anyhow::Result<Verdict> {
    let mut connection = system.database().await?;
    let mut verdict =
        Verdict { refused: promises.refused, unknown: promises.unknown, ended: system.ended(), ..Verdict::default() };
    let queues = Queues::open(system.stack.rabbitmq.url()).await?;
    settle(&mut connection, &queues, &promises.ids(), patience).await?;
    illness::recover(system, &mut connection, patience).await?;
    queues::judge(&mut verdict, &queues.read().await?);
    let rows = Rows::read(&mut connection).await?;
    verdict.commands = rows.commands.len();
    verdict.pause = pauses::longest(&rows);
    for wrong in &promises.wrong {
        verdict.found(Broken::Wrong, wrong.clone());
    }
    for life in &promises.lives {
        verdict.accepted += life.operations.iter().filter(|operation| operation.accepted.is_some()).count();
        operations::judge(&mut verdict, life, &rows);
    }
    users::judge(&mut verdict, promises, &rows);
    events::judge(&mut verdict, &mut connection, system.stack.rabbitmq.url(), &rows, patience).await?;
    audit::judge(&mut verdict, &mut connection).await?;
    letters::judge(&mut verdict, &mut connection).await?;
    expired::judge(&mut verdict, &system.bases(), expired, patience).await?;
    operations::judge_status(&mut verdict, &system.bases(), promises, &rows).await?;
    Ok(verdict)
}
