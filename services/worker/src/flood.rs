//! The flood guard: when most of the recent messages would become dead letters, the fault is hardly theirs. Commands that wait
//! behind a dead letter do not count.
//!
//! Messages that are no commands have guards of their own. They pause no partition, because anybody who may publish could stop
//! it with a hundred of them: what a partition does not record of them it refuses, so that the broker moves it to its dead
//! letters, and there the collector's guard makes it wait.
//!
//! It judges a batch before its commit, so that what is refused is neither applied nor recorded and stays in its queue. What
//! counts as recent ends with time too: a guard that has refused everything for ten minutes lets the next letters through,
//! up to its limit, so that nothing stands still for ever for commands that really are to blame.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many decided commands of this worker count as recent, at most.
const RECENT: usize = 200;
/// More new dead letters among them than this are a flood.
const MOST: usize = RECENT / 2;
/// For how long a command counts as recent.
const MEMORY: Duration = Duration::from_mins(10);

/// What became of the recent commands of this worker. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct FloodGuard {
    /// When each was decided, and whether it became a dead letter; newest last.
    recent: Arc<Mutex<VecDeque<(Instant, bool)>>>,
}

impl FloodGuard {
    /// The number of dead letters among the recent commands if a transaction came to pass, when it is a flood and this
    /// transaction would add to it. `decided` commands were tried in it, and `dead` of them became dead letters.
    pub fn flood(&self, decided: usize, dead: usize) -> Option<usize> {
        if dead == 0 {
            return None;
        }
        let (decided, dead) = scaled(decided, dead);
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let room = RECENT.saturating_sub(decided);
        let young = recent.iter().rev().take(room).take_while(|(at, _)| at.elapsed() < MEMORY);
        let total = dead + young.filter(|(_, dead)| *dead).count();
        (total > MOST).then_some(total)
    }

    /// How many of these dead letters are no flood.
    pub(crate) fn room(&self, decided: usize, dead: usize) -> usize {
        (1..=dead).rev().find(|some| self.flood(decided, *some).is_none()).unwrap_or_default()
    }

    /// Notes what came to pass.
    pub fn note(&self, decided: usize, dead: usize) {
        let (decided, dead) = scaled(decided, dead);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        recent.extend((0..decided).map(|number| (now, number < dead)));
        let surplus = recent.len().saturating_sub(RECENT);
        recent.drain(..surplus);
    }
}

/// A transaction of more commands than count as recent has the same share of dead letters.
fn scaled(decided: usize, dead: usize) -> (usize, usize) {
    if decided > RECENT { (RECENT, (dead * RECENT).div_ceil(decided)) } else { (decided, dead) }
}
