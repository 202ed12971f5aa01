//! Connection limiter: evicts the longest-idle connection when a listener is at its limit.
//!
//! # Terms
//! A *regular* slot counts against the limit. A few *reserved* slots lie beyond it: a connection that arrives at the limit gets
//! one at once, a probe is answered there, and any other request waits until an eviction has freed a regular slot.
//!
//! # Why evict?
//! Ten thousand clients that never finish a request would otherwise keep all others out. A connection can be evicted while its
//! client is waited for: between requests, within a head or a body, while an answer is not read, and in a lingering close. One
//! whose request is being worked on stays.
//!
//! # Why is the oldest looked for only when it is needed?
//! An order that is kept up costs a lock that all connections share, twice per request. Looking through all slots costs a few
//! hundred microseconds at ten thousand, and finds a batch of candidates, each of which is checked again before it goes.

mod request;
mod slot;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

pub(super) use self::request::{GuardedBody, RequestGuard};
pub(super) use self::slot::ConnectionSlot;
use self::slot::SlotState;

/// Slots beyond the limit.
const RESERVED: usize = 16;
/// How long a request in a reserved slot waits for a regular one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Candidates that one look through all slots finds.
const BATCH: usize = 64;
/// An IPv6 subscriber has at least this much of the address.
const IPV6_NETWORK: u128 = !((1 << 64) - 1);

/// The address by which a client is counted: all of IPv4, the network of an IPv6 subscriber. On a socket for both, IPv4 comes in
/// the form of IPv6.
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK)),
        address @ IpAddr::V4(_) => address,
    }
}

/// All connections of one listener. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    most_per_network: usize,
    registry: Mutex<Registry>,
    /// A slot was looked for and none could be evicted.
    starved: AtomicBool,
    /// A connection ended or can be evicted now.
    changed: Notify,
    /// A connection waits for a reserved slot.
    pressed: Notify,
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    slots: HashMap<u64, Arc<SlotState>>,
    total: Count,
    networks: HashMap<IpAddr, Count>,
    /// Requests in reserved slots that wait for regular ones.
    waiting: usize,
    /// A connection waits for a reserved slot.
    blocked: bool,
}

/// The slots of the listener, or of one network.
#[derive(Debug, Default)]
struct Count {
    regular: usize,
    reserved: usize,
    /// Regular slots that were evicted and are not free yet.
    leaving: usize,
    candidates: VecDeque<Candidate>,
}

/// A slot that could be evicted when it was looked at.
#[derive(Debug)]
struct Candidate {
    since: Instant,
    slot: Arc<SlotState>,
}

/// The slots among which one is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Regular,
    Network(IpAddr),
    Reserved,
}

impl ConnectionLimiter {
    /// Without a bound for each network there is only the one for all.
    pub(super) fn new(most: usize, most_per_network: Option<usize>) -> Self {
        Self(Arc::new(Shared {
            most,
            most_per_network: most_per_network.unwrap_or(usize::MAX),
            registry: Mutex::default(),
            starved: AtomicBool::new(false),
            changed: Notify::new(),
            pressed: Notify::new(),
        }))
    }

    /// Gives a connection a slot: waits only while all reserved slots are in use by requests.
    pub(super) async fn enter(&self, address: IpAddr) -> Arc<ConnectionSlot> {
        let network = client_network(address);
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if let Some(state) = self.try_enter(network) {
                return Arc::new(ConnectionSlot::new(self.clone(), state));
            }
            changed.await;
        }
    }

    fn try_enter(&self, network: IpAddr) -> Option<Arc<SlotState>> {
        let mut registry = self.lock();
        let regular = registry.total.regular + registry.waiting < self.0.most && self.has_slot(&registry, network);
        if !regular {
            self.make_room(&mut registry, network, 1);
            if registry.total.reserved >= RESERVED {
                registry.evict(Scope::Reserved);
                // A request that waits ends for it.
                registry.blocked = true;
                self.0.pressed.notify_waiters();
                return None;
            }
        }
        registry.blocked = false;
        registry.next += 1;
        let state = Arc::new(SlotState::new(registry.next, network, regular));
        for count in registry.counts(network) {
            *(if regular { &mut count.regular } else { &mut count.reserved }) += 1;
        }
        registry.slots.insert(state.id, Arc::clone(&state));
        Some(state)
    }

    fn has_slot(&self, registry: &Registry, network: IpAddr) -> bool {
        let of_network = registry.networks.get(&network).map_or(0, |count| count.regular);
        registry.total.regular < self.0.most && of_network < self.0.most_per_network
    }

    /// Evicts a connection if no other one is leaving for this one already; of the network, if that has too many itself.
    fn make_room(&self, registry: &mut Registry, network: IpAddr, arriving: usize) {
        let of_network = registry.networks.get(&network);
        let exceeded = of_network.is_some_and(|count| count.regular >= self.0.most_per_network);
        let (scope, count) = match of_network {
            Some(count) if exceeded => (Scope::Network(network), count),
            _ => (Scope::Regular, &registry.total),
        };
        let full = exceeded || count.regular >= self.0.most;
        if !full || count.leaving >= count.reserved + arriving {
            return;
        }
        // Before the look: a slot that can be evicted since then says so.
        self.0.starved.store(true, Ordering::SeqCst);
        if registry.evict(scope) {
            self.0.starved.store(false, Ordering::SeqCst);
        }
    }

    /// Waits until the connection has a regular slot; `false` when the listener stays full, or a probe may need the reserved one.
    async fn promote(&self, slot: &SlotState) -> bool {
        self.lock().waiting += 1;
        let waiting = Waiting(self);
        let promoted = timeout(PATIENCE, async {
            loop {
                let (mut changed, mut pressed) = (pin!(self.0.changed.notified()), pin!(self.0.pressed.notified()));
                changed.as_mut().enable();
                pressed.as_mut().enable();
                if let Some(promoted) = self.try_promote(slot) {
                    return promoted;
                }
                tokio::select! {
                    () = changed => {}
                    () = pressed => {}
                }
            }
        });
        let promoted = promoted.await.unwrap_or(false);
        drop(waiting);
        promoted
    }

    fn try_promote(&self, slot: &SlotState) -> Option<bool> {
        let mut registry = self.lock();
        // It was evicted from the reserved slots, and so is not counted as leaving.
        if slot.is_evicted() {
            return Some(false);
        }
        if self.has_slot(&registry, slot.network) {
            for count in registry.counts(slot.network) {
                count.reserved -= 1;
                count.regular += 1;
            }
            slot.regular.store(true, Ordering::Relaxed);
            return Some(true);
        }
        if std::mem::take(&mut registry.blocked) {
            return Some(false);
        }
        self.make_room(&mut registry, slot.network, 0);
        None
    }

    fn release(&self, slot: &SlotState) {
        let mut registry = self.lock();
        registry.slots.remove(&slot.id);
        let (regular, leaving) = (slot.regular.load(Ordering::Relaxed), slot.is_leaving());
        for count in registry.counts(slot.network) {
            *(if regular { &mut count.regular } else { &mut count.reserved }) -= 1;
            count.leaving = count.leaving.saturating_sub(usize::from(leaving));
        }
        if registry.networks.get(&slot.network).is_some_and(|count| count.regular + count.reserved == 0) {
            registry.networks.remove(&slot.network);
        }
        drop(registry);
        self.0.changed.notify_waiters();
    }

    /// An evicted connection stays, because its client sent something in time; another one has to go.
    fn stays(&self, slot: &SlotState) {
        let mut registry = self.lock();
        for count in registry.counts(slot.network) {
            count.leaving = count.leaving.saturating_sub(1);
        }
        drop(registry);
        self.0.changed.notify_waiters();
    }

    /// A slot can be evicted from now on.
    fn falls_idle(&self) {
        if self.0.starved.load(Ordering::SeqCst) && self.0.starved.swap(false, Ordering::SeqCst) {
            self.0.changed.notify_waiters();
        }
    }

    /// Held before the lock of a slot, never after it.
    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for a regular slot; dropping it ends the wait.
struct Waiting<'l>(&'l ConnectionLimiter);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
        self.0.0.changed.notify_waiters();
    }
}

impl Registry {
    fn counts(&mut self, network: IpAddr) -> [&mut Count; 2] {
        [&mut self.total, self.networks.entry(network).or_default()]
    }

    /// Asks the connection to go whose client has been waited for longest, or else one whose client reads an answer slowly.
    fn evict(&mut self, scope: Scope) -> bool {
        let mut candidates = match scope {
            Scope::Regular => std::mem::take(&mut self.total.candidates),
            Scope::Network(network) => {
                self.networks.get_mut(&network).map(|count| std::mem::take(&mut count.candidates)).unwrap_or_default()
            }
            Scope::Reserved => VecDeque::new(),
        };
        let mut evicted = next(&mut candidates);
        if evicted.is_none() {
            candidates = self.candidates(scope);
            evicted = next(&mut candidates);
        }
        let Some(slot) = evicted else { return self.evict_reader(scope) };
        if scope != Scope::Reserved {
            for count in self.counts(slot.network) {
                count.leaving += 1;
            }
        }
        match scope {
            Scope::Regular => self.total.candidates = candidates,
            Scope::Network(network) => self.networks.entry(network).or_default().candidates = candidates,
            Scope::Reserved => {}
        }
        true
    }

    fn among(&self, scope: Scope) -> impl Iterator<Item = &Arc<SlotState>> {
        self.slots.values().filter(move |slot| {
            let regular = slot.regular.load(Ordering::Relaxed);
            match scope {
                Scope::Regular => regular,
                Scope::Network(network) => regular && slot.network == network,
                Scope::Reserved => !regular,
            }
        })
    }

    fn candidates(&self, scope: Scope) -> VecDeque<Candidate> {
        let now = Instant::now();
        let idle = |slot: &Arc<SlotState>| Some(Candidate { since: slot.idle_since(now)?, slot: Arc::clone(slot) });
        let mut found: Vec<_> = self.among(scope).filter_map(idle).collect();
        found.sort_unstable_by_key(|candidate| candidate.since);
        found.truncate(BATCH);
        found.into()
    }

    /// It goes when it has the whole answer, or takes nothing more of it: so it does not count as leaving.
    fn evict_reader(&self, scope: Scope) -> bool {
        let reading = self.among(scope).filter_map(|slot| Some((slot.reading_since()?, slot)));
        reading.min_by_key(|(since, _)| *since).is_some_and(|(_, slot)| slot.evict_gradually())
    }
}

/// The first candidate that still can be evicted, and was.
fn next(candidates: &mut VecDeque<Candidate>) -> Option<Arc<SlotState>> {
    while let Some(Candidate { since, slot }) = candidates.pop_front() {
        if slot.evict(since) {
            return Some(slot);
        }
    }
    None
}

#[cfg(test)]
mod tests;
