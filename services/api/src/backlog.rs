//! How old the oldest command is that was accepted here and is not applied yet; beyond a limit nothing more is accepted.
//!
//! # Why samples and not the length of the queues?
//! A length says nothing of how long a client waits. One accepted command a second and partition is watched until it is
//! decided. Each second asks for the oldest and the newest of every partition, however much is accepted, and a few at a time.
//!
//! # Why does a command go through now and then although its partition is shed?
//! Commands of a partition are applied about in their order. So when a later one is decided, an earlier one that is not was
//! lost with its queue, and must not hold up everybody for ever.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::command::CommandId;
use common::shutdown::{Phase, Shutdown, Tier};
use common::telemetry::meter;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::commands::Decided;
use crate::loader::Loader;
use crate::problem::{Problem, ProblemKind};

/// Between two samples of a partition, and between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of one partition: beyond, the age of the oldest is known well enough.
const MOST_SAMPLES: usize = 32;
/// Questions under way at once.
const AT_ONCE: usize = 64;
/// When a client whose command was not accepted shall come again.
const RETRY_AFTER_SECONDS: u32 = 5;

/// Watches what this instance accepted. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Backlog {
    /// Without one everything is accepted.
    limit: Option<Duration>,
    partitions: Arc<Mutex<BTreeMap<u16, Partition>>>,
}

#[derive(Debug, Default)]
struct Partition {
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// When one was let through for the last time.
    admitted_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    id: CommandId,
    accepted_at: Instant,
}

impl Backlog {
    /// Starts to watch.
    pub(crate) fn start(shutdown: &Shutdown, decisions: &Loader<Decided>, limit: Option<Duration>) -> Self {
        let backlog = Self { limit, partitions: Arc::default() };
        let (watching, decisions, closing) = (backlog.clone(), decisions.clone(), shutdown.clone());
        let gauge = meter()
            .f64_gauge("rollcall.backlog.age")
            .with_unit("s")
            .with_description("Age of the oldest command that this instance accepted and that is not decided yet")
            .build();
        shutdown.supervise("backlog", Tier::Back, async move {
            loop {
                tokio::select! {
                    () = closing.reached(Phase::Closing) => return Ok(()),
                    () = sleep(INTERVAL) => {}
                }
                watching.look(&decisions).await;
                gauge.record(watching.age().as_secs_f64(), &[]);
            }
        });
        backlog
    }

    /// Lets a command of this partition through.
    ///
    /// # Errors
    /// [`ProblemKind::Overloaded`] while what was accepted before is not applied.
    pub(crate) fn admit(&self, partition: u16) -> Result<(), Problem> {
        let Some(limit) = self.limit else { return Ok(()) };
        let mut partitions = self.lock();
        let Some(partition) = partitions.get_mut(&partition) else { return Ok(()) };
        let now = Instant::now();
        let late = partition.samples.front().is_some_and(|oldest| now - oldest.accepted_at > limit);
        if late && partition.admitted_at.is_some_and(|last| now - last < INTERVAL) {
            return Err(Problem::new(ProblemKind::Overloaded).retry_after(RETRY_AFTER_SECONDS).detail(format_args!(
                "commands that were accepted {} seconds ago are not applied yet; send it again later",
                limit.as_secs()
            )));
        }
        partition.admitted_at = Some(now);
        Ok(())
    }

    /// Notes a command that the broker has.
    pub(crate) fn note(&self, partition: u16, id: CommandId) {
        let accepted_at = Instant::now();
        let mut partitions = self.lock();
        let partition = partitions.entry(partition).or_default();
        let due = partition.samples.back().is_none_or(|last| accepted_at - last.accepted_at >= INTERVAL);
        if !due {
            return;
        }
        if partition.samples.len() == MOST_SAMPLES {
            // The newest tells whether those before it were lost.
            partition.samples.pop_back();
        }
        partition.samples.push_back(Sample { id, accepted_at });
    }

    /// Drops what is decided, and what was accepted before it.
    async fn look(&self, decisions: &Loader<Decided>) {
        let samples: Vec<(u16, Sample)> = {
            let partitions = self.lock();
            let ends = |p: &Partition| [p.samples.front().copied(), p.samples.back().copied()].into_iter().flatten();
            partitions.iter().flat_map(|(number, p)| ends(p).map(|sample| (*number, sample))).collect()
        };
        // Clients ask through the same queue.
        let mut found = Vec::with_capacity(samples.len());
        for some in samples.chunks(AT_ONCE) {
            found.extend(join_all(some.iter().map(|(_, sample)| decisions.load(sample.id.into()))).await);
        }
        let mut partitions = self.lock();
        for ((number, sample), _) in samples.iter().zip(found).filter(|(_, found)| matches!(found, Ok(Some(_)))) {
            if let Some(partition) = partitions.get_mut(number) {
                partition.samples.retain(|other| other.accepted_at > sample.accepted_at);
            }
        }
    }

    fn age(&self) -> Duration {
        let oldest = self.lock().values().filter_map(|p| p.samples.front().map(|sample| sample.accepted_at)).min();
        oldest.map_or(Duration::ZERO, |accepted_at| accepted_at.elapsed())
    }

    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Partition>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(1);

    fn backlog() -> Backlog {
        Backlog { limit: Some(LIMIT), partitions: Arc::default() }
    }

    fn accept(backlog: &Backlog, partition: u16) -> bool {
        let admitted = backlog.admit(partition).is_ok();
        if admitted {
            backlog.note(partition, CommandId::mint());
        }
        admitted
    }

    #[tokio::test(start_paused = true)]
    async fn a_partition_that_applies_nothing_is_shed_but_for_one_command_a_second() {
        let backlog = backlog();
        for _ in 0..60 {
            assert!(accept(&backlog, 1) && accept(&backlog, 1));
            tokio::time::advance(INTERVAL).await;
        }
        tokio::time::advance(INTERVAL).await;
        assert!(accept(&backlog, 1), "the first after a second");
        assert!(!accept(&backlog, 1) && !accept(&backlog, 1));
        assert!(accept(&backlog, 2), "another partition");
        tokio::time::advance(INTERVAL).await;
        assert!(accept(&backlog, 1), "one a second");
        assert!(backlog.age() > LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn samples_are_few_and_the_newest_is_among_them() {
        let backlog = backlog();
        let mut newest = CommandId::mint();
        for _ in 0..200 {
            newest = CommandId::mint();
            backlog.note(1, newest);
            tokio::time::advance(INTERVAL).await;
        }
        let partitions = backlog.lock();
        let samples = &partitions[&1].samples;
        assert_eq!((samples.len(), samples.back().map(|sample| sample.id)), (MOST_SAMPLES, Some(newest)));
    }
}
