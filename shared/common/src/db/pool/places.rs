//! The arithmetic of the pool: who may use or open a connection, and what happens when the size changes. No I/O.
//!
//! A borrower first takes a place, in order of arrival, and then finds an idle connection or may open one. Places are the
//! permits of a semaphore; a size that shrinks while they are out makes a debt, which the next places to come back pay.
//!
//! # Why does a closed connection go on counting?
//! The server takes a moment to notice, and in the middle of a statement a longer one. When every statement of every
//! instance runs into its deadline, as behind a lock, each would otherwise have twice its share of sessions. How long the
//! server takes is a guess, which each heartbeat corrects by what the server shows: one that cannot end its sessions, for want
//! of a disk or of a standby, is not opened more of them.

mod guards;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use self::guards::Waiting;
pub(super) use self::guards::{Opening, Place};
use super::PoolStatus;

/// For how long a session counts that the server still showed: until a heartbeat later than the next.
const SHOWN_LINGER: Duration = Duration::from_millis(1500);
/// For how long a connection may be under way after the control connection counts no more: until then, it is given up or
/// the server shows it.
pub(crate) const UNDER_WAY: Duration = Duration::from_millis(250);
/// How often a borrower looks again who waits for a closed connection to end, or for the control connection.
const RECHECK: Duration = Duration::from_millis(20);

/// The places of one pool; `C` is what it keeps.
#[derive(Debug)]
pub(super) struct Places<C> {
    permits: Arc<Semaphore>,
    state: Mutex<State<C>>,
    closing: Notify,
}

#[derive(Debug)]
struct State<C> {
    size: usize,
    /// Places that are out and must not come back.
    debt: usize,
    /// Connections that are open, being opened or not yet ended by the server; idle ones included.
    open: usize,
    /// When those that were closed will have ended, each with the time at which it closed.
    ending: BinaryHeap<Reverse<(Instant, Instant)>>,
    /// When those closed that must have ended by now, though no heartbeat has said so yet.
    unconfirmed: Vec<Instant>,
    /// Of those that are open, those that the server surely shows.
    connected: usize,
    idle: Vec<C>,
    in_use: usize,
    waiting: usize,
    peak: usize,
    until: Option<Instant>,
    /// What the control connection said last; none where no share could be lost.
    heard: Option<Heard>,
    /// Its size came with a heartbeat: others tell what has ended.
    leased: bool,
    holding: bool,
    closed: bool,
}

/// An answer over the control connection: at that time the share was this instance's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    /// When the question was asked.
    pub(crate) at: Instant,
    /// For how long connections may be opened after this.
    pub(crate) counts: Duration,
}

/// What a borrower with a place does next.
pub(super) enum Found<C> {
    /// Uses this one.
    Idle(C),
    /// Opens one.
    Opening(Opening<C>),
}

/// What a borrower with a place does when there is nothing for it.
enum Otherwise<C> {
    /// Drops this one, outside the lock, and looks again.
    Drop(C),
    /// Looks again at this time.
    Wait(Instant),
    /// Gives its place back, because the size shrank after it was given, and waits for another.
    Return,
}

impl<C> Places<C> {
    pub(super) fn new() -> Arc<Self> {
        let state = State {
            size: 0,
            debt: 0,
            open: 0,
            ending: BinaryHeap::new(),
            unconfirmed: Vec::new(),
            connected: 0,
            idle: Vec::new(),
            in_use: 0,
            waiting: 0,
            peak: 0,
            until: None,
            heard: None,
            leased: false,
            holding: false,
            closed: false,
        };
        Arc::new(Self { permits: Arc::new(Semaphore::new(0)), state: Mutex::new(state), closing: Notify::new() })
    }

    /// Takes a place and what goes with it; `None` once the pool is closed. Idle connections that are not `fit` close.
    pub(super) async fn acquire(self: &Arc<Self>, fit: impl Fn(&C) -> bool) -> Option<(Place<C>, Found<C>)> {
        loop {
            let waiting = Waiting::new(self);
            let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            drop(waiting);
            let place = self.place(permit);
            self.expire();
            loop {
                match self.find(&fit) {
                    Ok(found) => return Some((place, found)),
                    Err(Otherwise::Drop(unfit)) => drop(unfit),
                    Err(Otherwise::Wait(until)) => tokio::time::sleep_until(until).await,
                    Err(Otherwise::Return) => break,
                }
            }
        }
    }

    fn place(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Place<C> {
        self.lock().in_use += 1;
        Place { permit: Some(permit), places: Arc::clone(self) }
    }

    fn find(self: &Arc<Self>, fit: impl Fn(&C) -> bool) -> Result<Found<C>, Otherwise<C>> {
        let mut state = self.lock();
        match state.idle.pop() {
            Some(idle) if fit(&idle) => Ok(Found::Idle(idle)),
            Some(unfit) => Err(Otherwise::Drop(unfit)),
            // It may have lost its share without knowing: the server was restarted, and it slept meanwhile.
            None if state.open < state.size && state.heard.is_some_and(|heard| heard.at.elapsed() > heard.counts) => {
                Err(Otherwise::Wait(Instant::now() + RECHECK))
            }
            None if state.open < state.size => {
                state.open += 1;
                Ok(Found::Opening(Opening::new(self)))
            }
            None => match state.ending.peek() {
                Some(Reverse((next, _))) if state.debt == 0 => {
                    // A heartbeat may find that it has ended already.
                    Err(Otherwise::Wait((*next).min(Instant::now() + RECHECK)))
                }
                _ => Err(Otherwise::Return),
            },
        }
    }

    /// Says what the control connection answered.
    pub(super) fn heard(&self, heard: Heard) {
        self.lock().heard = Some(heard);
    }

    /// Says that it counts for less time.
    pub(super) fn heard_for(&self, counts: Duration) {
        if let Some(heard) = &mut self.lock().heard {
            heard.counts = counts;
        }
    }

    /// Waits until the control connection has been silent for so long that others may soon have what is being opened.
    pub(super) async fn forsaken(&self) {
        loop {
            let Some(heard) = self.lock().heard else { return std::future::pending().await };
            let end = heard.at + heard.counts + UNDER_WAY;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }

    /// Changes the size; a lease gives the time at which it runs out, and what says so.
    pub(super) fn resize(&self, size: usize, until: Option<Instant>, heard: Option<Heard>) {
        let closing = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.holding = false;
            state.until = until;
            state.heard = heard;
            state.leased |= heard.is_some();
            self.set_size(&mut state, size)
        };
        drop(closing);
    }

    /// Makes the size what is open, and follows it down until the next resize.
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

    /// See [`Pool::correct`](super::Pool::correct).
    pub(super) fn correct(&self, before: PoolStatus, asked_at: Instant, sessions: usize) {
        let mut state = self.lock();
        let (closed, since): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.ending).into_iter().partition(|Reverse((_, closed_at))| *closed_at < asked_at);
        let (confirmed, unconfirmed): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.unconfirmed).into_iter().partition(|closed_at| *closed_at < asked_at);
        state.unconfirmed = unconfirmed;
        // What is being opened counts already, and the server may show it first: only what closed can be shown beyond that.
        let shown = sessions.saturating_sub(before.connected).min(closed.len() + confirmed.len());
        let counts_until = Instant::now() + SHOWN_LINGER;
        state.open = state.open - closed.len() + shown;
        state.ending = since.into_iter().chain((0..shown).map(|_| Reverse((counts_until, asked_at)))).collect();
        // The closed ones were cut to what is shown, or grew to it.
        drop(state);
        self.closing.notify_one();
    }

    /// Whether there are more than there may be, or there may be none.
    pub(super) fn exceeded(&self) -> bool {
        self.expire();
        let state = self.lock();
        state.closed || state.open > state.size
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
            connected: state.connected,
        }
    }

    pub(super) fn take_peak(&self) -> usize {
        let mut state = self.lock();
        let now = state.in_use + state.waiting;
        std::mem::replace(&mut state.peak, now)
    }

    /// Waits until no more connections are open than the size allows; for ever, when that is so already.
    pub(super) async fn shrunk(&self) {
        let mut exceeded = false;
        loop {
            let closing = self.closing.notified();
            let end = {
                let state = self.lock();
                if state.open <= state.size && exceeded {
                    return;
                }
                exceeded = state.open > state.size;
                state.ending.peek().copied()
            };
            match end {
                Some(Reverse((end, _))) if exceeded => tokio::select! {
                    () = closing => {}
                    () = tokio::time::sleep_until(end) => {}
                },
                _ => closing.await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while let Some(Reverse((_, closed_at))) = state.ending.peek().copied().filter(|Reverse((end, _))| *end <= now) {
            state.ending.pop();
            state.open -= 1;
            if state.leased {
                state.unconfirmed.push(closed_at);
            }
        }
        if state.holding && state.open < state.size {
            let size = state.open;
            // Nothing is idle beyond it: what is idle is open.
            let beyond = self.set_size(&mut state, size);
            debug_assert!(beyond.is_empty());
        }
        state
    }
}
