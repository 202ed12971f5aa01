//! Runs one workload and gives its sample.
//!
//! # What is counted as applied?
//! Users by the time of their transaction, which the database keeps (`created_at`): counting beside the load would take
//! from the load. So a command counts as applied when its transaction began, a batch before its commit.

use std::time::Duration;

use anyhow::{bail, ensure};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Arguments;
use super::figure;
use super::generator::{Load, Request, Volume, closed, paced};
use super::meter::{Meter, memory};
use super::raw::{self, pgbench, publishes};
use super::sample::Sample;
use super::site::Site;
use super::workload::Workload;

/// How long nothing may be applied while something waits.
const STALL_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at what is left to apply.
const POLL: Duration = Duration::from_millis(200);
/// Of the open loop.
const PACE: u32 = 200;
/// A sustained load may leave a backlog that is gone within this.
const GRACE: Duration = Duration::from_secs(1);
/// How often a sustained load that leaves more is tried again with a lower limit.
const ATTEMPTS: usize = 3;
/// The next limit, as a share of what was applied.
const REDUCTION: f64 = 0.95;
/// A backlog has no older commands than this.
const OLDEST_BACKLOG: time::Duration = time::Duration::hours(3);

pub(super) struct Runner {
    pub(super) site: Site,
    length: Duration,
    warm_up: Duration,
    connections: usize,
    users: i64,
    backlog: u64,
}

/// The table in which applied commands are counted.
#[derive(Debug, Clone, Copy)]
enum Directory {
    Rollcall,
    Express,
}

/// What was applied after a moment.
struct Applied {
    count: u64,
    /// Later than the moment that was asked for.
    late: u64,
    /// From the first transaction to the last.
    seconds: f64,
}

impl Runner {
    pub(super) fn new(site: Site, arguments: &Arguments) -> Self {
        let (length, warm_up) = (Duration::from_secs(arguments.seconds), Duration::from_secs(arguments.warm_up));
        let (connections, users, backlog) = (arguments.connections, arguments.users, arguments.backlog);
        Self { site, length, warm_up, connections, users, backlog }
    }

    pub(super) async fn run(&mut self, workload: Workload) -> anyhow::Result<Sample> {
        self.site.enter(workload.stage()).await?;
        match workload {
            Workload::Sustained => self.sustained("/v1/users", Directory::Rollcall).await,
            Workload::QueueSustained => self.sustained("/users", Directory::Express).await,
            Workload::Drain => self.drain(1).await,
            Workload::DrainTwo => self.drain(2).await,
            _ => self.answered(workload).await,
        }
    }

    /// After a failure: the next workload gets processes of its own. These may have ended already.
    pub(super) async fn reset(&mut self) {
        let _ = self.site.clear().await;
    }

    /// Every process ends, so that each round begins alike.
    pub(super) async fn end_round(&mut self) -> anyhow::Result<()> {
        self.site.clear().await
    }

    pub(super) async fn end(self) -> anyhow::Result<()> {
        self.site.end().await
    }

    /// A workload whose rate is that of its answers.
    async fn answered(&mut self, workload: Workload) -> anyhow::Result<Sample> {
        let applies = matches!(workload, Workload::Waited | Workload::WaitedOne | Workload::WaitedPaced);
        if !self.warm_up.is_zero() {
            let began = OffsetDateTime::now_utc();
            let load = self.load(workload, self.warm_up).await?;
            if applies {
                self.settle(Directory::Rollcall, began, load.answers).await?;
            }
        }
        let (began, meter) = (OffsetDateTime::now_utc(), Meter::start(&mut self.site).await?);
        let load = self.load(workload, self.length).await?;
        let usage = meter.read(&mut self.site).await?;
        ensure!(load.answers > 0, "no request was answered with success ({} errors)", load.errors);
        let sample = usage.sample(&load, figure(load.answers), load.seconds);
        if applies {
            self.settle(Directory::Rollcall, began, load.answers).await?;
        }
        Ok(sample)
    }

    async fn load(&mut self, workload: Workload, length: Duration) -> anyhow::Result<Load> {
        let all = Volume { connections: self.connections, length, limit: None };
        let one = Volume { connections: 1, ..all };
        let paths = self.site.paths(workload.stage());
        let (read, create, waited) = (Request::Read(&paths), Request::Create, Request::Waited);
        match workload {
            Workload::ExpressRead | Workload::Read => closed(&self.urls(""), read, all).await,
            Workload::ExpressInsert | Workload::QueueAccept => closed(&self.urls("/users"), create, all).await,
            Workload::ExpressInsertOne => closed(&self.urls("/users"), create, one).await,
            Workload::ExpressInsertPaced => paced(&self.url("/users"), false, PACE, length).await,
            Workload::Constant => closed(&self.urls("/healthz"), Request::Constant, all).await,
            Workload::Accept => closed(&self.urls("/v1/users"), create, all).await,
            Workload::Waited => closed(&self.urls("/v1/users"), waited, all).await,
            Workload::WaitedOne => closed(&[self.url("/v1/users")], waited, one).await,
            Workload::WaitedPaced => paced(&self.url("/v1/users"), true, PACE, length).await,
            Workload::RawSelect => pgbench(&self.site, &raw::SELECT, raw::CONNECTIONS, self.users, length).await,
            Workload::RawInsert => pgbench(&self.site, &raw::INSERT, raw::CONNECTIONS, self.users, length).await,
            Workload::RawBatches => pgbench(&self.site, &raw::BATCHES, 1, self.users, length).await,
            Workload::RawBatchesFour => pgbench(&self.site, &raw::BATCHES, 4, self.users, length).await,
            Workload::RawPublishes => publishes(&self.site, self.connections, length).await,
            Workload::Sustained | Workload::QueueSustained | Workload::Drain | Workload::DrainTwo => {
                bail!("its rate is not that of its answers")
            }
        }
    }

    fn urls(&self, path: &str) -> Vec<String> {
        self.site.bases.iter().map(|base| format!("{base}{path}")).collect()
    }

    fn url(&self, path: &str) -> String {
        self.urls(path).into_iter().next().unwrap_or_default()
    }

    /// Accepts and applies at once. When more is left at the end than is applied within a second, the load ran ahead of the
    /// worker: it is limited to what was applied, until the system keeps up.
    async fn sustained(&mut self, path: &str, directory: Directory) -> anyhow::Result<Sample> {
        let urls = self.urls(path);
        if !self.warm_up.is_zero() {
            let volume = Volume { connections: self.connections, length: self.warm_up, limit: None };
            let began = self.begin(directory).await?;
            let load = closed(&urls, Request::Create, volume).await?;
            self.settle(directory, began, load.answers).await?;
        }
        let mut limit = None;
        for attempt in 1.. {
            let volume = Volume { connections: self.connections, length: self.length, limit };
            let began = self.begin(directory).await?;
            let meter = Meter::start(&mut self.site).await?;
            let load = closed(&urls, Request::Create, volume).await?;
            let deadline = OffsetDateTime::now_utc() + GRACE;
            let memory = memory(&self.site)?;
            sleep(GRACE).await;
            self.settle(directory, began, load.answers).await?;
            let usage = meter.read(&mut self.site).await?.with_memory(memory);
            let Applied { count, late, .. } = self.applied(directory, began, deadline).await?;
            ensure!(count > 0, "nothing was applied ({} errors)", load.errors);
            let in_time = count - late;
            if late == 0 || attempt == ATTEMPTS {
                // With a backlog the grace was needed, too.
                let seconds = load.seconds + if late > 0 { GRACE.as_secs_f64() } else { 0.0 };
                let mut sample = usage.sample(&load, figure(count), load.seconds);
                sample.per_second = figure(in_time) / seconds;
                (sample.left, sample.limit) = (Some(late), limit);
                return Ok(sample);
            }
            limit = Some(REDUCTION * figure(in_time) / (load.seconds + GRACE.as_secs_f64()));
        }
        bail!("no attempt was made")
    }

    /// From the first applied command of a backlog to the last one.
    async fn drain(&mut self, workers: usize) -> anyhow::Result<Sample> {
        self.site.stop_workers().await?;
        let urls = self.urls("/v1/users");
        let volume = Volume { connections: self.connections, length: Duration::from_secs(1), limit: None };
        let broker = self.site.channel().await?;
        let mut waiting = self.site.waiting(&broker).await?;
        while waiting < self.backlog {
            ensure!(closed(&urls, Request::Create, volume).await?.answers > 0, "nothing was accepted");
            waiting = self.site.waiting(&broker).await?;
        }
        let (began, meter) = (OffsetDateTime::now_utc(), Meter::start(&mut self.site).await?);
        self.site.start_workers(workers).await?;
        let (mut left, mut changed_at) = (waiting, Instant::now());
        while left > 0 {
            sleep(POLL).await;
            let now = self.site.waiting(&broker).await?;
            if now < left {
                changed_at = Instant::now();
            }
            left = now;
            ensure!(changed_at.elapsed() < STALL_DEADLINE, "{left} of {waiting} commands wait, and none is applied");
        }
        broker.0.close(200, "done".into()).await?;
        let memory = memory(&self.site)?;
        self.settle(Directory::Rollcall, began, waiting).await?;
        let usage = meter.read(&mut self.site).await?.with_memory(memory);
        let Applied { count, seconds, .. } = self.applied(Directory::Rollcall, began, began).await?;
        let seconds = seconds.max(0.001);
        let load = Load { answers: count, seconds, p50_ms: None, p99_ms: None, errors: 0 };
        Ok(usage.sample(&load, figure(count), seconds))
    }

    /// The moment from which on applied commands are counted.
    async fn begin(&mut self, directory: Directory) -> anyhow::Result<OffsetDateTime> {
        if matches!(directory, Directory::Express) {
            sqlx::query("TRUNCATE queued_users").execute(&mut self.site.express).await?;
        }
        Ok(OffsetDateTime::now_utc())
    }

    /// Waits until so many commands are applied and no further one is: those that wrk did not await to the end are applied
    /// as well.
    async fn settle(&mut self, directory: Directory, began: OffsetDateTime, accepted: u64) -> anyhow::Result<()> {
        let (mut count, mut changed_at) = (None, Instant::now());
        loop {
            let now = self.applied(directory, began, began).await?.count;
            if count == Some(now) {
                if now >= accepted {
                    return Ok(());
                }
                ensure!(changed_at.elapsed() < STALL_DEADLINE, "only {now} of {accepted} commands were applied");
            } else {
                (count, changed_at) = (Some(now), Instant::now());
            }
            sleep(POLL).await;
        }
    }

    async fn applied(
        &mut self,
        directory: Directory,
        began: OffsetDateTime,
        deadline: OffsetDateTime,
    ) -> anyhow::Result<Applied> {
        const SELECT: &str = "SELECT
                 count(*),
                 count(*) FILTER (WHERE created_at > $2),
                 coalesce(extract(epoch FROM max(created_at) - min(created_at)), 0)::double precision";
        let query = match directory {
            // Ids of new users begin with the time at which they were accepted, which lies before that of a drain.
            Directory::Rollcall => format!("{SELECT} FROM users WHERE id >= $3 AND created_at > $1"),
            Directory::Express => format!("{SELECT} FROM queued_users WHERE id >= $3 AND created_at > $1"),
        };
        let (connection, first) = match directory {
            Directory::Rollcall => (&mut self.site.rollcall, first_id(began - OLDEST_BACKLOG)),
            // Random ids.
            Directory::Express => (&mut self.site.express, Uuid::nil()),
        };
        let query = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(began).bind(deadline).bind(first);
        let (count, late, seconds): (i64, i64, f64) = query.fetch_one(connection).await?;
        Ok(Applied { count: count.unsigned_abs(), late: late.unsigned_abs(), seconds })
    }
}

/// The lowest UUIDv7 of this time.
fn first_id(at: OffsetDateTime) -> Uuid {
    let millis = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    Uuid::from_u64_pair(millis << 16, 0)
}
