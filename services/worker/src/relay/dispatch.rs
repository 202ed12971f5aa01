//! Event dispatch: decides which event is sent next, and what is read or marked in the table.
//!
//! # Why is the next event of a user never sent too early?
//! The queue holds, of each user, the events after the last one that was confirmed, without a gap. It is filled from two sides:
//! by a read of the table, which leaves out only what is in the queue already, and from the feed, once such a read was complete.
//! What is taken out of it without being published is read again:
//!
//! - After a failure, all that is unsent is dropped, and a read that was under way counts for nothing.
//! - The events of a user that are refused stay in the table until the user's pause is over; those in the feed are dropped. A
//!   pause ends only between two reads.

use std::time::Duration;

use common::broker::PublishError;
use common::shutdown::chain;
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::warn;

use super::feed::EventFeed;
use super::instruments::Instruments;
use super::queue::{EventQueue, PublishedEvent};
use super::refusals::Refusals;
use super::table::{ReadRequest, Statement, StatementEnd, TableRead};
use crate::events::RecordedEvent;

/// Events in the queue; beyond, those in the feed wait there.
const QUEUED: usize = 4000;
/// With fewer in the queue the table is read.
const READ_BELOW: usize = 1000;
/// Events of one read, of all partitions.
const READ_AT_ONCE: usize = 2000;
/// Between looks at the table for events that no partition was behind for: those of a replay whose user has no later command.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// Between looks at users whose pause is over.
const REFUSALS_INTERVAL: Duration = Duration::from_millis(500);
/// Before a partition is read again only because of a lost answer.
const DOUBT_INTERVAL: Duration = Duration::from_millis(100);
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct EventDispatch {
    feed: EventFeed,
    queue: EventQueue,
    refusals: Refusals,
    publishing: Backoff,
    database: Backoff,
    /// How often unsent events were dropped.
    drops: u64,
    poll_at: Instant,
    refusals_at: Instant,
    read_at: Instant,
    report_at: Instant,
    report: Report,
    /// The oldest event at the last tick.
    oldest: Option<OffsetDateTime>,
    instruments: Instruments,
}

/// What the log says now and then.
#[derive(Default)]
struct Report {
    refused: u64,
    let_go: u64,
}

impl EventDispatch {
    /// `patience` is how long an event is tried that a subscriber's queue refuses.
    pub(super) fn new(feed: EventFeed, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            feed,
            queue: EventQueue::default(),
            refusals: Refusals::new(patience),
            publishing: Backoff::default(),
            database: Backoff::default(),
            drops: 0,
            poll_at: now,
            refusals_at: now,
            read_at: now,
            report_at: now,
            report: Report::default(),
            oldest: None,
            instruments: Instruments::new(),
        }
    }

    /// Takes what the feed has and the queue has room for. While partitions are behind, so little that the table is read.
    pub(super) fn fill(&mut self) {
        let most = if self.feed.partitions_behind().is_empty() { QUEUED } else { READ_BELOW / 2 };
        let room = most.saturating_sub(self.queue.len());
        if room > 0 && !self.publishing.waits() {
            let events = self.feed.take(room);
            self.enqueue(events);
        }
    }

    /// The next event to send.
    pub(super) fn next(&mut self) -> Option<RecordedEvent> {
        if self.publishing.waits() { None } else { self.queue.next() }
    }

    /// Takes the broker's answer to an event that was sent.
    pub(super) fn settle(&mut self, event: &RecordedEvent, answer: Result<(), PublishError>) {
        match answer {
            Ok(()) => {
                self.publishing.succeeded();
                self.refusals.accepted(event.user_id);
                self.published(event);
            }
            Err(PublishError::Refused) => {
                self.instruments.refused.add(1, &[]);
                if self.refusals.refused(event.user_id, event.partition, event.occurred_at) {
                    self.instruments.let_go.add(1, &[]);
                    self.report.let_go += 1;
                    self.published(event);
                } else {
                    self.report.refused += 1;
                    self.queue.drop_user(event);
                }
            }
            Err(error) => self.failed(event, &error),
        }
    }

    fn published(&mut self, event: &RecordedEvent) {
        self.instruments.published.add(1, &[]);
        self.queue.published(event);
    }

    fn failed(&mut self, event: &RecordedEvent, error: &PublishError) {
        self.drops += 1;
        self.queue.drop_user(event);
        self.feed.behind(event.partition);
        for partition in self.queue.drop_unsent() {
            self.feed.behind(partition);
        }
        if self.publishing.failed() {
            warn!(reason = chain(error), "events wait");
        }
    }

    /// The next statement; one at a time.
    pub(super) fn statement(&mut self) -> Option<Statement> {
        if self.database.waits() {
            return None;
        }
        let reads = self.reads();
        if self.queue.marks_due() || (reads && !self.queue.marks().is_empty()) {
            return Some(Statement::Mark(self.queue.marks().to_vec()));
        }
        reads.then(|| self.read()).flatten().map(Statement::Read)
    }

    /// Whether it is time to look at the table.
    fn reads(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.poll_at {
            self.poll_at = now + jittered(POLL_INTERVAL);
            self.feed.all_behind();
        }
        if now >= self.refusals_at {
            self.refusals_at = now + REFUSALS_INTERVAL;
            for partition in self.refusals.due() {
                self.feed.behind(partition);
            }
        }
        let waits = self.publishing.waits() || self.queue.len() >= READ_BELOW || now < self.read_at;
        !waits && !self.feed.partitions_behind().is_empty()
    }

    fn read(&self) -> Option<ReadRequest> {
        let partitions = self.feed.partitions_behind();
        let most = READ_AT_ONCE.checked_div(partitions.len())?.max(20);
        Some(ReadRequest {
            partitions,
            most: u16::try_from(most).unwrap_or(u16::MAX),
            known: self.queue.known(),
            waiting: self.refusals.waiting(),
            drops: self.drops,
        })
    }

    /// Takes what came of a statement.
    pub(super) fn executed(&mut self, end: StatementEnd) {
        let failure = match end {
            StatementEnd::Marked(number, Ok(())) => {
                self.queue.marked(number);
                None
            }
            StatementEnd::Read(request, Ok(read)) => {
                if request.drops == self.drops {
                    self.found(&request, read);
                }
                None
            }
            StatementEnd::Marked(_, Err(error)) | StatementEnd::Read(_, Err(error)) => Some(error),
        };
        match failure {
            None => self.database.succeeded(),
            Some(error) => {
                if self.database.failed() {
                    warn!(reason = chain(&error), "events are neither read nor marked");
                }
            }
        }
    }

    fn found(&mut self, request: &ReadRequest, mut read: TableRead) {
        let mut in_doubt = false;
        for (partition, falls, of_partition) in read.by_partition(request) {
            if let Some((found, snapshot)) = of_partition {
                in_doubt |= self.feed.read(&found, snapshot);
            } else {
                self.feed.not_owned(partition, falls);
                self.refusals.forget(partition);
            }
        }
        if in_doubt {
            self.read_at = Instant::now() + DOUBT_INTERVAL;
        }
        // Before anything more is taken from the feed.
        let events = std::mem::take(&mut read.events);
        self.enqueue(events);
    }

    fn enqueue(&mut self, events: Vec<RecordedEvent>) {
        #[cfg(feature = "mutants")]
        let events = crate::mutants::relayed(events);
        for event in events {
            if !self.refusals.holds(event.user_id) {
                self.queue.push(event);
            }
        }
    }

    /// What counts as published and is not marked.
    pub(super) fn unmarked(&self) -> Vec<PublishedEvent> {
        self.queue.unmarked().to_vec()
    }

    /// Reports the age of the oldest event, and now and then what was refused.
    pub(super) fn tick(&mut self) {
        let oldest = [self.queue.oldest(), self.feed.oldest(), self.refusals.oldest()].into_iter().flatten().min();
        // While a read is under way, what it will find is not known.
        let unread = if self.feed.partitions_behind().is_empty() { None } else { self.oldest };
        self.oldest = oldest.or(unread);
        let age = self.oldest.map_or(0.0, |at| (OffsetDateTime::now_utc() - at).as_seconds_f64());
        self.instruments.oldest_age.record(age, &[]);
        if Instant::now() < self.report_at {
            return;
        }
        self.report_at = Instant::now() + REPORT_INTERVAL;
        let Report { refused, let_go } = std::mem::take(&mut self.report);
        if refused > 0 {
            warn!(events = refused, "a subscriber's queue refuses events, which are tried again");
        }
        if let_go > 0 {
            warn!(events = let_go, "events count as published that a subscriber's queue refused");
        }
    }
}

/// Growing pauses between failures.
#[derive(Debug, Default)]
struct Backoff {
    pause: Duration,
    until: Option<Instant>,
}

impl Backoff {
    fn waits(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Begins a pause, unless one has begun: says whether it did.
    fn failed(&mut self) -> bool {
        if self.waits() {
            return false;
        }
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.until = Some(Instant::now() + jittered(self.pause));
        true
    }

    fn succeeded(&mut self) {
        if self.until.is_some() && !self.waits() {
            *self = Self::default();
        }
    }
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}
