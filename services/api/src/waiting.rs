//! Who waits for which outcome, and the queue on which the worker says "look now".
//!
//! A hint may be lost, so whoever waits also looks by itself from time to time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::broker::{Link, LinkState};
use common::command::CommandId;
use common::shutdown::{Phase, Shutdown, TaskResult, Tier};
use common::telemetry::meter;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, Consumer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

const PAUSE: Duration = Duration::from_millis(500);
/// A broker that has just started can leave a request unanswered for good.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);

/// Who waits for which command. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
struct Waiters(Arc<Mutex<HashMap<CommandId, Arc<Notify>>>>);

impl Waiters {
    /// Held for a look-up only, never over an await.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CommandId, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiters of this instance. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    waiters: Waiters,
    places: Arc<Semaphore>,
    reply_to: watch::Receiver<Option<ShortString>>,
}

/// One waiter; dropping it ends the waiting.
#[derive(Debug)]
pub(crate) struct Waiter {
    id: CommandId,
    hint: Arc<Notify>,
    waiters: Waiters,
    _place: OwnedSemaphorePermit,
}

impl Waiting {
    /// Starts the task that receives hints; it ends when the process closes. At most so many wait at once.
    pub(crate) fn start(shutdown: &Shutdown, link: Link, most: usize) -> Self {
        let waiters = Waiters::default();
        let (sender, reply_to) = watch::channel(None);
        let receiving = receive(shutdown.clone(), link, waiters.clone(), sender);
        shutdown.supervise("reply hints", Tier::Back, receiving);
        let places = Arc::new(Semaphore::new(most));
        let free = Arc::clone(&places);
        meter()
            .u64_observable_gauge("rollcall.api.waiting")
            .with_description("Requests that wait for an outcome")
            .with_callback(move |observer| {
                observer.observe((most - free.available_permits()).try_into().unwrap_or(u64::MAX), &[]);
            })
            .build();
        Self { waiters, places, reply_to }
    }

    /// Begins to wait; before the command is published, so that no hint comes too early. `None` when too many wait.
    pub(crate) fn enter(&self, id: CommandId) -> Option<Waiter> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let hint = Arc::clone(self.waiters.lock().entry(id).or_default());
        Some(Waiter { id, hint, waiters: self.waiters.clone(), _place: place })
    }

    /// The queue for hints; none while the broker is away.
    pub(crate) fn reply_to(&self) -> Option<ShortString> {
        self.reply_to.borrow().clone()
    }
}

impl Waiter {
    /// Ends with the next hint.
    pub(crate) async fn hinted(&self) {
        self.hint.notified().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiters = self.waiters.lock();
        // Given back under the lock, so that of two who go at once the second sees that it is the last.
        drop(std::mem::take(&mut self.hint));
        if waiters.get(&self.id).is_some_and(|hint| Arc::strong_count(hint) == 1) {
            waiters.remove(&self.id);
        }
    }
}

async fn receive(
    shutdown: Shutdown,
    mut link: Link,
    waiters: Waiters,
    reply_to: watch::Sender<Option<ShortString>>,
) -> TaskResult {
    loop {
        let session = async {
            // The sender lives as long as the process: the wait cannot fail.
            let state = link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.map(|state| state.clone());
            let Ok(LinkState::Up { connection, .. }) = state else { return };
            match tokio::time::timeout(OPEN_DEADLINE, open(&connection)).await {
                Ok(Ok((queue, mut consumer))) => {
                    reply_to.send_replace(Some(queue));
                    while let Some(Ok(delivery)) = consumer.next().await {
                        wake(&waiters, &delivery);
                    }
                }
                Ok(Err(error)) => warn!(%error, "failed to listen for reply hints"),
                Err(_) => warn!("the broker opened no queue for reply hints in time"),
            }
            reply_to.send_replace(None);
        };
        tokio::select! {
            () = shutdown.reached(Phase::Closing) => return Ok(()),
            () = session => {}
        }
        tokio::select! {
            () = shutdown.reached(Phase::Closing) => return Ok(()),
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn open(connection: &Connection) -> lapin::Result<(ShortString, Consumer)> {
    let channel = connection.create_channel().await?;
    // Exclusive to this connection and gone with it; the broker names it anew each time.
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?.name().clone();
    // Hints need no acknowledgement: the row is the truth.
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?;
    Ok((queue, consumer))
}

fn wake(waiters: &Waiters, delivery: &Delivery) {
    let id = delivery.properties.correlation_id().as_ref().and_then(|id| id.as_str().parse().ok());
    let Some(id): Option<CommandId> = id else { return };
    // Under the lock: a clone that outlived it would keep the last waiter from removing the entry.
    if let Some(waiter) = waiters.lock().get(&id) {
        waiter.notify_waiters();
        // Kept for one that is not waiting yet because it still waits for its confirm.
        waiter.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_goes_last_leaves_nothing_behind() {
        let (_, reply_to) = watch::channel(None);
        let waiting = Waiting { waiters: Waiters::default(), places: Arc::new(Semaphore::new(4)), reply_to };
        for _ in 0..2_000 {
            let id = CommandId::mint();
            let both = [waiting.enter(id), waiting.enter(id)].map(|waiter| waiter.expect("a place"));
            let start = std::sync::Barrier::new(both.len());
            std::thread::scope(|scope| {
                for waiter in both {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        drop(waiter);
                    });
                }
            });
            assert!(waiting.waiters.lock().is_empty());
            assert_eq!(waiting.places.available_permits(), 4);
        }
    }
}
