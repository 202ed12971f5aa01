//! How the worker's parts are put together.

use common::broker::{BrokerUser, PublisherPool, Topology, supervise};
use common::config::Reader;
use common::db::{Pool, Role, monitor};
use common::health::{Ability, Health, ReadyWhen};
use common::http;
use common::membership::{Member, WORKER};
use common::shutdown::Shutdown;
use poem::EndpointExt;

use crate::apply::{Applier, Transactions};
use crate::consumption::{Applying, Consumption};
use crate::dead_letters::{Collector, observe_open};
use crate::flood::FloodGuard;
use crate::instruments::Instruments;
use crate::lanes::Lanes;
use crate::partition::Partition;
use crate::progress::ProgressWriter;
use crate::pruning::Pruning;
use crate::reach;
use crate::relay::{EventFeed, Relay};
use crate::replies::Replies;
use crate::settings::WorkerSettings;
use crate::suspects::Suspects;

/// Settings of the worker's sessions.
const SESSION: &[(&str, &str)] = &[
    // Of what is outside of a batch; a batch sets its own.
    ("lock_timeout", "5s"),
    // Longer than a batch may take, and not less because the database or the role has another default.
    ("statement_timeout", "35s"),
    // Planned once: planning costs a small batch more than its execution.
    ("plan_cache_mode", "force_generic_plan"),
    // What is planned while its table is small and never analysed would go on scanning it until autovacuum has analysed it.
    ("enable_seqscan", "off"),
    // A table that can only be scanned looks expensive then.
    ("jit", "off"),
];
/// Side by side, a user's events always through the same one.
const EVENT_PUBLISHERS: u16 = 4;

/// Runs the worker until a signal or a failure.
///
/// # Errors
/// When the settings are faulty, it cannot start, or it does not end well.
pub async fn main() -> anyhow::Result<()> {
    let settings = WorkerSettings::read(Reader::from_process())?;
    let service = settings.service.clone();
    common::process::run("rollcall-worker", &service, async |shutdown| start(shutdown, settings)).await?;
    Ok(())
}

/// Starts every part; the pool is closed last.
fn start(shutdown: &Shutdown, settings: WorkerSettings) -> anyhow::Result<Pool> {
    // First: the broker's client has threads of its own, which do not survive a failed start.
    let listener = http::listen(http::bind(settings.listen)?)?;
    let service = settings.service;
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let topology = Topology::new(&service.broker);
    let (member, holdings, pool) = Member::new(WORKER, &service, Some(&settings.event_source), SESSION)?;
    let identity = member.identity();
    let database = monitor(shutdown, &health, Ability::Write, service.control.clone(), Role::Member(Box::new(member)));
    // Two connections: the broker stops reading one that publishes when it runs short of memory, acknowledgements included.
    let user = || (BrokerUser::Worker, Some(identity.clone()));
    let consuming = supervise(shutdown, &health, "broker, consuming", &service.broker, user());
    let publishing = supervise(shutdown, &health, "broker, publishing", &service.broker, user());
    let replies = Replies::start(shutdown, publishing.clone(), service.command_keys.clone());
    let most = http::possible_connections(http::MOST_CONNECTIONS);
    let limits = http::ConnectionLimits { most, ..http::ConnectionLimits::default() };
    let probes = http::probes(&health);
    let probes = if settings.listen.ip().is_loopback() { http::host::checked(probes).boxed() } else { probes.boxed() };
    http::serve(shutdown, "probes", listener, limits, probes);

    reach::start(shutdown, consuming.clone(), holdings.clone());
    let consumption = Consumption::start(shutdown, &health, holdings.ownership.clone());
    let applying = Applying::new(&health);
    let feed = EventFeed::default();
    let relay = Relay {
        instance: holdings.instance,
        exchange: topology.events_exchange(),
        source: settings.event_source,
        patience: settings.event_retry,
        pool: pool.clone(),
        database: database.clone(),
        publishers: PublisherPool::start(shutdown, &publishing, EVENT_PUBLISHERS),
        feed: feed.clone(),
        shutdown: shutdown.clone(),
    };
    relay.start();
    Pruning {
        pool: pool.clone(),
        window: service.idempotency_window,
        events: settings.event_retention,
        retention: service.retention,
        shutdown: shutdown.clone(),
    }
    .start();
    let instruments = Instruments::new(&pool);
    let (guard, raw_guard, suspects) = (FloodGuard::default(), FloodGuard::default(), Suspects::new(pool.clone()));
    observe_open(shutdown, pool.clone(), database.clone());
    let progress = ProgressWriter {
        instance: holdings.instance,
        margin: settings.unknown_after,
        pool: pool.clone(),
        database: database.clone(),
        health: health.clone(),
        shutdown: shutdown.clone(),
    }
    .start();
    let collector = Collector {
        topology: topology.clone(),
        keys: service.command_keys.clone(),
        link: consuming.clone(),
        database: database.clone(),
        pool: pool.clone(),
        progress: progress.clone(),
        guard: FloodGuard::default(),
        health: health.clone(),
        shutdown: shutdown.clone(),
    };
    collector.start();
    let (window, partitions) = (service.idempotency_window, topology.partitions());
    let lane = |_| Transactions::new(pool.clone(), guard.clone(), window, partitions).feeding(feed.clone());
    let lanes = Lanes::start(shutdown, &instruments, &replies, (0..settings.lanes).map(lane).collect());
    for number in 0..partitions {
        let partition = Partition {
            number,
            batch: settings.batch,
            stall: settings.stall,
            stalls: 0,
            topology: topology.clone(),
            keys: service.command_keys.clone(),
            link: consuming.clone(),
            database: database.clone(),
            applier: Applier::new(pool.clone(), guard.clone(), window, partitions).feeding(feed.clone()),
            lanes: lanes.clone(),
            probing: false,
            isolated: false,
            raw_guard: raw_guard.clone(),
            suspects: suspects.clone(),
            replies: replies.clone(),
            feed: feed.clone(),
            instruments: instruments.clone(),
            applying: applying.clone(),
            progress: progress.clone(),
            consumption: consumption.clone(),
            holdings: holdings.clone(),
            shutdown: shutdown.clone(),
        };
        partition.start();
    }
    Ok(pool)
}
