//! Work of a transaction between the fence and the commit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use common::command::{CommandHeader, CommandId, Message};
use sqlx::PgConnection;
use time::Duration;
use tracing::error;

use super::fence::Held;
use super::{Committed, Share};
use crate::admission::misplaced;
use crate::alone::{AloneEnd, try_alone};
use crate::blame::ApplyError;
use crate::commands;
use crate::days::BatchDays;
use crate::dead_letters::{self, Letters, RawMessage, Traces, record_raw};
use crate::events::{self, RecordedEvents};
use crate::flood::FloodGuard;
use crate::idempotency::{self, Retry, Times};
use crate::incoming::{Candidate, Entry, IncomingMessage, Source};
use crate::suspects::MOST_ATTEMPTS;
use crate::users::{self, Change, Outcome};
use crate::waves::waves;

/// How far ahead of the database's clock a command's id may be. A day's table, and so retention, goes by that time.
pub(super) const MOST_AHEAD: Duration = Duration::days(1);

/// What the commands of a transaction have in common.
pub(super) struct Batch<'a> {
    pub(super) partitions: u16,
    pub(super) guard: &'a FloodGuard,
    pub(super) times: Times,
    /// Days whose outcomes are not kept, or that are none of this deployment's.
    pub(super) days: BatchDays,
}

/// What came of the work of a transaction.
pub(super) struct Applied {
    pub(super) committed: Committed,
    pub(super) events: RecordedEvents,
    /// Commands that were neither parked behind another nor retries.
    pub(super) tried: usize,
    /// Those of them that became dead letters.
    pub(super) dead: usize,
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
    changes: Vec<Change>,
    events: RecordedEvents,
    tried: usize,
}

impl Batch<'_> {
    /// Does it, for the shares whose partitions are held.
    ///
    /// # Errors
    /// [`ApplyError::Flood`], or as the statements give them; then the transaction must be rolled back.
    pub(super) async fn work(
        &self,
        conn: &mut PgConnection,
        shares: &[Share<'_>],
        held: Held,
        mode: Mode,
    ) -> Result<Applied, ApplyError> {
        let shares = || shares.iter().filter(|share| held.partitions.contains(&share.fence.partition));
        let messages: Vec<(Source, &IncomingMessage)> =
            shares().flat_map(|share| share.messages.iter().map(|message| (share.source(), message))).collect();
        let traces: Traces<'_> = messages.iter().filter_map(|(_, m)| Some((m.id()?, &m.trace))).collect();
        let fresh = self.fresh(conn, Entry::all(messages.iter().copied()), &held.known).await?;
        #[cfg(feature = "mutants")]
        let fresh = crate::mutants::ordered(fresh);
        let mut progress = Progress {
            letters: Letters::new(held.blocked_users),
            outcomes: HashMap::new(),
            changes: Vec::new(),
            events: RecordedEvents::default(),
            tried: 0,
        };
        for round in self.times.rounds(&fresh) {
            self.round(conn, round, mode, &traces, &mut progress).await?;
        }
        let Progress { letters, outcomes, changes, events: mut recorded, tried } = progress;
        let dead = letters.dead();
        if let Some(dead) = self.guard.flood(tried, dead) {
            return Err(ApplyError::Flood(dead));
        }
        letters.record(conn).await?;
        for (Source { partition, .. }, message) in messages {
            let Some(raw) = RawMessage::of(message) else { continue };
            let letter = record_raw(conn, raw).await?;
            if let Some(defect) = &message.defect {
                error!(partition, letter, %defect, "a message that did not arrive whole is a dead letter");
            }
        }
        for (entry, defect) in fresh.iter().filter_map(|entry| Some((entry, entry.message.defect.as_ref()?))) {
            let (partition, id) = (entry.source.partition, entry.id());
            error!(partition, command.id = %id, %defect, "a message that did not arrive whole is a dead letter");
        }
        let located = changes.iter().map(|change| (change, change.user_id.partition(self.partitions))).collect();
        recorded.extend(events::record(conn, located, &traces).await?);
        self.record_commands(conn, &fresh, &outcomes).await?;
        let users = recorded
            .events
            .iter()
            .filter_map(|event| Some((CommandId::try_from(event.id).ok()?, Arc::clone(&event.data))));
        let committed =
            Committed { users: users.collect(), outcomes, partitions: held.partitions, applied_at: held.now };
        Ok(Applied { committed, events: recorded, tried, dead })
    }

    /// The commands that were not decided before. One of a day without a table gets no row: its dead letter says that it was
    /// there.
    async fn fresh<'m>(
        &self,
        conn: &mut PgConnection,
        entries: Vec<Entry<'m>>,
        known: &HashSet<CommandId>,
    ) -> Result<Vec<Entry<'m>>, sqlx::Error> {
        let outside = |entry: &Entry<'_>| self.days.outside.contains(&entry.day());
        let ids: Vec<_> = entries.iter().filter(|entry| outside(entry)).map(|entry| entry.id().into()).collect();
        let unrecorded: HashSet<_> = match ids.as_slice() {
            [] => HashSet::new(),
            ids => dead_letters::without_letter(conn, ids).await?.into_iter().collect(),
        };
        #[cfg(feature = "mutants")]
        let known = &crate::mutants::known(known);
        let is_fresh = |entry: &Entry<'_>| {
            if outside(entry) { unrecorded.contains(&entry.id().into()) } else { !known.contains(&entry.id()) }
        };
        Ok(entries.into_iter().filter(is_fresh).collect())
    }

    /// Writes the rows of the commands, which no other transaction may have decided meanwhile.
    async fn record_commands(
        &self,
        conn: &mut PgConnection,
        fresh: &[Entry<'_>],
        outcomes: &HashMap<CommandId, Outcome>,
    ) -> Result<(), ApplyError> {
        let with_row: Vec<&Entry<'_>> =
            fresh.iter().filter(|entry| !self.days.outside.contains(&entry.day())).collect();
        let decided: Vec<(&CommandHeader, &Outcome)> =
            with_row.iter().filter_map(|entry| Some((&entry.header, outcomes.get(&entry.id())?))).collect();
        let recorded = commands::record(conn, &decided).await?;
        #[cfg(feature = "mutants")]
        let recorded = crate::mutants::rows(recorded, decided.len());
        // Else another transaction has decided one meanwhile: an abandoned one of this owner, or a record of the broker's dead
        // letters. A command without an outcome must not be acknowledged.
        if recorded == with_row.len() { Ok(()) } else { Err(ApplyError::Contention(None)) }
    }

    /// Commands that may claim their idempotency keys at once. The letters come in the order of arrival.
    async fn round(
        &self,
        conn: &mut PgConnection,
        entries: &[Entry<'_>],
        mode: Mode,
        traces: &Traces<'_>,
        Progress { letters, outcomes, changes, events, tried }: &mut Progress,
    ) -> Result<(), ApplyError> {
        let (free, mut refusals) = self.sort(entries, letters);
        // A retry of a parked command is of the same user, so it waits too, and claims its key when its turn comes.
        let (first, retries) = idempotency::claim(conn, free, &self.times, outcomes).await?;
        let first: HashMap<CommandId, Candidate<'_>> = {
            if mode == Mode::Together {
                for wave in waves(first.iter().map(|candidate| candidate.envelope)) {
                    let wave = users::apply_wave(conn, &wave).await?;
                    outcomes.extend(wave.outcomes);
                    changes.extend(wave.changes);
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
                match try_alone(conn, *candidate, traces).await? {
                    AloneEnd::Decided { outcome, events: recorded } => {
                        events.extend(recorded);
                        outcome
                    }
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
        if let Some(reason) = misplaced(entry.user_id(), entry.source.partition, self.partitions) {
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
