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
    state: Result<String, String>,
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
        let state = Err("not checked yet".to_owned());
        self.lock().insert(name, Check { ability, state });
    }

    /// Reports a check; the text says how things stand. The first report of each turn is logged.
    pub fn set(&self, name: &'static str, state: Result<String, String>) {
        let mut checks = self.lock();
        let Some(check) = checks.get_mut(name) else { return };
        if check.state != state {
            match &state {
                Ok(detail) if check.state.is_err() => tracing::info!(check = name, detail, "check holds"),
                Err(reason) => tracing::warn!(check = name, reason, "check fails"),
                Ok(_) => {}
            }
            check.state = state;
        }
    }

    /// How things stand now.
    pub fn report(&self) -> Report {
        let checks = self.lock();
        let fails = |ability| checks.values().any(|c| c.ability == ability && c.state.is_err());
        let able = match self.ready_when {
            ReadyWhen::All => !fails(Ability::Read) && !fails(Ability::Write),
            ReadyWhen::Any => !fails(Ability::Read) || !fails(Ability::Write),
        };
        let draining = self.shutdown.phase() > Phase::Running;
        let mut lines: BTreeMap<_, _> = checks
            .iter()
            .map(|(name, check)| {
                let line = match &check.state {
                    Ok(detail) => format!("ok: {detail}"),
                    Err(reason) => format!("failed: {reason}"),
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
