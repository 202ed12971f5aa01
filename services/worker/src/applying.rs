//! Readiness of the applying: which partitions stand still for a fault that somebody has to mend.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use common::health::{Ability, Health};

const CHECK: &str = "applying";

/// The faults by partition. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Applying {
    health: Health,
    faults: Arc<Mutex<BTreeMap<u16, String>>>,
}

impl Applying {
    /// Registers the check, which holds.
    pub(crate) fn new(health: &Health) -> Self {
        health.register(CHECK, Ability::Write);
        health.set(CHECK, Ok("nothing stands in the way".to_owned()));
        Self { health: health.clone(), faults: Arc::default() }
    }

    /// A partition stands still.
    pub(crate) fn stopped(&self, partition: u16, reason: String) {
        self.change(|faults| faults.insert(partition, reason));
    }

    /// A partition goes on, or is no longer this instance's.
    pub(crate) fn clear(&self, partition: u16) {
        self.change(|faults| faults.remove(&partition));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<u16, String>) -> T) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut faults);
        let state = match faults.first_key_value() {
            None => Ok("the last batch went through".to_owned()),
            Some((_, reason)) => Err(format!("{} partition(s) paused: {reason}", faults.len())),
        };
        self.health.set(CHECK, state);
    }
}
