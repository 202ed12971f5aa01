//! Readiness of the consuming: does this instance read from every partition that it owns, and do its batches go through?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use common::health::{Ability, CheckFailure, Health};
use common::membership::Ownership;
use common::shutdown::{Phase, Shutdown, Tier};
use tokio::sync::watch;

const CHECK: &str = "partitions";
const APPLYING: &str = "applying";

/// The partitions that are consumed now. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Consumption {
    progress: Arc<watch::Sender<Progress>>,
}

#[derive(Debug, Default)]
struct Progress {
    consumed: BTreeSet<u16>,
    /// Why the others are not, as far as it was tried.
    interrupted: BTreeMap<u16, CheckFailure>,
}

impl Consumption {
    /// Starts the task that reports; it ends when the process closes.
    pub(crate) fn start(shutdown: &Shutdown, health: &Health, mut owned: watch::Receiver<Ownership>) -> Self {
        health.register(CHECK, Ability::Write);
        let (sender, mut progress) = watch::channel(Progress::default());
        let (health, closing) = (health.clone(), shutdown.clone());
        shutdown.supervise("consumption", Tier::Back, async move {
            loop {
                health.set(CHECK, state(&owned.borrow_and_update(), &progress.borrow_and_update()));
                tokio::select! {
                    () = closing.reached(Phase::Closing) => return Ok(()),
                    Ok(()) = owned.changed() => {}
                    Ok(()) = progress.changed() => {}
                }
            }
        });
        Self { progress: Arc::new(sender) }
    }

    pub(crate) fn began(&self, partition: u16) {
        self.progress.send_modify(|progress| {
            progress.consumed.insert(partition);
            progress.interrupted.remove(&partition);
        });
    }

    pub(crate) fn ended(&self, partition: u16) {
        self.progress.send_modify(|progress| {
            progress.consumed.remove(&partition);
        });
    }

    /// Says why a partition is not consumed; until it is.
    pub(crate) fn interrupted(&self, partition: u16, reason: CheckFailure) {
        self.progress.send_modify(|progress| {
            progress.interrupted.insert(partition, reason);
        });
    }
}

fn state(owned: &Ownership, progress: &Progress) -> Result<String, CheckFailure> {
    let line = format!("consuming {} of {} owned", progress.consumed.len(), owned.len());
    let mut missing = owned.keys().filter(|partition| !progress.consumed.contains(partition)).peekable();
    if missing.peek().is_none() {
        return Ok(line);
    }
    match missing.find_map(|partition| Some((partition, progress.interrupted.get(partition)?))) {
        Some((partition, reason)) => Err(reason.clone().within(format_args!("{line}; partition {partition}"))),
        None => Err(line.into()),
    }
}

/// The partitions whose last batch did not go through, and why. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Applying {
    failing: Arc<Mutex<BTreeMap<u16, CheckFailure>>>,
    health: Health,
}

impl Applying {
    pub(crate) fn new(health: &Health) -> Self {
        health.register(APPLYING, Ability::Write);
        let applying = Self { failing: Arc::default(), health: health.clone() };
        applying.change(|_| {});
        applying
    }

    pub(crate) fn fails(&self, partition: u16) -> bool {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&partition)
    }

    pub(crate) fn failed(&self, partition: u16, reason: CheckFailure) {
        self.change(|failing| {
            failing.insert(partition, reason);
        });
    }

    pub(crate) fn clear(&self, partition: u16) {
        self.change(|failing| {
            failing.remove(&partition);
        });
    }

    /// The lock is held over the report, so that reports come in the order of the changes.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<u16, CheckFailure>)) {
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut failing);
        self.health.set(
            APPLYING,
            match failing.iter().next() {
                None => Ok("nothing stands in the way".to_owned()),
                Some((partition, reason)) => {
                    let place = format!("{} partition(s) cannot apply; partition {partition}", failing.len());
                    Err(reason.clone().within(place))
                }
            },
        );
    }
}
