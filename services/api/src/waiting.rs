//! Requests that wait for an outcome, and the replies of the workers that end the wait.
//!
//! A reply carries the outcome, or is a hint that the row has it. It may be lost, so a waiting request also reads
//! the row from time to time. Nothing else depends on the queue of replies: where the broker refuses it, commands
//! are accepted and waited for without, and the readiness report says why.
//!
//! # How are the places shared?
//! A principal gets another place while it holds fewer than [`SHARE`] for each free one: alone it takes three quarters, and
//! however many places the others want, some stay free for a principal that has none. Where nobody has to log in there is one
//! principal, and no share.

mod replies;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::pending;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use common::broker::Link;
use common::command::{CommandId, CommandKeys, CommandOutcome, CommandReply, Principal};
use common::shutdown::{Shutdown, Tier};
use common::telemetry::meter;
use lapin::types::ShortString;
use tokio::sync::watch;

use replies::ReplyReceiver;

/// Places that a principal may hold for each one that is free.
const SHARE: usize = 3;

/// The requests that wait, by command. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
struct Waiters {
    table: Arc<Mutex<Table>>,
    /// Places.
    most: usize,
}

#[derive(Debug, Default)]
struct Table {
    commands: HashMap<CommandId, AwaitedCommand>,
    /// Places that are taken, by principal; none is zero.
    held: HashMap<Principal, usize>,
    /// All of them.
    taken: usize,
}

#[derive(Debug)]
struct AwaitedCommand {
    /// Number of waiters; never zero.
    waiters: usize,
    outcome: watch::Sender<LastOutcome>,
}

/// The outcome of a command once a reply carried it. A hint leaves it as it is, and is seen as a change all the same.
pub(crate) type LastOutcome = Option<Arc<CommandOutcome>>;

impl Waiters {
    fn new(most: usize) -> Self {
        Self { table: Arc::default(), most }
    }

    /// Held for a look-up only, never over an await.
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the replies of a message to those that wait for them.
    fn reply(&self, replies: Vec<CommandReply>) {
        let table = self.lock();
        for CommandReply { id, outcome } in replies {
            if let Some(awaited) = table.commands.get(&id) {
                awaited.outcome.send_modify(|last| {
                    if let Some(outcome) = outcome {
                        *last = Some(Arc::new(outcome));
                    }
                });
            }
        }
    }
}

/// The waiters of this instance. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    waiters: Waiters,
    keys: Arc<OnceLock<CommandKeys>>,
    reply_to: watch::Receiver<Option<ShortString>>,
}

/// One waiter; dropping it ends the waiting.
#[derive(Debug)]
pub(crate) struct Waiter {
    id: CommandId,
    principal: Principal,
    outcome: watch::Receiver<LastOutcome>,
    waiters: Waiters,
}

impl Waiting {
    /// Starts the task that receives replies; it ends when the process closes. At most so many wait at once.
    pub(crate) fn start(shutdown: &Shutdown, link: Link, most: usize) -> Self {
        let waiters = Waiters::new(most);
        let (sender, reply_to) = watch::channel(None);
        let keys = Arc::default();
        let receiver = ReplyReceiver {
            link,
            waiters: waiters.clone(),
            keys: Arc::clone(&keys),
            reply_to: sender,
            shutdown: shutdown.clone(),
        };
        shutdown.supervise("replies", Tier::Back, receiver.run());
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
                "1 while workers can reply what became of a command; without it, waiting clients learn it later",
            )
            .with_callback(move |observer| observer.observe(u64::from(listening.borrow().is_some()), &[]))
            .build();
        Self { waiters, keys, reply_to }
    }

    /// Believes only replies that are signed with one of these keys, if there are any.
    pub(crate) fn verify_with(&self, keys: CommandKeys) {
        // Set once, before the instance serves.
        let _ = self.keys.set(keys);
    }

    /// Begins to wait; before the command is published, so that no reply comes too early. `None` when too many wait, or too
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
        let awaited = table
            .commands
            .entry(id)
            .or_insert_with(|| AwaitedCommand { waiters: 0, outcome: watch::Sender::new(None) });
        awaited.waiters += 1;
        let outcome = awaited.outcome.subscribe();
        drop(table);
        Some(Waiter { id, principal: principal.clone(), outcome, waiters: self.waiters.clone() })
    }

    /// The queue for replies; none while the broker is away.
    pub(crate) fn reply_to(&self) -> Option<ShortString> {
        self.reply_to.borrow().clone()
    }
}

impl Waiter {
    /// Ends with a reply that carries the outcome, also when that came before this.
    pub(crate) async fn outcome(&self) -> Arc<CommandOutcome> {
        let mut replies = self.replies();
        let outcome = replies.wait_for(Option::is_some).await.ok().and_then(|last| last.clone());
        match outcome {
            Some(outcome) => outcome,
            // The sender stays in the table as long as this waiter.
            None => pending().await,
        }
    }

    /// Changes with every reply since the wait began, hints included.
    pub(crate) fn replies(&self) -> watch::Receiver<LastOutcome> {
        self.outcome.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut table = self.waiters.lock();
        if let Entry::Occupied(mut awaited) = table.commands.entry(self.id) {
            awaited.get_mut().waiters -= 1;
            if awaited.get().waiters == 0 {
                awaited.remove();
            }
        }
        table.taken -= 1;
        match table.held.get_mut(&self.principal) {
            Some(held) if *held > 1 => *held -= 1,
            _ => drop(table.held.remove(&self.principal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::command::OutcomeStatus;
    use futures_util::FutureExt;

    use super::*;

    fn waiting(most: usize) -> Waiting {
        let (_, reply_to) = watch::channel(None);
        Waiting { waiters: Waiters::new(most), keys: Arc::default(), reply_to }
    }

    fn reply(id: CommandId, version: Option<i64>) -> CommandReply {
        let outcome = version.map(|version| CommandOutcome {
            status: OutcomeStatus::Succeeded,
            reason: None,
            applied_at: time::OffsetDateTime::UNIX_EPOCH,
            user_version: Some(version),
            user: None,
        });
        CommandReply { id, outcome }
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
            assert!(table.commands.is_empty() && table.held.is_empty());
            assert_eq!(table.taken, 0);
        }
    }

    #[tokio::test]
    async fn every_waiter_of_a_command_gets_its_outcome() {
        let (waiting, ada, id) = (waiting(8), principal("key:ada"), CommandId::mint());
        let enter = |id| waiting.enter(id, &ada).expect("a place");
        let (first, second, other) = (enter(id), enter(id), enter(CommandId::mint()));
        waiting.waiters.reply(vec![reply(CommandId::mint(), Some(1)), reply(id, Some(2)), reply(id, None)]);
        // The third begins when the outcome is there, as a request does whose confirm comes after the reply.
        for waiter in [first, second, enter(id)] {
            assert_eq!(waiter.outcome().await.user_version, Some(2));
        }
        assert!(other.outcome().now_or_never().is_none());
        drop(other);
        assert!(waiting.waiters.lock().commands.is_empty());
    }

    #[tokio::test]
    async fn a_hint_is_a_change_without_an_outcome() {
        let (waiting, id) = (waiting(8), CommandId::mint());
        let waiter = waiting.enter(id, &principal("key:ada")).expect("a place");
        waiting.waiters.reply(vec![reply(id, None)]);
        let mut replies = waiter.replies();
        assert_eq!(replies.changed().now_or_never().map(|changed| changed.is_ok()), Some(true), "it came before");
        assert!(replies.changed().now_or_never().is_none(), "seen");
        assert!(waiter.outcome().now_or_never().is_none());
        waiting.waiters.reply(vec![reply(id, Some(1))]);
        assert!(replies.changed().now_or_never().is_some() && waiter.outcome().now_or_never().is_some());
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
