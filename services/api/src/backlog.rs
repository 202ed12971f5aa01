//! How old the oldest command is that was accepted here and is not applied yet; beyond a limit nothing more is accepted.
//!
//! # Why samples and not the length of the queues?
//! A length says nothing of how long a client waits. One accepted command a second and partition is watched until it is
//! decided. Each second asks for the oldest and the newest of every partition, however much is accepted, and a few at a time.
//!
//! # Why does a command go through now and then although its partition is shed?
//! Commands of a partition are applied about in their order. So when a later one is decided, an earlier one that is not was
//! probably lost, and must not hold up the others. It is *overtaken*, and watched on until it is decided, or until its status
//! is `unknown`: then it is lost, which is logged, counted and shown by `/readyz`. That does not fail: this instance can serve,
//! and no restart of it would bring a command back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::command::CommandId;
use common::health::{Ability, Health};
use common::shutdown::{Phase, Shutdown, Tier};
use common::telemetry::meter;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tracing::error;

use crate::commands::{Decided, Decision};
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
const CHECK: &str = "commands";

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
    /// Those that are older than a decided one, and were not seen decided themselves.
    overtaken: Vec<Sample>,
    /// When one was let through for the last time.
    admitted_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    id: CommandId,
    accepted_at: Instant,
}

impl Partition {
    /// The oldest and the newest, and those that were overtaken.
    fn watched(&self) -> impl Iterator<Item = Sample> {
        let newest = self.samples.back().filter(|_| self.samples.len() > 1);
        self.samples.front().into_iter().chain(newest).chain(&self.overtaken).copied()
    }

    fn decided(&mut self, sample: Sample) {
        let (older, newer): (VecDeque<_>, _) =
            self.samples.drain(..).partition(|other| other.accepted_at <= sample.accepted_at);
        self.samples = newer;
        self.overtaken.extend(older);
        self.overtaken.retain(|other| other.id != sample.id);
        // The newest of them tell as much.
        let surplus = self.overtaken.len().saturating_sub(MOST_SAMPLES);
        self.overtaken.drain(..surplus);
    }
}

impl Backlog {
    /// Starts to watch.
    pub(crate) fn start(
        shutdown: &Shutdown,
        health: &Health,
        decisions: &Loader<Decided>,
        limit: Option<Duration>,
    ) -> Self {
        let backlog = Self { limit, partitions: Arc::default() };
        let (watching, decisions, closing) = (backlog.clone(), decisions.clone(), shutdown.clone());
        let meter = meter();
        let gauge = meter
            .f64_gauge("rollcall.backlog.age")
            .with_unit("s")
            .with_description("Age of the oldest command that this instance accepted and that is not decided yet")
            .build();
        let counter = meter
            .u64_counter("rollcall.commands.lost")
            .with_description(
                "Watched commands, one a second and partition, that this instance accepted and that are neither applied nor \
                 waiting",
            )
            .build();
        counter.add(0, &[]);
        health.register(CHECK, Ability::Write);
        health.set(CHECK, Ok("no command that was accepted here is known to be lost".to_owned()));
        let health = health.clone();
        shutdown.supervise("backlog", Tier::Back, async move {
            let mut lost = 0;
            loop {
                tokio::select! {
                    () = closing.reached(Phase::Closing) => return Ok(()),
                    () = sleep(INTERVAL) => {}
                }
                for id in watching.look(&decisions).await {
                    lost += 1;
                    counter.add(1, &[]);
                    error!(
                        command.id = %id,
                        "a command that was accepted is neither applied nor waiting; look for a policy that drops messages \
                         (message-ttl, expires, max-length), a deleted queue or a failover"
                    );
                    let detail = format!("warning: {lost} or more commands that were accepted here are lost, the last {id}");
                    health.set(CHECK, Ok(detail));
                }
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

    /// Drops what is decided; what was accepted before it is overtaken. Gives those that are lost.
    async fn look(&self, decisions: &Loader<Decided>) -> Vec<CommandId> {
        let samples: Vec<(u16, Sample)> = {
            let partitions = self.lock();
            partitions.iter().flat_map(|(number, p)| p.watched().map(|sample| (*number, sample))).collect()
        };
        // Clients ask through the same queue.
        let mut found = Vec::with_capacity(samples.len());
        for some in samples.chunks(AT_ONCE) {
            found.extend(join_all(some.iter().map(|(_, sample)| decisions.load(sample.id.into()))).await);
        }
        let mut partitions = self.lock();
        let mut lost = Vec::new();
        for ((number, sample), found) in samples.iter().zip(found) {
            if let (Ok(Some(decided)), Some(partition)) = (found, partitions.get_mut(number)) {
                partition.decided(*sample);
                lost.extend((decided.decision == Decision::Unknown).then_some(sample.id));
            }
        }
        lost
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
    async fn what_was_overtaken_is_watched_until_it_is_decided() {
        let backlog = backlog();
        let mut ids = Vec::new();
        for _ in 0..4 {
            let id = CommandId::mint();
            backlog.note(1, id);
            ids.push(id);
            tokio::time::advance(INTERVAL).await;
        }
        let mut partitions = backlog.lock();
        let partition = partitions.get_mut(&1).expect("a partition");
        let watched = |partition: &Partition| partition.watched().map(|sample| sample.id).collect::<Vec<_>>();
        assert_eq!(watched(partition), [ids[0], ids[3]]);
        let sample = partition.samples[2];
        partition.decided(sample);
        assert_eq!(watched(partition), [ids[3], ids[0], ids[1]]);
        let sample = partition.overtaken[0];
        partition.decided(sample);
        assert_eq!(watched(partition), [ids[3], ids[1]]);
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
