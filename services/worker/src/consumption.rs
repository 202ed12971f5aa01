//! Readiness of the consuming: does this instance read from every partition that it owns?

use std::collections::BTreeSet;
use std::sync::Arc;

use common::health::{Ability, Health};
use common::membership::Ownership;
use common::shutdown::{Phase, Shutdown, Tier};
use tokio::sync::watch;

const CHECK: &str = "partitions";

/// The partitions that are consumed now. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Consumption {
    consumed: Arc<watch::Sender<BTreeSet<u16>>>,
}

impl Consumption {
    /// Starts the task that reports; it ends when the process closes.
    pub(crate) fn start(shutdown: &Shutdown, health: &Health, mut owned: watch::Receiver<Ownership>) -> Self {
        health.register(CHECK, Ability::Write);
        let (sender, mut consumed) = watch::channel(BTreeSet::new());
        let (health, closing) = (health.clone(), shutdown.clone());
        shutdown.supervise("consumption", Tier::Back, async move {
            loop {
                health.set(CHECK, state(&owned.borrow_and_update(), &consumed.borrow_and_update()));
                tokio::select! {
                    () = closing.reached(Phase::Closing) => return Ok(()),
                    Ok(()) = owned.changed() => {}
                    Ok(()) = consumed.changed() => {}
                }
            }
        });
        Self { consumed: Arc::new(sender) }
    }

    pub(crate) fn began(&self, partition: u16) {
        self.consumed.send_modify(|consumed| {
            consumed.insert(partition);
        });
    }

    pub(crate) fn ended(&self, partition: u16) {
        self.consumed.send_modify(|consumed| {
            consumed.remove(&partition);
        });
    }
}

fn state(owned: &Ownership, consumed: &BTreeSet<u16>) -> Result<String, String> {
    let line = format!("consuming {} of {} owned", consumed.len(), owned.len());
    if owned.keys().all(|partition| consumed.contains(partition)) { Ok(line) } else { Err(line) }
}
