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
    /// Stops those of these that are sessions of `role` here. A server in a container gives numbers of processes that are
    /// others here.
    pub(super) fn new(pids: &[i32], role: &str) -> Option<Self> {
        let title = format!("postgres: {role} ");
        let ours = |pid: &Pid| {
            let shown = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero()));
            shown.is_ok_and(|shown| shown.starts_with(&title))
        };
        let pids: Vec<_> = pids.iter().copied().filter_map(Pid::from_raw).filter(ours).collect();
        Self::signal(&pids, Signal::STOP);
        (!pids.is_empty()).then_some(Self(pids))
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
