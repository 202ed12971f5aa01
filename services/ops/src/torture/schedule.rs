//! Which fault comes next: a deck of cards that the seed shuffles, so that even a short run sees nearly all of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::sleep;

use super::load::Load;
use super::system::{Service, System};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    Kill(Target),
    Terminate(Target),
    /// For less than the time to live of a lease.
    Freeze(Target),
    /// A worker, for longer than that: others are given its partitions.
    FreezeBeyondLease,
    /// And its deliveries, because the broker's connection is cut before it wakes.
    FreezeAndCut,
    StopPostgres,
    KillRabbitMq,
    CutSessions,
    /// One service's connections to one server are reset.
    CutConnections,
    /// They stay open and carry nothing.
    Blackhole,
    SlowNetwork,
    DeleteQueue,
    RepeatMessages,
    /// An operator replays the dead letters, or is killed over it.
    Operate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Api,
    Worker,
}

/// Kinds of fault, and how often each is in the deck.
pub(super) type Deck = [(Fault, usize)];

/// All of them.
pub(super) const DECK: [(Fault, usize); 17] = [
    (Fault::Kill(Target::Worker), 3),
    (Fault::Kill(Target::Api), 2),
    (Fault::Terminate(Target::Worker), 2),
    (Fault::Terminate(Target::Api), 1),
    (Fault::Freeze(Target::Worker), 1),
    (Fault::Freeze(Target::Api), 1),
    (Fault::FreezeBeyondLease, 1),
    (Fault::FreezeAndCut, 1),
    (Fault::StopPostgres, 2),
    (Fault::KillRabbitMq, 1),
    (Fault::CutSessions, 1),
    (Fault::CutConnections, 3),
    (Fault::Blackhole, 2),
    (Fault::SlowNetwork, 1),
    (Fault::DeleteQueue, 1),
    (Fault::RepeatMessages, 2),
    (Fault::Operate, 2),
];

/// A seeded stream of faults.
pub(crate) struct Schedule {
    pub(super) random: StdRng,
    whole: &'static Deck,
    deck: Vec<Fault>,
    /// When a queue was last created.
    pub(super) created_at: Instant,
    done: BTreeMap<&'static str, u32>,
}

impl Schedule {
    pub(crate) fn new(random: StdRng, deck: &'static Deck) -> Self {
        Self { random, whole: deck, deck: Vec::new(), created_at: Instant::now(), done: BTreeMap::new() }
    }

    /// How many faults there were.
    pub(crate) fn count(&self) -> u32 {
        self.done.values().sum()
    }

    /// How many of each.
    pub(crate) fn summary(&self) -> String {
        self.done.iter().map(|(fault, count)| format!("{fault} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// Makes one fault and mends it; the load goes on meanwhile.
    pub(crate) async fn next(&mut self, system: &mut System, load: &Load) -> anyhow::Result<&'static str> {
        self.pause(100, 700).await;
        if self.deck.is_empty() {
            self.deck = self.whole.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect();
            self.deck.shuffle(&mut self.random);
        }
        let Some(fault) = self.deck.pop() else { return Ok("nothing") };
        let name = self.make(fault, system, load).await?;
        *self.done.entry(name).or_default() += 1;
        Ok(name)
    }

    pub(super) async fn pause(&mut self, from: u64, to: u64) {
        sleep(Duration::from_millis(self.random.random_range(from..to))).await;
    }

    pub(super) fn pick<'s>(&mut self, system: &'s mut System, target: Target) -> &'s mut Service {
        let services = match target {
            Target::Api => &mut system.apis,
            Target::Worker => &mut system.workers,
        };
        let number = self.random.random_range(0..services.len());
        &mut services[number]
    }

    pub(super) fn any<'s>(&mut self, system: &'s mut System) -> &'s mut Service {
        let target = if self.random.random_bool(0.6) { Target::Worker } else { Target::Api };
        self.pick(system, target)
    }
}
