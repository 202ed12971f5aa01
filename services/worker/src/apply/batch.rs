//! Work of a transaction between the fence and the commit.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use common::command::{CommandId, Message};
use sqlx::PgConnection;
use time::Duration;
use tracing::error;

use crate::admission::misplaced;
use crate::alone::{AloneEnd, try_alone};
use crate::blame::ApplyError;
use crate::commands::{decide, deduplicate};
use crate::days::BatchDays;
use crate::dead_letters::{self, Letters, RawMessage, Traces, record_raw};
use crate::events::{Origin, RecordedEvent};
use crate::flood::FloodGuard;
use crate::idempotency::{self, Retry, Times};
use crate::incoming::{Candidate, Entry, IncomingMessage};
use crate::suspects::MOST_ATTEMPTS;
use crate::users::{self, Outcome};
use crate::waves::waves;

/// How far ahead of the database's clock a command's id may be. A day's table, and so retention, goes by that time.
pub(super) const MOST_AHEAD: Duration = Duration::days(1);

/// What the commands of a transaction have in common.
pub(super) struct Batch<'a> {
    pub(super) partition: u16,
    pub(super) partitions: u16,
    pub(super) guard: &'a FloodGuard,
    pub(super) times: Times,
    /// Days whose outcomes are not kept, or that are none of this deployment's.
    pub(super) days: BatchDays,
}

/// What came of the work of a transaction.
pub(super) struct Applied {
    pub(super) outcomes: HashMap<CommandId, Outcome>,
    /// Commands that were neither parked behind another nor retries.
    pub(super) tried: usize,
    /// Those of them that became dead letters.
    pub(super) dead: usize,
    pub(super) events: Vec<RecordedEvent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Together,
    OneByOne,
    GiveUp,
}

/// Why a command is parked without a try.
struct Refusal {
    code: &'static str,
    reason: String,
}

/// What a transaction has done so far.
struct Progress {
    letters: Letters,
    outcomes: HashMap<CommandId, Outcome>,
    tried: usize,
}

impl Batch<'_> {
    /// Does it.
    ///
    /// # Errors
    /// [`ApplyError::Flood`], or as the statements give them; then the transaction must be rolled back.
    pub(super) async fn work(
        &self,
        conn: &mut PgConnection,
        messages: &[IncomingMessage],
        mode: Mode,
    ) -> Result<Applied, ApplyError> {
        let traces: Traces = messages.iter().filter_map(|m| Some((m.id()?, m.trace.clone()))).collect();
        let recorded = Mutex::default();
        let origin = Origin { partition: self.partition, traces: &traces, recorded: Some(&recorded) };
        let fresh = deduplicate(conn, Entry::all(messages), &self.days.outside).await?;
        #[cfg(feature = "mutants")]
        let fresh = crate::mutants::ordered(fresh);
        let held = dead_letters::held_users(conn, &fresh).await?;
        let mut progress = Progress { letters: Letters::new(held), outcomes: HashMap::new(), tried: 0 };
        for round in self.times.rounds(&fresh) {
            self.round(conn, round, mode, origin, &mut progress).await?;
        }
        let Progress { letters, outcomes, tried } = progress;
        let dead = letters.dead();
        if let Some(dead) = self.guard.flood(tried, dead) {
            return Err(ApplyError::Flood(dead));
        }
        letters.record(conn).await?;
        for message in messages.iter().filter_map(RawMessage::of) {
            let letter = record_raw(conn, message).await?;
            if let Some(defect) = message.defect {
                error!(partition = self.partition, letter, %defect, "a message that did not arrive whole is a dead letter");
            }
        }
        for (command, defect) in fresh.iter().filter_map(|entry| Some((entry.id(), entry.message.defect.as_ref()?))) {
            let partition = self.partition;
            error!(partition, command.id = %command, %defect, "a message that did not arrive whole is a dead letter");
        }
        let decided: Vec<_> =
            fresh.iter().filter_map(|entry| Some((entry.id(), outcomes.get(&entry.id())?.clone()))).collect();
        decide(conn, &decided).await?;
        let events = recorded.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Applied { outcomes, tried, dead, events })
    }

    /// Commands that may claim their idempotency keys at once. The letters come in the order of arrival.
    async fn round(
        &self,
        conn: &mut PgConnection,
        entries: &[Entry<'_>],
        mode: Mode,
        origin: Origin<'_>,
        Progress { letters, outcomes, tried }: &mut Progress,
    ) -> Result<(), ApplyError> {
        let (free, mut refusals) = self.sort(entries, letters);
        // A retry of a parked command is of the same user, so it waits too, and claims its key when its turn comes.
        let (first, retries) = idempotency::claim(conn, free, &self.times, outcomes).await?;
        let first: HashMap<CommandId, Candidate<'_>> = {
            if mode == Mode::Together {
                for wave in waves(first.iter().map(|candidate| candidate.envelope)) {
                    outcomes.extend(users::apply_wave(conn, &wave, origin).await?);
                }
            }
            first.into_iter().map(|candidate| (candidate.entry.id(), candidate)).collect()
        };
        *tried += first.len() + refusals.len();
        let repeated: HashSet<CommandId> = retries.iter().map(Retry::id).collect();
        for entry in entries {
            let id = entry.id();
            if repeated.contains(&id) {
                continue;
            }
            let outcome = if letters.behind(entry) {
                Outcome::Behind
            } else if let Some(Refusal { code, reason }) = refusals.remove(&id) {
                letters.guilty(entry, None, &reason, 1);
                Outcome::Parked(code.to_owned())
            } else if let (Mode::OneByOne, Some(candidate)) = (mode, first.get(&id)) {
                match try_alone(conn, candidate.envelope, origin).await? {
                    AloneEnd::Outcome(outcome) => outcome,
                    AloneEnd::Failed { sqlstate, reason } => {
                        letters.guilty(entry, Some(sqlstate.clone()), &reason, 1);
                        Outcome::Parked(sqlstate)
                    }
                }
            } else if mode == Mode::GiveUp && first.contains_key(&id) {
                letters.guilty(entry, None, "its worker ended whenever it was tried", MOST_ATTEMPTS);
                Outcome::Parked(dead_letters::WORKER_ENDED.to_owned())
            } else {
                // Applied with its wave.
                continue;
            };
            outcomes.insert(id, outcome);
        }
        idempotency::repeat(retries, outcomes, letters);
        Ok(())
    }

    /// The commands that may be applied, and why others are parked. What comes after one of those is in neither.
    fn sort<'e>(
        &self,
        entries: &'e [Entry<'e>],
        letters: &Letters,
    ) -> (Vec<Candidate<'e>>, HashMap<CommandId, Refusal>) {
        let (mut free, mut refusals, mut blocked) = (Vec::new(), HashMap::new(), HashSet::new());
        for entry in entries {
            let user = entry.user_id();
            if user.is_some_and(|user| letters.holds(user) || blocked.contains(&user)) {
                continue;
            }
            match (self.refusal(entry), entry.message.envelope()) {
                (None, Some(envelope)) => free.push(Candidate { entry, envelope }),
                (refusal, _) => {
                    blocked.extend(user);
                    refusals.extend(refusal.map(|refusal| (entry.id(), refusal)));
                }
            }
        }
        (free, refusals)
    }

    fn refusal(&self, entry: &Entry<'_>) -> Option<Refusal> {
        let minted_at = entry.id().minted_at();
        if let Message::Unread(unread) = &entry.message.content {
            return Some(Refusal { code: dead_letters::NOT_UNDERSTOOD, reason: unread.reason.clone() });
        }
        if let Some(reason) = misplaced(entry.user_id(), self.partition, self.partitions) {
            return Some(Refusal { code: dead_letters::WRONG_PARTITION, reason });
        }
        if minted_at > self.times.now + MOST_AHEAD {
            let reason = format!(
                "its id is of {minted_at}, more than {} hours ahead of the database's clock",
                MOST_AHEAD.whole_hours()
            );
            return Some(Refusal { code: dead_letters::ID_AHEAD, reason });
        }
        if self.days.dropped.contains(&entry.day()) {
            let reason = format!(
                "the records of {} are not kept: it may have been applied before; replay it if not",
                entry.day()
            );
            return Some(Refusal { code: dead_letters::RECORD_DROPPED, reason });
        }
        None
    }
}
