//! Users whose next event was refused: each waits with exponential backoff, and behind it the later events of that user. While a
//! user waits, its events are in the table only.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How much longer each pause is: every try is one more copy for the subscribers that do not refuse.
const GROWTH: u32 = 4;
/// A user whose events were all accepted or let go for so long begins again.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// Users that are remembered; the events of others are let go with their first refusal.
const MOST_USERS: usize = 10_000;

/// The refusals of each user's events since the last one that was accepted.
#[derive(Debug)]
pub(super) struct Refusals {
    /// How long an event is tried.
    patience: Duration,
    users: HashMap<Uuid, Refusal>,
}

#[derive(Debug)]
struct Refusal {
    /// The first one.
    since: Instant,
    pause: Duration,
    /// Not published before this.
    until: Instant,
    partition: u16,
    /// When the event that waits occurred; none while nothing does.
    waits_since: Option<OffsetDateTime>,
}

impl Refusals {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, users: HashMap::new() }
    }

    /// Takes note of a refusal; says whether the event is let go: then it counts as published. The later events of its user
    /// are let go with their first refusal, until one is accepted.
    pub(super) fn refused(&mut self, user: Uuid, partition: u16, occurred_at: OffsetDateTime) -> bool {
        let now = Instant::now();
        let before = self.users.get(&user);
        if before.is_none() && self.users.len() >= MOST_USERS {
            return true;
        }
        let (since, pause) = before.map_or((now, FIRST_PAUSE), |refusal| (refusal.since, refusal.pause * GROWTH));
        let left = self.patience.saturating_sub(now - since);
        let let_go = left.is_zero();
        // Jitter, so that not all users' events come at once; the last try is at the end of the patience.
        let until = now + pause.mul_f64(0.75 + rand::random::<f64>() / 2.0).min(left);
        let pause = pause.min(self.patience);
        let waits_since = (!let_go).then_some(occurred_at);
        self.users.insert(user, Refusal { since, pause, until, partition, waits_since });
        let_go
    }

    /// The user's event was stored by every subscriber's queue.
    pub(super) fn accepted(&mut self, user: Uuid) {
        self.users.remove(&user);
    }

    /// Whether the events of this user wait.
    pub(super) fn holds(&self, user: Uuid) -> bool {
        self.users.get(&user).is_some_and(|refusal| refusal.waits_since.is_some())
    }

    /// The users whose events wait.
    pub(super) fn waiting(&self) -> Vec<Uuid> {
        self.users.iter().filter(|(_, refusal)| refusal.waits_since.is_some()).map(|(user, _)| *user).collect()
    }

    /// Lets those go on whose pause is over; gives their partitions. Forgets users of whom nothing was heard for long.
    pub(super) fn due(&mut self) -> BTreeSet<u16> {
        let now = Instant::now();
        self.users.retain(|_, refusal| refusal.waits_since.is_some() || now < refusal.until + FORGOTTEN_AFTER);
        let over = self.users.values_mut().filter(|refusal| refusal.until <= now);
        over.filter_map(|refusal| refusal.waits_since.take().map(|_| refusal.partition)).collect()
    }

    /// Forgets the users of a partition that another worker owns.
    pub(super) fn forget(&mut self, partition: u16) {
        self.users.retain(|_, refusal| refusal.partition != partition);
    }

    /// When the oldest event that waits occurred.
    pub(super) fn oldest(&self) -> Option<OffsetDateTime> {
        self.users.values().filter_map(|refusal| refusal.waits_since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_mins(10);

    #[tokio::test(start_paused = true)]
    async fn a_refused_event_waits_longer_each_time_and_is_let_go_in_the_end() {
        let (mut refusals, user, at) = (Refusals::new(PATIENCE), Uuid::now_v7(), OffsetDateTime::UNIX_EPOCH);
        let started = Instant::now();
        let (mut tries, mut last) = (0, Duration::ZERO);
        while !refusals.refused(user, 7, at) {
            tries += 1;
            assert_eq!((refusals.waiting(), refusals.oldest()), (vec![user], Some(at)));
            let began = Instant::now();
            while refusals.due().is_empty() {
                assert!(refusals.holds(user));
                tokio::time::advance(FIRST_PAUSE / 10).await;
            }
            assert!(began.elapsed() > last || started.elapsed() >= PATIENCE, "{tries}: {:?}", began.elapsed());
            last = began.elapsed();
        }
        assert!((5..=8).contains(&tries), "{tries}");
        assert!(started.elapsed() >= PATIENCE);
        assert!(refusals.refused(user, 7, at), "the next event of the same user");
        assert!(refusals.waiting().is_empty() && refusals.oldest().is_none());
        refusals.accepted(user);
        assert!(!refusals.refused(user, 7, at), "after one that was accepted");
        tokio::time::advance(PATIENCE).await;
        refusals.forget(8);
        assert!(refusals.holds(user));
        refusals.forget(7);
        assert!(!refusals.refused(user, 7, at), "after another worker had the partition");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_users_are_remembered() {
        let (mut refusals, at) = (Refusals::new(PATIENCE), OffsetDateTime::UNIX_EPOCH);
        refusals.users.reserve(MOST_USERS);
        for _ in 0..MOST_USERS {
            let until = Instant::now() + FIRST_PAUSE;
            let refusal = Refusal { since: until, pause: FIRST_PAUSE, until, partition: 7, waits_since: None };
            refusals.users.insert(Uuid::now_v7(), refusal);
        }
        assert!(refusals.refused(Uuid::now_v7(), 7, at));
        tokio::time::advance(FORGOTTEN_AFTER + FIRST_PAUSE * 2).await;
        refusals.due();
        assert!(!refusals.refused(Uuid::now_v7(), 7, at));
        assert_eq!(refusals.users.len(), 1);
    }
}
