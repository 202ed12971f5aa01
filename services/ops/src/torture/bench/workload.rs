//! Workloads: the closed list, in the order in which a round runs them.

use clap::ValueEnum;

/// The processes that run beside PostgreSQL and RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The tutorial's service.
    Express,
    /// Express with amqplib, without its worker.
    QueueApi,
    /// Express with amqplib and its worker.
    Queue,
    /// Rollcall's API and workers.
    Rollcall,
    /// Rollcall's API; a drain adds its workers.
    Api,
    /// None.
    Servers,
}

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Workload {
    ExpressRead,
    ExpressInsert,
    ExpressInsertOne,
    ExpressInsertPaced,
    QueueAccept,
    QueueSustained,
    Constant,
    Read,
    Sustained,
    Waited,
    WaitedOne,
    WaitedPaced,
    Accept,
    Drain,
    DrainTwo,
    RawSelect,
    RawInsert,
    RawBatches,
    RawBatchesFour,
    RawPublishes,
}

/// Who sends the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generator {
    /// wrk.
    Wrk,
    /// This process.
    Own,
    /// PostgreSQL's benchmark.
    Pgbench,
}

impl Workload {
    pub(super) fn in_order() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// As on the command line and in the JSON.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn stage(self) -> Stage {
        match self {
            Self::ExpressRead | Self::ExpressInsert | Self::ExpressInsertOne | Self::ExpressInsertPaced => {
                Stage::Express
            }
            Self::QueueAccept => Stage::QueueApi,
            Self::QueueSustained => Stage::Queue,
            Self::Constant | Self::Read | Self::Sustained | Self::Waited | Self::WaitedOne | Self::WaitedPaced => {
                Stage::Rollcall
            }
            Self::Accept | Self::Drain | Self::DrainTwo => Stage::Api,
            Self::RawSelect | Self::RawInsert | Self::RawBatches | Self::RawBatchesFour | Self::RawPublishes => {
                Stage::Servers
            }
        }
    }

    pub(super) fn generator(self) -> Generator {
        match self {
            Self::ExpressInsertPaced | Self::WaitedPaced | Self::RawPublishes => Generator::Own,
            Self::RawSelect | Self::RawInsert | Self::RawBatches | Self::RawBatchesFour => Generator::Pgbench,
            _ => Generator::Wrk,
        }
    }

    /// Whether Node.js and its packages are needed.
    pub(super) fn needs_node(self) -> bool {
        matches!(self.stage(), Stage::Express | Stage::QueueApi | Stage::Queue)
    }

    /// For the table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::ExpressRead => "Express: read one user",
            Self::ExpressInsert => "Express: insert",
            Self::ExpressInsertOne => "Express: insert, one connection",
            Self::ExpressInsertPaced => "Express: insert, 200 per second",
            Self::QueueAccept => "Express with a queue: accept, no worker",
            Self::QueueSustained => "Express with a queue: accept and apply",
            Self::Constant => "Rollcall: constant answer (/healthz)",
            Self::Read => "Rollcall: read one user",
            Self::Sustained => "Rollcall: accept and apply",
            Self::Waited => "Rollcall: waited create (201)",
            Self::WaitedOne => "Rollcall: waited create, one connection",
            Self::WaitedPaced => "Rollcall: waited create, 200 per second",
            Self::Accept => "Rollcall: accept (202), no worker",
            Self::Drain => "Rollcall: drain a backlog, one worker",
            Self::DrainTwo => "Rollcall: drain a backlog, two workers",
            Self::RawSelect => "pgbench: select one row",
            Self::RawInsert => "pgbench: insert one row",
            Self::RawBatches => "pgbench: set-based batches of 200, one connection",
            Self::RawBatchesFour => "pgbench: set-based batches of 200, four connections",
            Self::RawPublishes => "RabbitMQ: confirmed publishes",
        }
    }

    /// The workload whose rate its own is compared with.
    pub(super) fn peer(self) -> Option<Self> {
        match self {
            Self::Read | Self::Constant | Self::RawSelect => Some(Self::ExpressRead),
            Self::WaitedOne => Some(Self::ExpressInsertOne),
            Self::WaitedPaced => Some(Self::ExpressInsertPaced),
            Self::Accept
            | Self::Drain
            | Self::DrainTwo
            | Self::Sustained
            | Self::Waited
            | Self::QueueAccept
            | Self::QueueSustained
            | Self::RawInsert
            | Self::RawBatches
            | Self::RawBatchesFour
            | Self::RawPublishes => Some(Self::ExpressInsert),
            Self::ExpressRead | Self::ExpressInsert | Self::ExpressInsertOne | Self::ExpressInsertPaced => None,
        }
    }
}
