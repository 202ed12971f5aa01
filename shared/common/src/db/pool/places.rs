//! The arithmetic of the pool: who may use or open a connection, and what happens when the size changes. No I/O.
//!
//! A borrower first takes a place, in order of arrival, and then finds an idle connection or may open one. Places are the
//! permits of a semaphore; a size that shrinks while they are out makes a debt, which the next places to come back pay.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::PoolStatus;

/// The places of one pool; `C` is what it keeps.
#[derive(Debug)]
pub(super) struct Places<C> {
    permits: Arc<Semaphore>,
    state: Mutex<State<C>>,
    drained: Notify,
}

#[derive(Debug)]
struct State<C> {
    size: usize,
    /// Places that are out and must not come back.
    debt: usize,
    /// Connections that are open or being opened, idle ones included.
    open: usize,
    idle: Vec<C>,
    in_use: usize,
    waiting: usize,
    peak: usize,
    until: Option<Instant>,
    holding: bool,
    closed: bool,
}

/// The right to use one connection.
#[derive(Debug)]
pub(super) struct Place<C> {
    permit: Option<OwnedSemaphorePermit>,
    places: Arc<Places<C>>,
}

/// A connection that counts as open, until this is dropped.
#[derive(Debug)]
pub(super) struct Opening<C> {
    places: Arc<Places<C>>,
}

/// What a borrower with a place does next.
pub(super) enum Found<C> {
    /// Uses this one.
    Idle(C),
    /// Opens one.
    Opening(Opening<C>),
}

/// Counts a borrower that waits, and stops counting wherever it is cancelled.
struct Waiting<'p, C>(&'p Places<C>);

impl<C> Drop for Waiting<'_, C> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl<C> Places<C> {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            size: 0,
            debt: 0,
            open: 0,
            idle: Vec::new(),
            in_use: 0,
            waiting: 0,
            peak: 0,
            until: None,
            holding: false,
            closed: false,
        };
        Arc::new(Self { permits: Arc::new(Semaphore::new(0)), state: Mutex::new(state), drained: Notify::new() })
    }

    /// Takes a place and what goes with it; `None` once the pool is closed. Idle connections that are not `fit` close.
    pub(super) async fn acquire(self: &Arc<Self>, fit: impl Fn(&C) -> bool) -> Option<(Place<C>, Found<C>)> {
        {
            let mut state = self.lock();
            state.waiting += 1;
            state.peak = state.peak.max(state.in_use + state.waiting);
        }
        let waiting = Waiting(self);
        loop {
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            let place = self.place(permit);
            self.expire();
            while let Some(found) = self.find(&fit) {
                match found {
                    Ok(found) => {
                        drop(waiting);
                        return Some((place, found));
                    }
                    // Here, outside the lock: it stops counting as open when it is dropped.
                    Err(unfit) => drop(unfit),
                }
            }
            // The size shrank after the place was given: it pays the debt, and another must be waited for.
        }
    }

    fn place(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place<C> {
        self.lock().in_use += 1;
        Place { permit: Some(permit), places: Arc::clone(self) }
    }

    /// What a borrower with a place gets, or what it has to drop before it looks again.
    fn find(self: &Arc<Self>, fit: impl Fn(&C) -> bool) -> Option<Result<Found<C>, C>> {
        let mut state = self.lock();
        match state.idle.pop() {
            Some(idle) if fit(&idle) => Some(Ok(Found::Idle(idle))),
            Some(unfit) => Some(Err(unfit)),
            None if state.open < state.size => {
                state.open += 1;
                Some(Ok(Found::Opening(Opening { places: Arc::clone(self) })))
            }
            None => None,
        }
    }

    /// Changes the size; a lease gives the time at which it runs out.
    pub(super) fn resize(&self, size: usize, until: Option<Instant>) {
        let closing = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.holding = false;
            state.until = until;
            self.set_size(&mut state, size)
        };
        drop(closing);
    }

    /// Makes what is open the size, and follows it down.
    pub(super) fn hold(&self) {
        let closing = {
            let mut state = self.lock();
            state.holding = true;
            let size = state.open.min(state.size);
            self.set_size(&mut state, size)
        };
        drop(closing);
    }

    /// Makes the size nothing when the lease has run out.
    pub(super) fn expire(&self) {
        let closing = {
            let mut state = self.lock();
            if state.until.is_none_or(|until| until > Instant::now()) {
                return;
            }
            self.set_size(&mut state, 0)
        };
        drop(closing);
    }

    /// Gives what is idle beyond the new size, to be dropped outside the lock.
    fn set_size(&self, state: &mut State<C>, size: usize) -> Vec<C> {
        if size > state.size {
            let more = size - state.size;
            let paid = more.min(state.debt);
            state.debt -= paid;
            self.permits.add_permits(more - paid);
        } else {
            let fewer = state.size - size;
            state.debt += fewer - self.permits.forget_permits(fewer);
        }
        state.size = size;
        let beyond = state.open.saturating_sub(size).min(state.idle.len());
        state.idle.drain(..beyond).collect()
    }

    pub(super) fn discard_idle(&self) {
        let idle = std::mem::take(&mut self.lock().idle);
        drop(idle);
    }

    /// Lends nothing from now on; gives what is idle.
    pub(super) fn close(&self) -> Vec<C> {
        let mut state = self.lock();
        state.closed = true;
        let idle = self.set_size(&mut state, 0);
        self.permits.close();
        idle
    }

    pub(super) fn status(&self) -> PoolStatus {
        let state = self.lock();
        PoolStatus {
            size: state.size,
            open: state.open,
            in_use: state.in_use,
            idle: state.idle.len(),
            waiting: state.waiting,
        }
    }

    pub(super) fn take_peak(&self) -> usize {
        let mut state = self.lock();
        let now = state.in_use + state.waiting;
        std::mem::replace(&mut state.peak, now)
    }

    /// Waits until the last connection beyond the size is closed.
    pub(super) async fn drained(&self) {
        self.drained.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> Place<C> {
    /// Keeps a connection for the next borrower, unless there are too many.
    pub(super) fn put_back(self, connection: C) {
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

impl<C> Drop for Opening<C> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.open -= 1;
        if state.holding && state.open < state.size {
            let size = state.open;
            // Nothing is idle beyond it: each of them counts as open.
            let none = self.places.set_size(&mut state, size);
            debug_assert!(none.is_empty());
        }
        if state.open == state.size && !state.holding {
            self.places.drained.notify_one();
        }
    }
}
