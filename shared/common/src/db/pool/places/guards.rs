//! What borrowers hold: their turn, their place, and what they open. Each is given back wherever it is dropped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::{Places, Reverse};

/// In the middle of a statement, where it looks from time to time, the server takes longer to notice that the client of a
/// session is gone: than until the next heartbeat, which corrects it.
const BUSY_LINGER: Duration = Duration::from_millis(750);
/// The same of an idle session.
const IDLE_LINGER: Duration = Duration::from_millis(20);

/// The right to use one connection.
#[derive(Debug)]
pub(in crate::db::pool) struct Place<C> {
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) places: Arc<Places<C>>,
}

/// A connection that counts as open, until this was dropped and the server has noticed.
#[derive(Debug)]
pub(in crate::db::pool) struct Opening<C> {
    linger: Duration,
    connected: bool,
    hidden: bool,
    pub(super) places: Arc<Places<C>>,
}

/// Counts a borrower that waits, and stops counting wherever it is cancelled.
pub(super) struct Waiting<'p, C>(&'p Places<C>);

impl<'p, C> Waiting<'p, C> {
    pub(super) fn new(places: &'p Places<C>) -> Self {
        let mut state = places.lock();
        state.waiting += 1;
        state.peak = state.peak.max(state.in_use + state.waiting);
        drop(state);
        Self(places)
    }
}

impl<C> Drop for Waiting<'_, C> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl<C> Place<C> {
    /// Keeps a connection for the next borrower, unless there are too many.
    pub(in crate::db::pool) fn put_back(self, connection: C) {
        let surplus = {
            let mut state = self.places.lock();
            // Looked up under the lock: nothing is put in behind the back of `close`.
            if state.closed || state.open > state.size {
                Some(connection)
            } else {
                state.idle.push(connection);
                None
            }
        };
        drop(surplus);
        // The place is free last, so that the next borrower finds the connection.
    }
}

impl<C> Drop for Place<C> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.in_use -= 1;
        if state.debt > 0
            && let Some(permit) = self.permit.take()
        {
            state.debt -= 1;
            permit.forget();
        }
        // Otherwise the permit is given back after the lock.
    }
}

impl<C> Opening<C> {
    /// One that counts already.
    pub(super) fn new(places: &Arc<Places<C>>) -> Self {
        Self { linger: BUSY_LINGER, connected: false, hidden: false, places: Arc::clone(places) }
    }

    /// Says that the server let it in.
    pub(in crate::db::pool) fn connected(&mut self) {
        self.connected = true;
        self.places.lock().connected += 1;
    }

    /// Says that it is a pooler's, which shows the server nothing of it.
    pub(in crate::db::pool) fn hidden(&mut self) {
        self.hidden = true;
    }

    /// Says whether a statement may be under way.
    pub(in crate::db::pool) fn busy(&mut self, busy: bool) {
        self.linger = if busy { BUSY_LINGER } else { IDLE_LINGER };
    }
}

impl<C> Drop for Opening<C> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if self.hidden {
            state.open -= 1;
        } else {
            let now = Instant::now();
            state.ending.push(Reverse((now + self.linger, now)));
        }
        state.connected -= usize::from(self.connected);
        drop(state);
        self.places.closing.notify_one();
    }
}
