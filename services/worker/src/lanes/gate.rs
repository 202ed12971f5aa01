//! Gate of a lane: closed while a transaction runs, so that a partition takes everything that has been delivered by its end; and
//! the count of the partitions that are about to hand over a batch.

use tokio::sync::watch;

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    state: watch::Sender<GateState>,
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    announced: usize,
}

/// A batch that is announced, until it is dropped.
#[derive(Debug)]
pub(crate) struct LanePlace {
    gate: Gate,
}

impl Gate {
    pub(super) fn announce(&self) -> LanePlace {
        // A lane that gathers looks at the count again only when one is gone.
        self.state.send_if_modified(|state| {
            state.announced += 1;
            false
        });
        LanePlace { gate: self.clone() }
    }

    pub(super) fn open(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    pub(super) fn close(&self) {
        self.state.send_if_modified(|state| {
            state.open = false;
            false
        });
    }

    pub(super) async fn nobody_announced(&self) {
        // The sender lives as long as the gate: the wait cannot fail.
        let _ = self.state.subscribe().wait_for(|state| state.announced == 0).await;
    }
}

impl LanePlace {
    /// Waits until the lane runs no transaction.
    pub(crate) async fn ready(&self) {
        // The sender lives as long as the gate: the wait cannot fail.
        let _ = self.gate.state.subscribe().wait_for(|state| state.open).await;
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        self.gate.state.send_modify(|state| state.announced -= 1);
    }
}
