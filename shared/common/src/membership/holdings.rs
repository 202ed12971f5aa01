//! What of the membership the partition loops see, and what they say.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

/// A partition that this instance owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What every transaction on the partition checks.
    pub epoch: i64,
    /// Another instance shall have it: stop, close the channel, let go.
    pub wanted: bool,
}

/// What this instance owns, by partition.
pub type Ownership = BTreeMap<u16, Holding>;

/// What the partition loops see of the membership. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// Names this instance in the database for the life of the process.
    pub instance: Uuid,
    /// What it owns now.
    pub ownership: watch::Receiver<Ownership>,
    pub(super) letting_go: mpsc::UnboundedSender<u16>,
    pub(super) reaching: watch::Sender<bool>,
}

impl Holdings {
    /// Says that a partition's channel is closed and nothing of it is under way.
    pub fn let_go(&self, partition: u16) {
        // Fails only when the process closes; then the whole membership is left.
        let _ = self.letting_go.send(partition);
    }

    /// Says whether this instance could consume: as long as it cannot, those who can own the partitions.
    pub fn reaches_broker(&self, reaches: bool) {
        self.reaching.send_replace(reaches);
    }
}
