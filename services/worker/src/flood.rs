//! The flood guard: when most of the recent commands would become dead letters, the fault is hardly theirs.
//!
//! It judges a batch before its commit, so that what is refused is neither applied nor recorded and stays in its queue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::users::Outcome;

/// How many decided commands of this worker count as recent.
const RECENT: usize = 200;
/// More new dead letters among them than this are a flood.
const MOST: usize = RECENT / 2;

/// What became of the recent commands of this worker. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct FloodGuard {
    /// Whether each became a dead letter, newest last.
    recent: Arc<Mutex<VecDeque<bool>>>,
}

impl FloodGuard {
    /// The number of dead letters among the recent commands if these outcomes came to pass, when it is a flood and one of
    /// these would add to it.
    pub fn flood<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) -> Option<usize> {
        let fresh: Vec<bool> = outcomes.filter_map(guilty).collect();
        if !fresh.contains(&true) {
            return None;
        }
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = recent.iter().chain(&fresh).rev().take(RECENT);
        let dead = newest.filter(|dead| **dead).count();
        (dead > MOST).then_some(dead)
    }

    /// Notes outcomes that came to pass.
    pub fn note<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(outcomes.filter_map(guilty));
        let surplus = recent.len().saturating_sub(RECENT);
        recent.drain(..surplus);
    }
}

/// Whether it became a dead letter; nothing for one that never was tried.
fn guilty(outcome: &Outcome) -> Option<bool> {
    match outcome {
        Outcome::Succeeded(_) | Outcome::Rejected(_) => Some(false),
        Outcome::Parked(_) => Some(true),
        Outcome::Behind => None,
    }
}
