//! Which fault comes next: a deck of cards that the seed shuffles, so that even a short run sees nearly all of them.

mod deck;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tokio::time::sleep;
use uuid::Uuid;

use super::faults::Difference;
use super::load::Load;
use super::system::{Service, System};
use super::verdict::Broken;
pub(super) use deck::{Deck, Group, deck_of};

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
    /// Further processes, whose settings are not those of the others.
    DifferentSettings,
    /// One service runs with a wrong clock for a while.
    SkewClock(Target),
    /// Commands that wait expire by a policy of the broker.
    Expire(Expiry),
    /// PostgreSQL's synchronous standby is away for a while.
    LoseStandby,
    /// PostgreSQL is killed, and its standby promoted.
    Promote,
    /// And what waits for no standby, such as who owns which partition, has changed in the meantime.
    PromoteBehind,
}

/// Where messages expire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expiry {
    /// Then nothing of them is left.
    Everywhere,
    /// In the partitions' queues alone: they become dead letters.
    Partitions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Api,
    Worker,
}

/// A seeded stream of faults.
pub(crate) struct Schedule {
    pub(super) random: StdRng,
    whole: Vec<Fault>,
    deck: Vec<Fault>,
    /// Differing settings that are still to come before any comes again.
    pub(super) differences: Vec<Difference>,
    /// What the faults themselves found.
    pub(super) findings: Vec<(Broken, String)>,
    /// Commands that were accepted, and that the broker let expire.
    pub(super) expired: Vec<(Uuid, Expiry)>,
    /// When a queue was last created.
    pub(super) created_at: Instant,
    done: BTreeMap<&'static str, u32>,
}

impl Schedule {
    pub(crate) fn new(random: StdRng, deck: &Deck) -> Self {
        Self {
            random,
            whole: deck.iter().flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect(),
            deck: Vec::new(),
            differences: Vec::new(),
            findings: Vec::new(),
            expired: Vec::new(),
            created_at: Instant::now(),
            done: BTreeMap::new(),
        }
    }

    /// How many faults there are in the whole deck.
    pub(crate) fn size(&self) -> u32 {
        u32::try_from(self.whole.len()).unwrap_or(u32::MAX)
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
            self.deck.clone_from(&self.whole);
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
