//! Samples: what one workload came to in one round.

use std::collections::BTreeMap;

use serde::Serialize;

/// A sample. `each` is a request or, where commands are applied, a command.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    pub(super) round: u32,
    /// Answers as expected; applied commands, where they are counted.
    pub(super) per_second: f64,
    /// Of the answers.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    pub(super) errors: u64,
    /// Accepted and not applied within one second after the end of the load.
    pub(super) left: Option<u64>,
    /// Requests per second that the generator was limited to, because without it more was left.
    pub(super) limit: Option<f64>,
    /// CPU time of each process for each, in microseconds.
    pub(super) cpu_us: BTreeMap<String, f64>,
    /// Share of all cores that was used, the generator included.
    pub(super) busy: f64,
    /// Memory of each process after the load, in MiB.
    pub(super) memory_mib: BTreeMap<String, f64>,
    /// Work of PostgreSQL for each.
    pub(super) database: BTreeMap<String, f64>,
}
