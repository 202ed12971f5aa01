//! Event queue: the events that the relay works on, each user's one behind the other.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::events::RecordedEvent;

/// Published events that are marked at once.
pub(super) const MARKED_AT_ONCE: usize = 1000;
/// After this they are marked, however few they are.
const MARKED_AFTER: Duration = Duration::from_millis(300);

/// An event that counts as published, by its position and id.
pub(super) type PublishedEvent = (i64, Uuid);

#[derive(Debug, Default)]
pub(super) struct EventQueue {
    /// The ids of all events that are here: unsent, under way, or published and not marked.
    known: HashSet<Uuid>,
    /// Each user's next event, unless it is under way.
    ready: VecDeque<RecordedEvent>,
    /// The users with an event that is ready or under way.
    users: HashMap<Uuid, UserEvents>,
    published: Vec<PublishedEvent>,
    /// Since when there has been something to mark.
    published_since: Option<Instant>,
}

/// The events of one user behind the one that is ready or under way.
#[derive(Debug)]
struct UserEvents {
    /// When that one occurred.
    occurred_at: OffsetDateTime,
    behind: VecDeque<RecordedEvent>,
}

impl EventQueue {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn known(&self) -> Vec<Uuid> {
        self.known.iter().copied().collect()
    }

    /// Takes an event behind the others of its user, unless it is here already.
    pub(super) fn push(&mut self, event: RecordedEvent) {
        if !self.known.insert(event.id) {
            return;
        }
        if let Some(user) = self.users.get_mut(&event.user_id) {
            user.behind.push_back(event);
        } else {
            let user = UserEvents { occurred_at: event.occurred_at, behind: VecDeque::new() };
            self.users.insert(event.user_id, user);
            self.ready.push_back(event);
        }
    }

    /// The next event to send, which is under way from now on.
    pub(super) fn next(&mut self) -> Option<RecordedEvent> {
        self.ready.pop_front()
    }

    /// An event that was under way counts as published, and the user's next one is ready.
    pub(super) fn published(&mut self, event: &RecordedEvent) {
        self.published.push((event.position, event.id));
        self.published_since.get_or_insert_with(Instant::now);
        let Some(user) = self.users.get_mut(&event.user_id) else { return };
        if let Some(next) = user.behind.pop_front() {
            user.occurred_at = next.occurred_at;
            self.ready.push_back(next);
        } else {
            self.users.remove(&event.user_id);
        }
    }

    /// Drops an event that was under way, and those of its user behind it.
    pub(super) fn drop_user(&mut self, event: &RecordedEvent) {
        self.known.remove(&event.id);
        for behind in self.users.remove(&event.user_id).into_iter().flat_map(|user| user.behind) {
            self.known.remove(&behind.id);
        }
    }

    /// Drops all that is not under way; gives the partitions of which something was dropped.
    pub(super) fn drop_unsent(&mut self) -> BTreeSet<u16> {
        let mut dropped: Vec<RecordedEvent> = Vec::new();
        for event in self.ready.drain(..) {
            dropped.extend(self.users.remove(&event.user_id).into_iter().flat_map(|user| user.behind));
            dropped.push(event);
        }
        // Those that are left have an event under way, which later ones have to wait for.
        dropped.extend(self.users.values_mut().flat_map(|user| user.behind.drain(..)));
        for event in &dropped {
            self.known.remove(&event.id);
        }
        dropped.iter().map(|event| event.partition).collect()
    }

    /// What is to be marked now; it stays here until [`marked`](Self::marked).
    pub(super) fn marks(&self) -> &[PublishedEvent] {
        &self.published[..self.published.len().min(MARKED_AT_ONCE)]
    }

    /// What counts as published and is not marked.
    pub(super) fn unmarked(&self) -> &[PublishedEvent] {
        &self.published
    }

    pub(super) fn marks_due(&self) -> bool {
        self.published.len() >= MARKED_AT_ONCE
            || self.published_since.is_some_and(|since| since.elapsed() >= MARKED_AFTER)
    }

    /// The first so many of those that were to be marked are.
    pub(super) fn marked(&mut self, number: usize) {
        for (_, id) in self.published.drain(..number.min(self.published.len())) {
            self.known.remove(&id);
        }
        self.published_since = (!self.published.is_empty()).then(Instant::now);
    }

    /// When the oldest event occurred that is not published.
    pub(super) fn oldest(&self) -> Option<OffsetDateTime> {
        self.users.values().map(|user| user.occurred_at).min()
    }
}
