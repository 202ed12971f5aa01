//! What is well and what is not. Components report, `/readyz` tells; nothing here does I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::shutdown::{Phase, Shutdown};

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

/// The checks of one process. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
    ready_when: ReadyWhen,
    shutdown: Shutdown,
}

#[derive(Debug, Clone)]
struct Check {
    ability: Ability,
    /// None before the first report.
    state: Option<Result<String, String>>,
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
        Self { checks: Arc::default(), ready_when, shutdown }
    }

    /// Adds a check that fails until its first [`set`](Self::set).
    pub fn register(&self, name: &'static str, ability: Ability) {
        self.lock().insert(name, Check { ability, state: None });
    }

    /// Reports a check; the text says how things stand. Each turn is logged once, and so is a bad start.
    pub fn set(&self, name: &'static str, state: Result<String, String>) {
        let mut checks = self.lock();
        let Some(check) = checks.get_mut(name) else { return };
        match (&check.state, &state) {
            (None | Some(Err(_)), Ok(detail)) => tracing::info!(check = name, detail, "check holds"),
            (None | Some(Ok(_)), Err(reason)) => tracing::warn!(check = name, reason, "check fails"),
            (Some(Ok(_)), Ok(_)) | (Some(Err(_)), Err(_)) => {}
        }
        check.state = Some(state);
    }

    /// How things stand now.
    pub fn report(&self) -> Report {
        let checks = self.lock();
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
                    Some(Err(reason)) => format!("failed: {reason}"),
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
