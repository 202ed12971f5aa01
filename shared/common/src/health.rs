//! Readiness checks. Components report them, `/readyz` shows them; nothing here does I/O.
//!
//! # Why two texts of a failure?
//! Everybody may ask for `/readyz`, so it has words of our own. What a library or a server said may quote addresses, names and
//! values, and goes to the log only.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::shutdown::{Phase, Shutdown, chain};

/// What an instance cannot do while a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Answering reads.
    Read,
    /// Accepting or applying commands.
    Write,
    /// Either: nobody can be served.
    Everything,
}

/// When an instance counts as ready (`READY_WHEN`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadyWhen {
    /// All checks hold.
    #[default]
    All,
    /// It can still do one of reading and accepting.
    Any,
}

/// For so long after the start a check that fails is no warning: every part of a process takes a moment.
pub const START_ALLOWANCE: Duration = Duration::from_secs(10);

/// The checks of one process. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
    /// A check was reported.
    reported: Arc<Notify>,
    ready_when: ReadyWhen,
    shutdown: Shutdown,
    started_at: Instant,
}

/// Why a check fails: words for everybody who asks, and what the log has beyond them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckFailure {
    words: String,
    logged: Option<String>,
}

impl CheckFailure {
    /// Shows the words, and logs this text instead.
    pub fn logged(words: impl Into<String>, text: impl Into<String>) -> Self {
        Self { words: words.into(), logged: Some(text.into()) }
    }

    /// Shows what the outermost error says itself, with the SQLSTATE of its causes, and logs the whole chain.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        Self::caused(error.to_string(), error)
    }

    /// Shows the words, with the SQLSTATE of the error's causes, and logs the whole chain.
    pub fn caused(words: impl Into<String>, error: &(dyn Error + 'static)) -> Self {
        let mut words = words.into();
        let causes = std::iter::successors(Some(error), |&error| error.source());
        let mut states = causes.filter_map(|error| error.downcast_ref::<sqlx::Error>()?.as_database_error()?.code());
        if let Some(state) = states.next().filter(|state| !words.contains(&**state)) {
            words = format!("{words} (SQLSTATE {state})");
        }
        Self::logged(words, chain(error))
    }

    /// What everybody who asks may read.
    pub fn words(&self) -> &str {
        &self.words
    }

    /// The same failure, with more words around it.
    #[must_use]
    pub fn within(self, place: impl fmt::Display) -> Self {
        Self { words: format!("{place}: {}", self.words), logged: self.logged.map(|text| format!("{place}: {text}")) }
    }
}

/// For the log.
impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.logged.as_ref().unwrap_or(&self.words))
    }
}

impl From<String> for CheckFailure {
    fn from(words: String) -> Self {
        Self { words, logged: None }
    }
}

impl From<&str> for CheckFailure {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

#[derive(Debug, Clone)]
struct Check {
    ability: Ability,
    /// None before the first report.
    state: Option<Result<String, CheckFailure>>,
    /// Whether it holds, or the log has a warning that it does not.
    settled: bool,
}

impl Check {
    fn fails(&self) -> bool {
        !matches!(self.state, Some(Ok(_)))
    }
}

/// What `/readyz` answers: one line per check.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether to send this instance work.
    pub ready: bool,
    /// Each check with `ok: …` or `failed: …`.
    pub checks: BTreeMap<&'static str, String>,
}

impl Health {
    /// No checks yet.
    pub fn new(ready_when: ReadyWhen, shutdown: Shutdown) -> Self {
        let (checks, reported) = (Arc::default(), Arc::default());
        Self { checks, reported, ready_when, shutdown, started_at: Instant::now() }
    }

    /// Adds a check that fails until its first [`set`](Self::set).
    pub fn register(&self, name: &'static str, ability: Ability) {
        self.lock().insert(name, Check { ability, state: None, settled: false });
    }

    /// Reports a check; the text says how things stand. Each change is logged once, and so is a bad start.
    pub fn set(&self, name: &'static str, state: Result<String, CheckFailure>) {
        let mut checks = self.lock();
        if let Some(check) = checks.get_mut(name) {
            match (&check.state, &state) {
                (None | Some(Err(_)), Ok(detail)) => tracing::info!(check = name, detail, "check holds"),
                (None | Some(Ok(_)), Err(reason)) if self.starting() => {
                    tracing::info!(check = name, %reason, "check does not hold yet");
                }
                (Some(Ok(_)), Ok(_)) | (_, Err(_)) => {}
            }
            check.settled = state.is_ok() || (check.settled && matches!(check.state, Some(Err(_))));
            check.state = Some(state);
        }
        self.warn(&mut checks);
        drop(checks);
        self.reported.notify_waiters();
    }

    /// Waits until the instance is ready.
    pub async fn ready(&self) {
        loop {
            let reported = self.reported.notified();
            if self.report().ready {
                return;
            }
            reported.await;
        }
    }

    fn starting(&self) -> bool {
        self.started_at.elapsed() < START_ALLOWANCE
    }

    /// Logs each check that fails, once. Some part reports every second, so the end of the start needs no timer of its own.
    fn warn(&self, checks: &mut BTreeMap<&'static str, Check>) {
        if self.starting() {
            return;
        }
        for (name, check) in checks.iter_mut().filter(|(_, check)| !check.settled) {
            let reason: &dyn fmt::Display = match &check.state {
                Some(Err(reason)) => reason,
                _ => &"not checked yet",
            };
            tracing::warn!(check = name, %reason, "check fails");
            check.settled = true;
        }
    }

    /// How things stand now.
    pub fn report(&self) -> Report {
        let mut checks = self.lock();
        self.warn(&mut checks);
        let concerns = |of: Ability, ability| of == ability || of == Ability::Everything;
        let fails = |ability| checks.values().any(|c| concerns(c.ability, ability) && c.fails());
        let able = match self.ready_when {
            ReadyWhen::All => !fails(Ability::Read) && !fails(Ability::Write),
            ReadyWhen::Any => !fails(Ability::Read) || !fails(Ability::Write),
        };
        let draining = self.shutdown.phase() > Phase::Running;
        let mut lines: BTreeMap<_, _> = checks
            .iter()
            .map(|(name, check)| {
                let line = match &check.state {
                    None => "failed: not checked yet".to_owned(),
                    Some(Ok(detail)) => format!("ok: {detail}"),
                    Some(Err(reason)) => format!("failed: {}", reason.words),
                };
                (*name, line)
            })
            .collect();
        let instance = if draining { "failed: stopping" } else { "ok: running" };
        lines.insert("instance", instance.to_owned());
        Report { ready: able && !draining, checks: lines }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Check>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
