//! The model: a table with transactions, a broker, and the relay's feed and dispatch between them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use common::broker::PublishError;
use common::db::DbError;
use proptest::prop_assert;
use proptest::test_runner::TestCaseError;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::dispatch::EventDispatch;
use super::super::feed::{EventFeed, PendingCommit, Snapshot};
use super::super::table::{Statement, StatementEnd, TableRead};
use crate::events::RecordedEvent;

const PARTITIONS: u16 = 2;
const USERS: u128 = 5;
/// Small, so that it overflows.
pub(super) const CAPACITY: usize = 6;
const PATIENCE: Duration = Duration::from_secs(8);

/// A row of the table, in the order of positions.
pub(super) struct Row {
    event: RecordedEvent,
    transaction: i64,
    published: bool,
}

/// A transaction that has not ended at the server.
struct Running {
    partition: u16,
    replay: bool,
    events: Vec<RecordedEvent>,
}

/// A batch of this worker; its transaction may have ended.
pub(super) struct Batch {
    pub(super) transaction: i64,
    events: Vec<RecordedEvent>,
    pending: Option<PendingCommit>,
}

pub(super) struct World {
    pub(super) feed: EventFeed,
    dispatch: EventDispatch,
    pub(super) rows: Vec<Row>,
    pub(super) next_transaction: i64,
    running: BTreeMap<i64, Running>,
    pub(super) batches: BTreeMap<u16, Batch>,
    replays: BTreeMap<u16, i64>,
    owned: BTreeSet<u16>,
    versions: HashMap<Uuid, i64>,
    pub(super) sent: Vec<RecordedEvent>,
    statement: Option<Statement>,
    end: Option<StatementEnd>,
    /// Confirmed to this worker.
    confirmed: BTreeSet<Uuid>,
    /// Confirmed to any owner, or let go.
    settled: BTreeSet<Uuid>,
}

fn partition_of(user: Uuid) -> u16 {
    u16::try_from(user.as_u128() % u128::from(PARTITIONS)).expect("a partition")
}

impl World {
    pub(super) fn new() -> Self {
        let feed = EventFeed::with_capacity(CAPACITY);
        (0..PARTITIONS).for_each(|partition| feed.behind(partition));
        Self {
            dispatch: EventDispatch::new(feed.clone(), PATIENCE),
            feed,
            rows: Vec::new(),
            next_transaction: 1,
            running: BTreeMap::new(),
            batches: BTreeMap::new(),
            replays: BTreeMap::new(),
            owned: (0..PARTITIONS).collect(),
            versions: HashMap::new(),
            sent: Vec::new(),
            statement: None,
            end: None,
            confirmed: BTreeSet::new(),
            settled: BTreeSet::new(),
        }
    }

    /// A new transaction with one event of each of these users that nobody has locked.
    fn transaction(&mut self, partition: u16, replay: bool, choice: u8, times: u8) -> i64 {
        let locked: BTreeSet<Uuid> =
            self.running.values().flat_map(|running| running.events.iter().map(|event| event.user_id)).collect();
        let transaction = self.next_transaction;
        self.next_transaction += 1;
        let mut events = Vec::new();
        for number in 0..USERS {
            let user = Uuid::from_u128(number);
            let chosen = choice >> number & 1 == 1 && partition_of(user) == partition && !locked.contains(&user);
            for _ in 0..if chosen { times } else { 0 } {
                let version = self.versions.entry(user).or_default();
                *version += 1;
                let event = RecordedEvent {
                    position: i64::try_from(self.rows.len()).expect("a position"),
                    id: Uuid::from_u128(u128::try_from(self.rows.len()).expect("a number") + 1000),
                    partition,
                    kind: "users.updated".into(),
                    user_id: user,
                    data: version.to_string().into(),
                    occurred_at: OffsetDateTime::UNIX_EPOCH,
                    traceparent: None,
                    tracestate: None,
                };
                self.rows.push(Row { event: event.clone(), transaction, published: false });
                events.push(event);
            }
        }
        self.running.insert(transaction, Running { partition, replay, events });
        transaction
    }

    pub(super) fn end_transaction(&mut self, transaction: i64, commits: bool) {
        let Some(running) = self.running.remove(&transaction) else { return };
        if commits {
            *self.replays.entry(running.partition).or_default() += i64::from(running.replay);
        } else {
            self.rows
                .iter_mut()
                .filter(|row| row.transaction == transaction)
                .for_each(|row| row.transaction = i64::MAX);
            for event in running.events {
                *self.versions.entry(event.user_id).or_default() -= 1;
            }
        }
    }

    fn visible(&self, row: &Row) -> bool {
        row.transaction != i64::MAX && !self.running.contains_key(&row.transaction)
    }

    pub(super) fn step(&mut self, [kind, a, b, c]: [u8; 4]) -> Result<(), TestCaseError> {
        let partition = u16::from(a) % PARTITIONS;
        match kind % 12 {
            0 | 1 if self.owned.contains(&partition) && !self.batches.contains_key(&partition) => {
                self.begin(partition, b, c % 3 + 1);
            }
            2 => {
                let transaction = self.running.keys().copied().nth(usize::from(b) % self.running.len().max(1));
                if let Some(transaction) = transaction {
                    self.end_transaction(transaction, c % 8 != 0);
                }
            }
            3 => self.answer(partition, b % 4 == 0),
            4 => {
                self.transaction(partition, true, b, 1);
            }
            5 if b % 4 == 0 => self.change_owner(partition, c),
            6 | 7 => self.relay(usize::from(b % 5))?,
            8 | 9 if !self.sent.is_empty() => {
                let event = self.sent.swap_remove(usize::from(a) % self.sent.len());
                self.settle(&event, b);
            }
            10 => self.execute(b),
            11 => {
                if let Some(end) = self.end.take() {
                    self.dispatch.executed(end);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The answer to a batch's commit arrives, or is lost while the transaction still runs or has ended.
    pub(super) fn answer(&mut self, partition: u16, lost: bool) {
        let Some(mut batch) = self.batches.remove(&partition) else { return };
        let running = self.running.contains_key(&batch.transaction);
        if running && !lost {
            self.batches.insert(partition, batch);
            return;
        }
        let committed = self.rows.iter().any(|row| row.transaction == batch.transaction);
        let pending = batch.pending.take().expect("a commit");
        if lost || !committed && !batch.events.is_empty() {
            drop(pending);
        } else {
            pending.committed(batch.events);
        }
    }

    /// The partition passes to another worker, which publishes a part of its own events, or comes back.
    fn change_owner(&mut self, partition: u16, published: u8) {
        let held = self.batches.contains_key(&partition)
            || self.running.values().any(|running| running.partition == partition && !running.replay);
        if held {
            return;
        }
        if self.owned.insert(partition) {
            self.feed.behind(partition);
            return;
        }
        self.owned.remove(&partition);
        let transaction = self.transaction(partition, false, 0b11111, 1);
        self.end_transaction(transaction, true);
        let pending = (0..self.rows.len()).filter(|at| {
            let row = &self.rows[*at];
            self.visible(row) && !row.published && row.event.partition == partition
        });
        for at in pending.take(usize::from(published % 8)).collect::<Vec<_>>() {
            self.rows[at].published = true;
            self.settled.insert(self.rows[at].event.id);
        }
    }

    /// One round of the relay's loop, in which the broker takes so many events.
    pub(super) fn relay(&mut self, most: usize) -> Result<(), TestCaseError> {
        self.dispatch.fill();
        for _ in 0..most {
            let Some(event) = self.dispatch.next() else { break };
            prop_assert!(!self.confirmed.contains(&event.id), "sent again: {event:?}");
            prop_assert!(!self.sent.iter().any(|sent| sent.user_id == event.user_id), "two at once: {event:?}");
            let skipped = self.rows.iter().find(|row| {
                let earlier = row.event.user_id == event.user_id && row.event.position < event.position;
                earlier && row.transaction != i64::MAX && !self.settled.contains(&row.event.id)
            });
            prop_assert!(skipped.is_none(), "{event:?} before {:?}", skipped.map(|row| &row.event));
            self.sent.push(event);
        }
        if self.statement.is_none() && self.end.is_none() {
            self.statement = self.dispatch.statement();
        }
        Ok(())
    }

    fn settle(&mut self, event: &RecordedEvent, choice: u8) {
        match choice % 8 {
            0 => self.dispatch.settle(event, Err(PublishError::Unknown)),
            1 => {
                self.dispatch.settle(event, Err(PublishError::Refused));
                if self.dispatch.unmarked().contains(&(event.position, event.id)) {
                    self.confirmed.insert(event.id);
                    self.settled.insert(event.id);
                }
            }
            _ => {
                self.dispatch.settle(event, Ok(()));
                self.confirmed.insert(event.id);
                self.settled.insert(event.id);
            }
        }
    }

    /// The server executes the statement that is under way; its answer comes later.
    fn execute(&mut self, choice: u8) {
        let lost = choice.is_multiple_of(8);
        self.end = match self.statement.take() {
            None => return,
            Some(Statement::Mark(events)) => {
                if !choice.is_multiple_of(16) {
                    let marked: BTreeSet<Uuid> = events.iter().map(|(_, id)| *id).collect();
                    self.rows
                        .iter_mut()
                        .filter(|row| marked.contains(&row.event.id))
                        .for_each(|row| row.published = true);
                }
                let end = if lost { Err(DbError::Deadline(PATIENCE)) } else { Ok(()) };
                Some(StatementEnd::Marked(events.len(), end))
            }
            Some(Statement::Read(request)) if lost => {
                Some(StatementEnd::Read(request, Err(DbError::Deadline(PATIENCE))))
            }
            Some(Statement::Read(mut request)) => {
                request.most = u16::from(choice % 5) + 1;
                let mut found: BTreeMap<u16, usize> = BTreeMap::new();
                let mut events = Vec::new();
                for row in self.rows.iter().filter(|row| !row.published && self.visible(row)) {
                    let event = &row.event;
                    let asked = request.partitions.iter().any(|(number, _)| *number == event.partition);
                    let left_out = request.known.contains(&event.id) || request.waiting.contains(&event.user_id);
                    let found = found.entry(event.partition).or_default();
                    let full = *found == usize::from(request.most);
                    if asked && !left_out && !full && self.owned.contains(&event.partition) {
                        *found += 1;
                        events.push(event.clone());
                    }
                }
                let oldest_running = self.running.keys().next().copied().unwrap_or(self.next_transaction);
                let snapshot = Some(Snapshot { oldest_running, next: self.next_transaction });
                let read = TableRead { snapshot, owned: self.owned.clone(), events };
                Some(StatementEnd::Read(request, Ok(read)))
            }
        };
    }

    /// The worker begins to commit a change of each of the partition's users, so many times.
    pub(super) fn begin(&mut self, partition: u16, choice: u8, times: u8) {
        let transaction = self.transaction(partition, false, choice, times);
        let events = self.running[&transaction].events.clone();
        self.feed.replays(partition, self.replays.get(&partition).copied().unwrap_or_default());
        let pending = Some(self.feed.begin([partition]));
        self.batches.insert(partition, Batch { transaction, events, pending });
    }

    /// A statement that goes well, if the relay has one.
    pub(super) fn complete(&mut self) -> Result<(), TestCaseError> {
        self.relay(0)?;
        self.execute(4);
        if let Some(end) = self.end.take() {
            self.dispatch.executed(end);
        }
        Ok(())
    }

    /// Everything ends well from now on.
    pub(super) async fn finish(mut self) -> Result<(), TestCaseError> {
        for transaction in self.running.keys().copied().collect::<Vec<_>>() {
            self.end_transaction(transaction, true);
        }
        for partition in 0..PARTITIONS {
            self.answer(partition, false);
            if self.owned.insert(partition) {
                self.feed.behind(partition);
            }
        }
        for _ in 0..400 {
            tokio::time::advance(Duration::from_millis(200)).await;
            self.relay(100)?;
            for event in std::mem::take(&mut self.sent) {
                self.settle(&event, 2);
            }
            self.execute(7);
            if let Some(end) = self.end.take() {
                self.dispatch.executed(end);
            }
            if self.rows.iter().all(|row| row.published || row.transaction == i64::MAX) {
                return Ok(());
            }
        }
        let left: Vec<_> = self.rows.iter().filter(|row| !row.published).map(|row| &row.event).collect();
        Err(TestCaseError::fail(format!("never published: {left:?}")))
    }
}
