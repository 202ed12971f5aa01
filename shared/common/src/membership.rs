//! Membership: which partitions this instance owns, under which fencing epoch. `migrations/0003` has the protocol.
//!
//! # Why rows and not advisory locks?
//! A lock tells the database that somebody holds it; a row with an epoch lets every transaction check that it still is
//! this instance. A process that was frozen past its lease wakes up believing in it, and commits nothing.
//!
//! # Why is a lost control connection a lost membership?
//! The others see at once that its session is gone and need not wait for a clock. So this instance must stop, too.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};
use uuid::Uuid;

/// A partition that this instance owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// What every transaction on the partition checks.
    pub epoch: i64,
    /// Another instance shall have it: stop, close the channel, let go.
    pub wanted: bool,
}

/// What this instance owns, by partition.
pub type Ownership = BTreeMap<u16, Holding>;

/// What the partition loops see of the membership. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// Names this instance in the database for the life of the process.
    pub instance: Uuid,
    /// What it owns now.
    pub ownership: watch::Receiver<Ownership>,
    letting_go: mpsc::UnboundedSender<u16>,
}

/// The heartbeat's side. It lives in the database monitor, on the control connection.
#[derive(Debug)]
pub struct Member {
    instance: Uuid,
    service: &'static str,
    partitions: u16,
    epoch: Option<i64>,
    awaiting: bool,
    ownership: watch::Sender<Ownership>,
    letting_go: mpsc::UnboundedReceiver<u16>,
    let_go: BTreeSet<u16>,
}

/// Why a heartbeat failed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// The settings of this instance do not fit the deployment's: it must not take part.
    #[error("{0}; give every process of the deployment the same")]
    Misfit(String),
    /// The database did not answer, or refused.
    #[error("failed to keep up the membership")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for MembershipError {
    fn from(error: sqlx::Error) -> Self {
        // Raised by `join_membership`.
        const MISFIT: &str = "RC001";
        match error.as_database_error() {
            Some(raised) if raised.code().as_deref() == Some(MISFIT) => Self::Misfit(raised.message().to_owned()),
            _ => Self::Database(error),
        }
    }
}

/// Whether a deployment's database knows another number of partitions than this process; it knows none before the first
/// worker joined.
pub(crate) async fn check_partitions(connection: &mut PgConnection, partitions: u16) -> Result<(), MembershipError> {
    let known: i64 = sqlx::query_scalar("SELECT count(*) FROM partitions").fetch_one(connection).await?;
    if known == 0 || known == i64::from(partitions) {
        Ok(())
    } else {
        Err(MembershipError::Misfit(format!("PARTITIONS is {partitions} here, but this deployment has {known}")))
    }
}

impl Holdings {
    /// Says that a partition's channel is closed and nothing of it is under way.
    pub fn let_go(&self, partition: u16) {
        // Fails only when the process closes; then the whole membership is left.
        let _ = self.letting_go.send(partition);
    }
}

impl Member {
    /// An instance that has not joined yet.
    pub fn new(service: &'static str, partitions: u16) -> (Self, Holdings) {
        let instance = Uuid::now_v7();
        let (ownership, owned) = watch::channel(Ownership::new());
        let (sender, letting_go) = mpsc::unbounded_channel();
        let holdings = Holdings { instance, ownership: owned, letting_go: sender };
        let let_go = BTreeSet::new();
        let member = Self { instance, service, partitions, epoch: None, awaiting: true, ownership, letting_go, let_go };
        (member, holdings)
    }

    /// The name of the control connection.
    pub(crate) fn control_name(&self) -> String {
        format!("rollcall-control/{}", self.instance)
    }

    /// Waits until a partition is let go, which should not wait for the next heartbeat.
    pub(crate) async fn asked(&mut self) {
        match self.letting_go.recv().await {
            Some(partition) => {
                self.let_go.insert(partition);
            }
            None => std::future::pending().await,
        }
    }

    /// Whether something is about to come: then the next heartbeat should be soon.
    pub(crate) fn awaiting(&self) -> bool {
        self.awaiting
    }

    /// Joins, or beats; lets go what was asked for; publishes what is owned.
    pub(crate) async fn beat(&mut self, connection: &mut PgConnection) -> Result<(), MembershipError> {
        let alive = match self.epoch {
            None => false,
            Some(epoch) => {
                sqlx::query_scalar("SELECT beat_membership($1, $2)")
                    .bind(self.instance)
                    .bind(epoch)
                    .fetch_one(&mut *connection)
                    .await?
            }
        };
        if !alive {
            if self.epoch.is_some() {
                warn!(instance = %self.instance, "reaped: the heartbeat came too late");
                // One turn without anything, so that every loop stops before something is owned anew.
                self.lost();
                return Ok(());
            }
            let epoch = sqlx::query_scalar("SELECT join_membership($1, $2, $3)")
                .bind(self.instance)
                .bind(self.service)
                .bind(i32::from(self.partitions))
                .fetch_one(&mut *connection)
                .await?;
            info!(instance = %self.instance, epoch, "joined");
            self.epoch = Some(epoch);
        }
        while let Ok(partition) = self.letting_go.try_recv() {
            self.let_go.insert(partition);
        }
        if !self.let_go.is_empty() {
            let numbers: Vec<i32> = self.let_go.iter().map(|number| i32::from(*number)).collect();
            sqlx::query("SELECT release_partitions($1, $2)")
                .bind(self.instance)
                .bind(numbers)
                .execute(&mut *connection)
                .await?;
            self.let_go.clear();
        }
        let rows: Vec<(i32, i64, bool, bool)> = sqlx::query_as(
            "SELECT number, epoch, heir IS NOT NULL, owner IS NOT DISTINCT FROM $1
             FROM partitions
             WHERE $1 IN (owner, heir)",
        )
        .bind(self.instance)
        .fetch_all(connection)
        .await?;
        self.awaiting = rows.iter().any(|(.., owned)| !owned);
        let owned = rows.into_iter().filter(|(.., owned)| *owned);
        // Numbers come from a u16.
        let holding = |(number, epoch, wanted, _)| Some((u16::try_from(number).ok()?, Holding { epoch, wanted }));
        self.publish(owned.filter_map(holding).collect());
        Ok(())
    }

    /// Stops everything: somebody else may own it by now.
    pub(crate) fn lost(&mut self) {
        self.epoch = None;
        self.awaiting = true;
        self.let_go.clear();
        self.publish(Ownership::new());
    }

    /// Leaves for good.
    pub(crate) async fn leave(&mut self, connection: &mut PgConnection) -> Result<(), MembershipError> {
        if self.epoch.take().is_some() {
            sqlx::query("SELECT leave_membership($1)").bind(self.instance).execute(connection).await?;
        }
        Ok(())
    }

    fn publish(&self, ownership: Ownership) {
        self.ownership.send_if_modified(|before| {
            let changed = *before != ownership;
            *before = ownership;
            changed
        });
    }
}
