//! How a process ends: the phases, the order, and the tracker that every task belongs to.
//!
//! # Why so many phases?
//! A load balancer learns of a stop only by the readiness probe, so for the drain delay an instance that is not ready must
//! still serve ([`Phase::Draining`]). Then the front stops taking work and finishes what it has ([`Phase::Stopping`]),
//! and then what serves it, such as a publisher, finishes what it was handed ([`Phase::Closing`]). Only when nothing uses
//! them any more the connections to the broker close ([`Phase::Disconnecting`]).
//!
//! # Why is there no global?
//! Tests run several services in one process.

use std::error::Error;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, warn};

use crate::redaction;

/// Where a process is on its way from serving to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// Not ready, but still accepting: the world is learning of the stop.
    Draining,
    /// No new work; work in flight is finished.
    Stopping,
    /// The front is done; what served it finishes what it was handed.
    Closing,
    /// Nobody uses the connections to the broker any more; they close.
    Disconnecting,
}

/// Which tasks end when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Takes work from outside: ends on [`Phase::Stopping`].
    Front,
    /// Serves the front: ends on [`Phase::Closing`].
    Back,
    /// Carries what the back sends: ends on [`Phase::Disconnecting`].
    Links,
}

/// How long each part of a stop may take.
#[derive(Debug, Clone, Copy)]
pub struct Graces {
    /// Between "not ready" and the last accepted request.
    pub drain: Duration,
    /// For work in flight, and again for closing connections.
    pub finish: Duration,
}

/// What a supervised task ends with; an error takes the process down.
pub type TaskResult = Result<(), Box<dyn Error + Send + Sync>>;

/// Why a process did not end well.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A supervised task failed, panicked or ended too early.
    #[error("{0}")]
    TaskFailed(String),
    /// Work in flight did not finish within its grace.
    #[error("not finished within {grace:?}: {}", tasks.join(", "))]
    Unfinished {
        /// Which were left.
        tasks: Vec<&'static str>,
        /// What they had been given.
        grace: Duration,
    },
    /// A second signal came.
    #[error("aborted by a second signal")]
    Aborted,
    /// The signal handlers could not be set.
    #[error("failed to listen for signals")]
    Signals(#[source] std::io::Error),
}

/// The handle that every part of a process holds.
#[derive(Debug, Clone)]
pub struct Shutdown {
    phase: Arc<watch::Sender<Phase>>,
    failure: Arc<watch::Sender<Option<String>>>,
    finish_by: Arc<OnceLock<Instant>>,
    front: Tasks,
    back: Tasks,
    links: Tasks,
}

/// The tasks of one tier.
#[derive(Debug, Clone, Default)]
struct Tasks {
    tracker: TaskTracker,
    /// The names of those that run, each as often as it does.
    running: Arc<Mutex<Vec<&'static str>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Running)),
            failure: Arc::new(watch::Sender::new(None)),
            finish_by: Arc::default(),
            front: Tasks::default(),
            back: Tasks::default(),
            links: Tasks::default(),
        }
    }
}

impl Shutdown {
    /// Where the process is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until `phase` or a later one.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives in self: the wait cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Ends by `margin` before the front's grace does: what is still under way then must be cut off to end in good order.
    pub async fn finish_is_near(&self, margin: Duration) {
        self.reached(Phase::Stopping).await;
        if let Some(by) = self.finish_by.get() {
            tokio::time::sleep_until(*by - margin).await;
        }
    }

    /// Runs a task for the life of the process. If it ends before its tier may, the process goes down with its error.
    pub fn supervise(&self, name: &'static str, tier: Tier, task: impl Future<Output = TaskResult> + Send + 'static) {
        let this = self.clone();
        let watched = async move {
            let end = AssertUnwindSafe(task).catch_unwind().await;
            let expected = match tier {
                Tier::Front => Phase::Stopping,
                Tier::Back => Phase::Closing,
                Tier::Links => Phase::Disconnecting,
            };
            match end {
                Ok(Ok(())) if this.phase() >= expected => {}
                Ok(Ok(())) => this.fail(format!("the task \"{name}\" ended while it was needed")),
                Ok(Err(error)) => this.fail(format!("the task \"{name}\" failed: {}", chain(&*error))),
                Err(_) => this.fail(format!("the task \"{name}\" panicked")),
            }
        };
        self.tasks(tier).spawn(name, watched.in_current_span());
    }

    /// Runs a task that may end at any time, such as one connection; a stop waits for it.
    pub fn track(&self, name: &'static str, tier: Tier, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks(tier).spawn(name, task);
    }

    /// Takes the process down with a reason.
    pub fn fail(&self, reason: String) {
        error!(reason, "stopping because of a failure");
        self.failure.send_if_modified(|first| first.is_none() && first.replace(reason).is_none());
    }

    /// Waits for a signal or a failure, then ends everything in order.
    ///
    /// # Errors
    /// When the process should exit with 1.
    pub async fn run(&self, graces: Graces) -> Result<(), StopError> {
        self.run_on(Signals::listen()?, graces).await
    }

    /// The same on signals that are listened for already.
    pub(crate) async fn run_on(&self, mut signals: Signals, graces: Graces) -> Result<(), StopError> {
        let mut failure = self.failure.subscribe();
        tokio::select! {
            name = signals.next() => info!(signal = name, "stopping"),
            _ = failure.wait_for(Option::is_some) => {}
        }
        tokio::select! {
            end = self.stop(graces) => end,
            name = signals.next() => {
                warn!(signal = name, "second signal: aborting");
                Err(StopError::Aborted)
            }
        }
    }

    /// Ends everything in order, as after a signal.
    ///
    /// # Errors
    /// See [`StopError`].
    pub async fn stop(&self, graces: Graces) -> Result<(), StopError> {
        self.phase.send_replace(Phase::Draining);
        if self.failure.borrow().is_none() {
            tokio::time::sleep(graces.drain).await;
        }
        let _ = self.finish_by.set(Instant::now() + graces.finish);
        self.phase.send_replace(Phase::Stopping);
        let front = self.front.finish(graces.finish).await;
        self.phase.send_replace(Phase::Closing);
        let back = self.back.finish(graces.finish).await;
        self.phase.send_replace(Phase::Disconnecting);
        let links = self.links.finish(graces.finish).await;
        match self.failure.borrow().clone() {
            Some(reason) => Err(StopError::TaskFailed(reason)),
            None => front.and(back).and(links),
        }
    }

    fn tasks(&self, tier: Tier) -> &Tasks {
        match tier {
            Tier::Front => &self.front,
            Tier::Back => &self.back,
            Tier::Links => &self.links,
        }
    }
}

impl Tasks {
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.running().push(name);
        let tasks = self.clone();
        self.tracker.spawn(async move {
            task.await;
            let mut running = tasks.running();
            if let Some(place) = running.iter().position(|one| *one == name) {
                running.swap_remove(place);
            }
        });
    }

    fn running(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn finish(&self, grace: Duration) -> Result<(), StopError> {
        self.tracker.close();
        let finished = tokio::time::timeout(grace, self.tracker.wait()).await;
        finished.map_err(|_| StopError::Unfinished { tasks: self.running().clone(), grace })
    }
}

/// An error with its causes, for one log line. A cause that its error quotes is written once. Texts of the database and of
/// the JSON parser come without the input that they quote, see [`redaction`].
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(said) = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error) {
            parts.push(redaction::database(said));
            break;
        }
        if let Some(fault) = cause.downcast_ref::<serde_json::Error>() {
            parts.push(redaction::json(fault));
            break;
        }
        let text = cause.to_string();
        next = cause.source();
        let quoted = next.map(ToString::to_string);
        let own = quoted.and_then(|quoted| text.strip_suffix(&quoted).map(str::to_owned)).unwrap_or(text);
        let own = own.trim_end().trim_end_matches(':');
        if !own.is_empty() {
            parts.push(own.to_owned());
        }
    }
    parts.join(": ")
}

/// SIGTERM and SIGINT, from the moment at which somebody listens: before that they end the process as they find it.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, StopError> {
        let listen = |kind| signal(kind).map_err(StopError::Signals);
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
