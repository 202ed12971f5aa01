//! Event feed: hands the events of committed transactions to the relay, through memory.
//!
//! # Terms
//! A partition is *current* when each of its unpublished events is in memory: here, or with the relay. Otherwise it is
//! *behind*: its events wait here until the relay has read from the table what came before them. Each partition begins behind.
//!
//! # Which events can a read of the table miss?
//! Positions are no order of commits: a read can find an event and miss one with a lower position, of another user, that
//! commits a moment later. Every such event is accounted for:
//!
//! - Its transaction is this worker's: the event is handed over after the commit. If the answer to the commit was lost, the
//!   partition is behind until a read whose snapshot shows that every transaction of that time has ended.
//! - It is of a replay, in another process: a replay counts itself in `partition_replays`, and the next batch that could
//!   change one of its users sees that ([`EventFeed::replays`]). Without such a batch, the relay reads the table now and then.
//! - It is of an earlier owner: its transactions ended before the partition passed on.
//!
//! # Why may events be dropped here?
//! The table has them. The memory is bounded, so a relay that cannot keep up reads the table instead.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::events::RecordedEvent;

/// Events that wait here, of all partitions together.
const CAPACITY: usize = 20_000;

/// The events that batches have committed and the relay has not taken yet. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct EventFeed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capacity: usize,
    state: Mutex<FeedState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct FeedState {
    partitions: BTreeMap<u16, PartitionFeed>,
    /// Events of all partitions.
    waiting: usize,
}

#[derive(Debug, Default)]
struct PartitionFeed {
    standing: Standing,
    /// Grows whenever the partition falls behind: a read that began before does not make it current.
    falls: u64,
    lost_answers: LostAnswers,
    /// As the last batch saw them.
    replays: Option<i64>,
    /// Transactions whose COMMIT was sent and not answered yet.
    committing: usize,
    waiting: VecDeque<RecordedEvent>,
    /// Events of these transactions that a read has found already.
    found_early: HashSet<Uuid>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Standing {
    #[default]
    Behind,
    Current,
    /// Another worker owns it.
    NotOwned,
}

/// Whether a transaction can still commit whose answer was lost.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LostAnswers {
    #[default]
    None,
    /// There is one, and no snapshot has been taken since.
    Recent,
    /// Only one with a lower transaction id than this.
    Below(i64),
}

/// What a snapshot of the database says of running transactions: both are transaction ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The lowest that was running.
    pub(super) oldest_running: i64,
    /// The first that was not assigned.
    pub(super) next: i64,
}

/// What a read of the table says of one partition.
#[derive(Debug)]
pub(super) struct PartitionRead {
    pub(super) partition: u16,
    /// As [`EventFeed::partitions_behind`] gave it before the read.
    pub(super) falls: u64,
    pub(super) found: HashSet<Uuid>,
    /// Whether that was all.
    pub(super) complete: bool,
}

/// A transaction between the COMMIT and its answer. Dropped without [`committed`](Self::committed), its outcome is unknown.
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingCommit {
    feed: EventFeed,
    partitions: Vec<u16>,
}

impl Default for EventFeed {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl EventFeed {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { shared: Arc::new(Shared { capacity, state: Mutex::default(), changed: Notify::new() }) }
    }

    /// To be called before COMMIT is sent, with the partitions of the batch.
    pub(crate) fn begin(&self, partitions: impl IntoIterator<Item = u16>) -> PendingCommit {
        let partitions: Vec<u16> = partitions.into_iter().collect();
        let mut state = self.lock();
        for partition in &partitions {
            state.partition(*partition).committing += 1;
        }
        drop(state);
        PendingCommit { feed: self.clone(), partitions }
    }

    /// The table may have events of the partition that are not in memory.
    pub(crate) fn behind(&self, partition: u16) {
        self.lock().partition(partition).fall();
        self.shared.changed.notify_one();
    }

    /// Compares the replays of a partition with those that the batch before saw. A batch reads them
    /// when it records its events ([`events::record`](crate::events::record)), and calls this before it commits.
    pub(crate) fn replays(&self, partition: u16, replays: i64) {
        let mut state = self.lock();
        let feed = state.partition(partition);
        if feed.replays.replace(replays) != Some(replays) {
            feed.fall();
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    /// Waits for a change, also for one since the last wait.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Takes about so many events of current partitions, evenly, in order.
    pub(super) fn take(&self, most: usize) -> Vec<RecordedEvent> {
        let mut state = self.lock();
        let ready = |feed: &&mut PartitionFeed| feed.standing == Standing::Current && !feed.waiting.is_empty();
        let partitions = state.partitions.values_mut().filter(ready).count();
        let mut taken = Vec::new();
        if partitions > 0 {
            let each = most.div_ceil(partitions);
            for feed in state.partitions.values_mut().filter(ready) {
                let number = feed.waiting.len().min(each);
                taken.extend(feed.waiting.drain(..number));
            }
        }
        state.waiting -= taken.len();
        taken
    }

    /// The partitions that are to be read, each with what tells a later fall.
    pub(super) fn partitions_behind(&self) -> Vec<(u16, u64)> {
        let state = self.lock();
        let behind = state.partitions.iter().filter(|(_, feed)| feed.standing == Standing::Behind);
        behind.map(|(partition, feed)| (*partition, feed.falls)).collect()
    }

    /// Takes note of a read whose events the relay has; says whether another is needed only because of a lost answer.
    pub(super) fn read(&self, read: &PartitionRead, snapshot: Snapshot) -> bool {
        let mut state = self.lock();
        let feed = state.partition(read.partition);
        let before = feed.waiting.len();
        feed.waiting.retain(|event| !read.found.contains(&event.id));
        let found = before - feed.waiting.len();
        if feed.committing > 0 {
            feed.found_early.extend(&read.found);
        }
        let mut in_doubt = false;
        if feed.falls == read.falls {
            feed.lost_answers.seen(snapshot);
            in_doubt = read.complete && feed.lost_answers != LostAnswers::None;
            if read.complete && !in_doubt {
                feed.standing = Standing::Current;
            }
        }
        state.waiting -= found;
        in_doubt
    }

    /// The partition was not this worker's when it was to be read.
    pub(super) fn not_owned(&self, partition: u16, falls: u64) {
        let mut state = self.lock();
        let feed = state.partition(partition);
        if feed.falls == falls {
            feed.standing = Standing::NotOwned;
            let dropped = feed.waiting.len();
            feed.waiting.clear();
            state.waiting -= dropped;
        }
    }

    /// Makes every partition that was this worker's be read once more.
    pub(super) fn all_behind(&self) {
        let mut state = self.lock();
        state.partitions.values_mut().filter(|feed| feed.standing == Standing::Current).for_each(PartitionFeed::fall);
    }

    /// When the oldest event occurred that waits here.
    pub(super) fn oldest(&self) -> Option<OffsetDateTime> {
        self.lock().partitions.values().filter_map(|feed| Some(feed.waiting.front()?.occurred_at)).min()
    }

    /// Never held over an await.
    fn lock(&self) -> MutexGuard<'_, FeedState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingCommit {
    /// The transaction is committed, and these are its events, each user's in order.
    pub(crate) fn committed(mut self, events: Vec<RecordedEvent>) {
        let partitions = std::mem::take(&mut self.partitions);
        let mut state = self.feed.lock();
        for event in events {
            state.add(event, self.feed.shared.capacity);
        }
        for partition in partitions {
            state.partition(partition).answered();
        }
        drop(state);
        self.feed.shared.changed.notify_one();
    }
}

impl Drop for PendingCommit {
    fn drop(&mut self) {
        if self.partitions.is_empty() {
            return;
        }
        let mut state = self.feed.lock();
        for partition in &self.partitions {
            let feed = state.partition(*partition);
            feed.answered();
            feed.lost_answers = LostAnswers::Recent;
            feed.fall();
        }
        drop(state);
        self.feed.shared.changed.notify_one();
    }
}

impl FeedState {
    fn partition(&mut self, number: u16) -> &mut PartitionFeed {
        self.partitions.entry(number).or_default()
    }

    fn add(&mut self, event: RecordedEvent, capacity: usize) {
        let number = event.partition;
        let feed = self.partition(number);
        if feed.found_early.remove(&event.id) {
            return;
        }
        if feed.standing == Standing::NotOwned {
            feed.fall();
        }
        if self.waiting >= capacity {
            self.make_room(number);
        }
        if self.waiting >= capacity {
            self.partition(number).fall();
            return;
        }
        self.partition(number).waiting.push_back(event);
        self.waiting += 1;
    }

    /// Drops the events of partitions that are read anyway, or else those of this one, which is behind from now on.
    fn make_room(&mut self, number: u16) {
        let drops = |feed: &PartitionFeed| feed.standing != Standing::Current && !feed.waiting.is_empty();
        let any = self.partitions.values().any(drops);
        for (partition, feed) in &mut self.partitions {
            if if any { drops(feed) } else { *partition == number } {
                self.waiting -= feed.waiting.len();
                feed.waiting.clear();
                feed.fall();
            }
        }
    }
}

impl PartitionFeed {
    fn fall(&mut self) {
        self.standing = Standing::Behind;
        self.falls += 1;
    }

    fn answered(&mut self) {
        self.committing = self.committing.saturating_sub(1);
        if self.committing == 0 {
            self.found_early.clear();
        }
    }
}

impl LostAnswers {
    fn seen(&mut self, snapshot: Snapshot) {
        if *self == Self::Recent {
            *self = Self::Below(snapshot.next);
        }
        if let Self::Below(bound) = *self
            && snapshot.oldest_running >= bound
        {
            *self = Self::None;
        }
    }
}
