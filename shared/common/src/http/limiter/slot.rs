//! Slot of one connection: whether its client is waited for, and since when.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::ConnectionLimiter;

/// A client that takes nothing of its answer for so long does not read it.
const READ_STALL: Duration = Duration::from_secs(5);
/// How long an evicted connection may take to read its answer.
const LAST_ANSWER: Duration = Duration::from_secs(30);

/// What the limiter knows of a connection.
#[derive(Debug)]
pub(super) struct SlotState {
    pub(super) id: u64,
    pub(super) network: IpAddr,
    pub(super) regular: AtomicBool,
    activity: Mutex<Activity>,
    /// It was evicted.
    evicted: Notify,
}

#[derive(Debug)]
struct Activity {
    requests: usize,
    /// Counts the idle periods.
    period: u64,
    /// The service waits for a part of the request's body.
    awaits_body: bool,
    /// When the client last took something of an answer of which more is there.
    unread: Option<Instant>,
    /// Since when the client has been waited for.
    since: Instant,
    eviction: Option<Eviction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Eviction {
    /// The limiter counts on the slot.
    AtOnce,
    /// Once the answer is read.
    Gradual,
}

impl Activity {
    fn idle_since(&self, now: Instant) -> Option<Instant> {
        if self.eviction.is_some() {
            return None;
        }
        match self.unread {
            Some(progress) => (now.saturating_duration_since(progress) >= READ_STALL).then_some(progress),
            None => (self.requests == 0 || self.awaits_body).then_some(self.since),
        }
    }
}

impl SlotState {
    pub(super) fn new(id: u64, network: IpAddr, regular: bool) -> Self {
        let since = Instant::now();
        let activity = Activity { requests: 0, period: 0, awaits_body: false, unread: None, since, eviction: None };
        Self { id, network, regular: AtomicBool::new(regular), activity: Mutex::new(activity), evicted: Notify::new() }
    }

    /// Since when it could have been evicted; `None` while the service works, or the client reads an answer.
    pub(super) fn idle_since(&self, now: Instant) -> Option<Instant> {
        self.lock().idle_since(now)
    }

    /// When its client last took something of an answer.
    pub(super) fn reading_since(&self) -> Option<Instant> {
        let activity = self.lock();
        activity.unread.filter(|_| activity.eviction.is_none())
    }

    /// Evicts it, if nothing has happened since it was looked at.
    pub(super) fn evict(&self, since: Instant) -> bool {
        let mut activity = self.lock();
        if activity.idle_since(Instant::now()) != Some(since) {
            return false;
        }
        activity.eviction = Some(Eviction::AtOnce);
        self.evicted.notify_one();
        true
    }

    pub(super) fn evict_gradually(&self) -> bool {
        self.lock().eviction = Some(Eviction::Gradual);
        self.evicted.notify_one();
        true
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.lock().eviction.is_some()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.regular.load(Ordering::Relaxed) && self.lock().eviction == Some(Eviction::AtOnce)
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection in the limiter; dropping it frees the slot.
#[derive(Debug)]
pub(in crate::http) struct ConnectionSlot {
    limiter: ConnectionLimiter,
    state: Arc<SlotState>,
}

impl ConnectionSlot {
    pub(super) fn new(limiter: ConnectionLimiter, state: Arc<SlotState>) -> Self {
        Self { limiter, state }
    }

    /// Whether only probes are answered here at once.
    pub(in crate::http) fn is_reserved(&self) -> bool {
        !self.state.regular.load(Ordering::Relaxed)
    }

    /// Waits for a regular slot; `false` when none comes free.
    pub(in crate::http) async fn promoted(&self) -> bool {
        !self.is_reserved() || self.limiter.promote(&self.state).await
    }

    /// Ends when another connection needs the slot.
    pub(in crate::http) async fn evicted(&self) {
        while !self.state.is_evicted() {
            self.state.evicted.notified().await;
        }
    }

    /// Ends when a connection that was evicted at an instant may be cut off: at once, unless a request came after all, or the
    /// client reads its answer.
    pub(in crate::http) async fn released(&self, evicted_at: Instant) {
        while let Some(until) = self.kept_until(evicted_at).filter(|until| *until > Instant::now()) {
            sleep_until(until).await;
        }
    }

    fn kept_until(&self, evicted_at: Instant) -> Option<Instant> {
        let activity = self.state.lock();
        match activity.unread {
            Some(progress) => Some((progress + READ_STALL).min(evicted_at + LAST_ANSWER)),
            None if activity.requests == 0 || activity.awaits_body => None,
            None => Some(Instant::now() + READ_STALL),
        }
    }

    /// The number of the present idle period; none while a request is in hand.
    pub(in crate::http) fn idle_period(&self) -> Option<u64> {
        let activity = self.state.lock();
        (activity.requests == 0).then_some(activity.period)
    }

    pub(super) fn request_begins(&self) {
        let mut activity = self.state.lock();
        activity.requests += 1;
        self.stays(activity);
    }

    pub(super) fn request_ends(&self) {
        let mut activity = self.state.lock();
        activity.requests -= 1;
        activity.period += 1;
        activity.since = Instant::now();
        drop(activity);
        self.limiter.falls_idle();
    }

    /// The service waits for more of a body, or does not any more.
    pub(in crate::http) fn awaits_body(&self, awaits: bool) {
        let mut activity = self.state.lock();
        activity.awaits_body = awaits;
        if awaits {
            activity.since = Instant::now();
            drop(activity);
            self.limiter.falls_idle();
        } else {
            self.stays(activity);
        }
    }

    /// The client has an answer to read, or has taken something of it.
    pub(in crate::http) fn answer_unread(&self, unread: bool) {
        let mut activity = self.state.lock();
        let now = Instant::now();
        activity.unread = unread.then_some(now);
        activity.since = now;
        drop(activity);
        self.limiter.falls_idle();
    }

    /// The client sent something in time: an eviction that has not happened yet does not happen.
    fn stays(&self, mut activity: MutexGuard<'_, Activity>) {
        let counted = self.state.regular.load(Ordering::Relaxed) && activity.eviction == Some(Eviction::AtOnce);
        activity.eviction = None;
        drop(activity);
        if counted {
            self.limiter.stays(&self.state);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limiter.release(&self.state);
    }
}
