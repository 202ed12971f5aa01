//! Relay of the transactional outbox: publishes the change events of the partitions that this worker owns, at least once and each user's in
//! order. In reading order:
//!
//! 1. `feed`: what the batches of this process have committed. The relay publishes that from memory and marks it in the table later, many rows at
//!    once. It reads the table only for a partition that is behind: of an earlier owner, after a failure, for an operator's replay.
//! 2. `queue`: the events that it works on; `refusals`: the users whose events a subscriber's queue refuses.
//! 3. `dispatch`: which event is sent next, and which statement runs; `table`: the statements; `message`: what is sent.
//!
//! # Why are a user's events published one after the other?
//! A broker can refuse one message of a batch and take the next. So the next event of a user is not sent before the one
//! before was confirmed: whatever is repeated, each event's first message comes after those of the user's earlier events. Events of
//! different users do not wait for each other.
//!
//! # What if a subscriber's queue refuses?
//! A queue that is full and has `x-overflow=reject-publish` makes the broker refuse an event that other queues have stored. So
//! only the events of that user wait, with exponential backoff, and those of others go on. After `EVENT_RETRY_SECONDS` the
//! event counts as published: it is stored wherever it could be, and a subscriber that refuses for longer holds up
//! neither the user nor the others. See `refusals`.
//!
//! # What if a partition changes hands?
//! No lease has to be watched here. Both owners may publish the same events, each in order: an owner sends an event when
//! it has the confirm of the one before, or found it marked. So these are repetitions, which subscribers tell by their ids.

mod dispatch;
mod feed;
mod instruments;
mod message;
mod queue;
mod refusals;
mod table;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::time::Duration;

use common::broker::{PublishError, PublisherPool};
use common::db::{DatabaseState, Pool};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;
use uuid::Uuid;

use self::dispatch::EventDispatch;
pub(crate) use self::feed::EventFeed;
use self::message::message;
use crate::events::RecordedEvent;

/// Events that are handed to the publishers at once: fewer than one of them takes.
const AT_ONCE: usize = 1000;
/// Between looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Before the end of a stop's grace.
const STOP_MARGIN: Duration = Duration::from_millis(500);

/// The relay's parts.
pub(crate) struct Relay {
    pub(crate) instance: Uuid,
    pub(crate) exchange: String,
    pub(crate) source: String,
    /// How long an event is tried that a subscriber's queue refuses.
    pub(crate) patience: Duration,
    pub(crate) pool: Pool,
    pub(crate) database: watch::Receiver<DatabaseState>,
    pub(crate) publishers: PublisherPool,
    pub(crate) feed: EventFeed,
    pub(crate) shutdown: Shutdown,
}

impl Relay {
    /// Starts the task; it ends when the process stops, and what is left is the next owner's.
    pub(crate) fn start(self) {
        let shutdown = self.shutdown.clone();
        shutdown.supervise("events", Tier::Front, self.run());
    }

    async fn run(self) -> TaskResult {
        let mut dispatch = EventDispatch::new(self.feed.clone(), self.patience);
        let (mut sending, mut statements) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut stopping = pin!(self.shutdown.reached(Phase::Stopping));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            dispatch.fill();
            while sending.len() < AT_ONCE
                && let Some(event) = dispatch.next()
            {
                sending.push(self.send(event));
            }
            if statements.is_empty()
                && let Some(statement) = dispatch.statement()
            {
                statements.push(self.execute(statement));
            }
            tokio::select! {
                () = &mut stopping => break,
                Some((event, answer)) = sending.next() => dispatch.settle(&event, answer),
                Some(end) = statements.next() => dispatch.executed(end),
                () = self.feed.changed() => {}
                _ = tick.tick() => dispatch.tick(),
            }
            while let Some(Some((event, answer))) = sending.next().now_or_never() {
                dispatch.settle(&event, answer);
            }
        }
        drop(statements);
        let finishing = async {
            while let Some((event, answer)) = sending.next().await {
                dispatch.settle(&event, answer);
            }
            self.mark_rest(&dispatch).await;
        };
        tokio::select! {
            () = finishing => {}
            // What was confirmed and is not marked is published again.
            () = self.shutdown.finish_is_near(STOP_MARGIN) => {}
        }
        Ok(())
    }

    async fn send(&self, event: RecordedEvent) -> (RecordedEvent, Result<(), PublishError>) {
        let message = message(&self.exchange, &self.source, &event);
        let answer = self.publishers.of(event.partition).publish(message).await;
        (event, answer)
    }

    async fn mark_rest(&self, dispatch: &EventDispatch) {
        let unmarked = dispatch.unmarked();
        if unmarked.is_empty() || *self.database.borrow() != DatabaseState::Up {
            return;
        }
        if let Err(error) = self.mark(&unmarked).await {
            warn!(reason = chain(&error), events = unmarked.len(), "events are not marked and will be published again");
        }
    }
}
