//! What is wrong for a while, and is put right again.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

/// Something that is wrong with an instance for a while.
pub(super) struct Harm {
    pub(super) number: usize,
    pub(super) kind: HarmKind,
    pub(super) ends_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HarmKind {
    Frozen,
    Silenced,
}

/// Processes that do nothing until this is dropped.
pub(super) struct Stopped(Vec<Pid>);

impl Stopped {
    pub(super) fn new(pids: &[i32]) -> Self {
        let pids: Vec<_> = pids.iter().copied().filter_map(Pid::from_raw).collect();
        Self::signal(&pids, Signal::STOP);
        Self(pids)
    }

    /// One that has ended by now needs none.
    fn signal(pids: &[Pid], signal: Signal) {
        for pid in pids {
            let _ = kill_process(*pid, signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        Self::signal(&self.0, Signal::CONT);
    }
}
