//! Who waits for which outcome, and the queue on which the worker says "look now".
//!
//! A hint may be lost, so a waiting request also reads the row from time to time. Nothing else depends on that queue: where
//! the broker refuses it, commands are accepted and waited for without hints, and the readiness report says why.
//!
//! # How are the places shared?
//! A principal gets another place while it holds fewer than [`SHARE`] for each free one: alone it takes three quarters, and
//! however many places the others want, some stay free for a principal that has none. Where nobody has to log in there is one
//! principal, and no share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::broker::{ChannelError, Link, LinkReports, LinkState, declare_exchange, open_channel};
use common::command::{CommandId, Principal};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use common::telemetry::meter;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Connection, Consumer, ExchangeKind};
use tokio::sync::{Notify, watch};
use tracing::warn;
use uuid::Uuid;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The name in the readiness report.
const HINTS: &str = "reply hints";
/// A broker that has just started can leave a request unanswered for good.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);

/// Places that a principal may hold for each one that is free.
const SHARE: usize = 3;

/// Who waits for which command. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
struct Waiters {
    table: Arc<Mutex<Table>>,
    /// Places.
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    hints: HashMap<CommandId, Arc<Notify>>,
    /// Places that are taken, by principal; none is zero.
    held: HashMap<Principal, usize>,
    /// All of them.
    taken: usize,
}

impl Waiters {
    fn new(most: usize) -> Self {
        Self { table: Arc::default(), most }
    }

    /// Held for a look-up only, never over an await.
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The waiters of this instance. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    waiters: Waiters,
    reply_to: watch::Receiver<Option<ShortString>>,
}

/// One waiter; dropping it ends the waiting.
#[derive(Debug)]
pub(crate) struct Waiter {
    id: CommandId,
    principal: Principal,
    hint: Arc<Notify>,
    waiters: Waiters,
}

impl Waiting {
    /// Starts the task that receives hints; it ends when the process closes. At most so many wait at once.
    pub(crate) fn start(shutdown: &Shutdown, link: Link, most: usize) -> Self {
        let waiters = Waiters::new(most);
        let (sender, reply_to) = watch::channel(None);
        let receiving = receive(shutdown.clone(), link, waiters.clone(), sender);
        shutdown.supervise("reply hints", Tier::Back, receiving);
        let observed = waiters.clone();
        meter()
            .u64_observable_gauge("rollcall.api.waiting")
            .with_description("Requests that wait for an outcome")
            .with_callback(move |observer| {
                observer.observe(observed.lock().taken.try_into().unwrap_or(u64::MAX), &[]);
            })
            .build();
        let listening = reply_to.clone();
        meter()
            .u64_observable_gauge("rollcall.api.reply.hints")
            .with_description(
                "1 while the worker can say that a command is decided; without it, waiting clients learn it later",
            )
            .with_callback(move |observer| observer.observe(u64::from(listening.borrow().is_some()), &[]))
            .build();
        Self { waiters, reply_to }
    }

    /// Begins to wait; before the command is published, so that no hint comes too early. `None` when too many wait, or too
    /// many of this principal.
    pub(crate) fn enter(&self, id: CommandId, principal: &Principal) -> Option<Waiter> {
        let mut table = self.waiters.lock();
        let free = self.waiters.most - table.taken;
        let held = table.held.get(principal).copied().unwrap_or_default();
        if free == 0 || (held >= SHARE * free && !principal.is_anonymous()) {
            return None;
        }
        table.taken += 1;
        table.held.insert(principal.clone(), held + 1);
        let hint = Arc::clone(table.hints.entry(id).or_default());
        drop(table);
        Some(Waiter { id, principal: principal.clone(), hint, waiters: self.waiters.clone() })
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
        let mut table = self.waiters.lock();
        // Given back under the lock, so that of two who go at once the second sees that it is the last.
        drop(std::mem::take(&mut self.hint));
        if table.hints.get(&self.id).is_some_and(|hint| Arc::strong_count(hint) == 1) {
            table.hints.remove(&self.id);
        }
        table.taken -= 1;
        match table.held.get_mut(&self.principal) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(table.held.remove(&self.principal)),
        }
    }
}

/// Receives hints, over one connection of the link after the other.
async fn receive(
    shutdown: Shutdown,
    mut link: Link,
    waiters: Waiters,
    reply_to: watch::Sender<Option<ShortString>>,
) -> TaskResult {
    let mut pause = FIRST_PAUSE;
    loop {
        let session = async {
            // The sender lives as long as the process: the wait cannot fail.
            let state = link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.map(|state| state.clone());
            let Ok(LinkState::Up { connection, reports, .. }) = state else { return };
            let problem = match tokio::time::timeout(OPEN_DEADLINE, open(&connection, &reports)).await {
                Ok(Ok((queue, mut consumer))) => {
                    reports.auxiliary(HINTS, None);
                    reply_to.send_replace(Some(queue));
                    pause = FIRST_PAUSE;
                    while let Some(Ok(delivery)) = consumer.next().await {
                        wake(&waiters, &delivery);
                    }
                    reply_to.send_replace(None);
                    return;
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("the broker opened no queue within {OPEN_DEADLINE:?}"),
            };
            // One line for each problem, and not for each attempt.
            if reports.auxiliary(HINTS, Some(problem.clone())) {
                warn!(reason = problem, "no reply hints: clients that wait for an outcome learn it later");
            }
        };
        tokio::select! {
            () = shutdown.reached(Phase::Closing) => return Ok(()),
            () = session => {}
        }
        let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        tokio::select! {
            () = shutdown.reached(Phase::Closing) => return Ok(()),
            () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
        }
    }
}

/// Opens the queue of this instance. Its name, and that of the exchange in front of it, begin as all names of the deployment
/// do, so that rights which are limited to these are enough.
async fn open(connection: &Connection, reports: &LinkReports) -> Result<(ShortString, Consumer), ChannelError> {
    let channel = open_channel(connection).await?;
    let exchange = reports.topology().replies_exchange();
    declare_exchange(&channel, &exchange, ExchangeKind::Direct).await?;
    // Exclusive to this connection and gone with it; another name each time, because the broker may take a while to notice
    // the end of the last connection.
    let queue = ShortString::from(format!("{exchange}.{}", Uuid::now_v7()));
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.clone(), options, FieldTable::default()).await?;
    let (key, binding) = (queue.clone(), QueueBindOptions::default());
    channel.queue_bind(queue.clone(), exchange.into(), key, binding, FieldTable::default()).await?;
    // Hints need no acknowledgement: the row is the truth.
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await?;
    Ok((queue, consumer))
}

fn wake(waiters: &Waiters, delivery: &Delivery) {
    let id = delivery.properties.correlation_id().as_ref().and_then(|id| id.as_str().parse().ok());
    let Some(id): Option<CommandId> = id else { return };
    // Under the lock: a clone that outlived it would keep the last waiter from removing the entry.
    if let Some(waiter) = waiters.lock().hints.get(&id) {
        waiter.notify_waiters();
        // Kept for one that is not waiting yet because it still waits for its confirm.
        waiter.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(most: usize) -> Waiting {
        let (_, reply_to) = watch::channel(None);
        Waiting { waiters: Waiters::new(most), reply_to }
    }

    fn principal(name: &str) -> Principal {
        Principal::parse(name).expect("a principal")
    }

    #[test]
    fn whoever_goes_last_leaves_nothing_behind() {
        let (waiting, ada) = (waiting(8), principal("key:ada"));
        for _ in 0..2_000 {
            let id = CommandId::mint();
            let both = [waiting.enter(id, &ada), waiting.enter(id, &ada)].map(|waiter| waiter.expect("a place"));
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
            let table = waiting.waiters.lock();
            assert!(table.hints.is_empty() && table.held.is_empty());
            assert_eq!(table.taken, 0);
        }
    }

    #[test]
    fn no_principal_takes_every_place() {
        let waiting = waiting(48);
        let enter = |name: &str| waiting.enter(CommandId::mint(), &principal(name));
        let fill = |name: &str| std::iter::from_fn(|| enter(name)).collect::<Vec<_>>();
        let mallory = fill("key:mallory");
        assert_eq!(mallory.len(), 36);
        let second = fill("oidc:mallory");
        assert_eq!(second.len(), 9);
        let bob = enter("key:bob").expect("a place for a principal that has none");
        assert!(enter("key:mallory").is_none(), "with 36 of 48 the share is used up");
        drop((mallory, second, bob));
        // Everybody is one principal where nobody has to log in.
        assert_eq!(fill("anonymous").len(), 48);
        assert_eq!(waiting.waiters.lock().taken, 0, "all are given back");
    }

    #[test]
    fn a_single_place_can_be_taken() {
        let waiting = waiting(1);
        let place = waiting.enter(CommandId::mint(), &principal("key:ada"));
        assert!(place.is_some() && waiting.enter(CommandId::mint(), &Principal::anonymous()).is_none());
        assert!(
            Waiting { waiters: Waiters::new(0), ..waiting.clone() }
                .enter(CommandId::mint(), &Principal::anonymous())
                .is_none()
        );
    }
}
