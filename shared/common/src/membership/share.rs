//! The part of one instance in the connection budget: what it asks for, what it has, and how probes and metrics tell it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Which function an instance joins by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Api,
    Worker,
}

/// What instances of a service ask of the connection budget.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    pub(super) service: Service,
    /// Shares are in proportion to it where connections are scarce.
    pub(super) weight: i32,
    /// Below this an instance is not ready.
    pub(super) floor: i32,
}

/// Reads, which are batched: few connections serve many.
pub const API: Claim = Claim { service: Service::Api, weight: 1, floor: 1 };
/// Each of its partitions can use a connection.
pub const WORKER: Claim = Claim { service: Service::Worker, weight: 2, floor: 1 };

/// How this instance stands with the connection budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It does not take part: it has not joined yet, or was reaped, or lost its control connection.
    Outside,
    /// The budget feeds no more instances.
    TurnedAway(String),
    /// It may open as many connections as it was granted.
    Member(Share),
    /// Its connections are a pooler's: it has this many, and nothing moves.
    Shareless(usize),
}

/// The part of one instance in the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// What it may have open.
    pub granted: i32,
    /// What it shall have.
    pub target: i32,
    /// What all instances together may have open, control connections included.
    pub budget: i32,
    /// How many instances share it.
    pub instances: i32,
}

impl Standing {
    /// What `/readyz` says; `away` until it asks again.
    pub(crate) fn check(&self, away: Option<Duration>) -> Result<String, String> {
        match self {
            Self::Outside => Err("takes no part in the connection budget at the moment".to_owned()),
            Self::TurnedAway(reason) => {
                Err(format!("{reason}; asks again in {:.1} s", away.unwrap_or_default().as_secs_f64()))
            }
            Self::Shareless(most) => {
                Ok(format!("may have {most} connections to a pooler, which no budget counts (DATABASE_POOL_MAX)"))
            }
            Self::Member(Share { granted: 0, budget, instances, .. }) => {
                Err(format!("waits until others have closed connections: {instances} instances share {budget}"))
            }
            Self::Member(Share { granted, budget, instances, .. }) => {
                Ok(format!("may have {granted} connections besides this one, of {budget} for {instances} instances"))
            }
        }
    }
}

/// Reports the share as metrics, for the life of the process.
pub(super) fn observe(standing: &Arc<Mutex<Standing>>) {
    let standing = Arc::clone(standing);
    crate::telemetry::meter()
        .i64_observable_gauge("rollcall.budget.connections")
        .with_description("The connection budget, this instance's part of it, and how many instances share it")
        .with_callback(move |observer| {
            let Standing::Member(share) = *standing.lock().unwrap_or_else(PoisonError::into_inner) else { return };
            for (what, number) in [
                ("total", share.budget),
                ("granted", share.granted),
                ("target", share.target),
                ("instances", share.instances),
            ] {
                observer.observe(number.into(), &[opentelemetry::KeyValue::new("what", what)]);
            }
        })
        .build();
}
