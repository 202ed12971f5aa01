//! What the worker reads from the environment.

use std::net::SocketAddr;
use std::time::Duration;

use common::config::{Faults, Reader, SHARED, ServiceSettings, Variable};

const WORKER_LISTEN: Variable = Variable::with_default(
    "WORKER_LISTEN",
    "127.0.0.1:8081",
    "Address of the worker's /healthz, /readyz and /metrics; port 0 takes a free one.",
);
const WORKER_BATCH: Variable =
    Variable::with_default("WORKER_BATCH", "200", "Commands of one partition that one transaction applies at most.");
const WORKER_LANES: Variable = Variable::with_default(
    "WORKER_LANES",
    "1",
    "Transactions that apply commands at the same time, each over everything that waits in its share of the partitions.",
);

const WORKER_STALL_MS: Variable = Variable::with_default(
    "WORKER_STALL_MS",
    "10000",
    "How long messages may wait in an owned partition with none delivered before its channel is opened anew, then its \
     connection, then the process ends, in milliseconds.",
);
const UNKNOWN_AFTER_SECONDS: Variable = Variable::with_default(
    "UNKNOWN_AFTER_SECONDS",
    "120",
    "How long after its acceptance a command that is neither applied nor waiting gets the final status `unknown`, in seconds: \
     more than the clocks of the services may differ and a publish may take.",
);
const EVENT_SOURCE: Variable = Variable::with_default(
    "EVENT_SOURCE",
    "/rollcall",
    "The source of the change events, a URI reference: with an event's id it is unique among all that a subscriber sees.",
);
const EVENT_RETENTION_HOURS: Variable = Variable::with_default(
    "EVENT_RETENTION_HOURS",
    "24",
    "How long a change event's row is kept after it was published.",
);
const EVENT_RETRY_SECONDS: Variable = Variable::with_default(
    "EVENT_RETRY_SECONDS",
    "600",
    "How long a change event that a subscriber's full queue refuses (x-overflow=reject-publish) is tried again, with growing \
     pauses and the later events of its user behind it, before it counts as published, in seconds.",
);

/// The worker's own variables.
pub const OWN: &[&Variable] = &[
    &WORKER_LISTEN,
    &WORKER_BATCH,
    &WORKER_LANES,
    &WORKER_STALL_MS,
    &UNKNOWN_AFTER_SECONDS,
    &EVENT_SOURCE,
    &EVENT_RETENTION_HOURS,
    &EVENT_RETRY_SECONDS,
];

/// Everything the worker can be told.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// What both services have.
    pub service: ServiceSettings,
    /// Where the probes listen.
    pub listen: SocketAddr,
    /// The largest batch, and the prefetch of a partition's channel.
    pub batch: u16,
    /// How many transactions apply commands at the same time.
    pub lanes: u16,
    /// How long a partition may be without a delivery while messages wait.
    pub stall: Duration,
    /// Between the acceptance of a command that was lost and its status `unknown`.
    pub unknown_after: Duration,
    /// The source of the change events.
    pub event_source: String,
    /// How long published events are kept.
    pub event_retention: Duration,
    /// How long an event is tried that a subscriber's queue refuses.
    pub event_retry: Duration,
}

impl WorkerSettings {
    /// Reads them.
    ///
    /// # Errors
    /// All faults at once.
    pub fn read(mut reader: Reader) -> Result<Self, Faults> {
        let service = ServiceSettings::read(&mut reader);
        let listen = reader
            .parse(&WORKER_LISTEN, |text| text.parse().map_err(|_| format!("{text:?} is no address; write IP:PORT")));
        let batch = reader.number(&WORKER_BATCH, 1..=2000);
        let lanes = reader.number(&WORKER_LANES, 1..=64);
        let stall = reader.millis(&WORKER_STALL_MS, 100..=3_600_000);
        let unknown_after = reader.number(&UNKNOWN_AFTER_SECONDS, 20..=86_400_u64);
        let event_source = reader.parse(&EVENT_SOURCE, |text| match text.parse::<http::Uri>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(format!("{text:?} is no URI; write one like /rollcall or https://directory.example.org")),
        });
        let hours = reader.number(&EVENT_RETENTION_HOURS, 1..=8760_u64);
        let retry = reader.number(&EVENT_RETRY_SECONDS, 0..=86_400_u64);
        let exposures = reader.take_exposures();
        let settings = || {
            Some(Self {
                service: ServiceSettings { exposures, ..service? },
                listen: listen?,
                batch: batch?,
                lanes: lanes?,
                stall: stall?,
                unknown_after: Duration::from_secs(unknown_after?),
                event_source: event_source?,
                event_retention: Duration::from_hours(hours?),
                event_retry: Duration::from_secs(retry?),
            })
        };
        let settings = settings();
        reader.finish(settings)
    }
}

/// The environment section of `--help`.
pub fn help() -> String {
    common::config::help(&[SHARED, OWN].concat())
}
