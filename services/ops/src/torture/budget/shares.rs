//! How the shares stand, by the rows, and how long one takes to move.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::time::sleep;
use uuid::Uuid;

use super::EACH;
use crate::torture::system::System;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(4);

/// Who takes part, and what they may have.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Shares {
    instances: Vec<Uuid>,
    granted: i64,
    /// What is left of the budget when some is kept for arrivals.
    places: i32,
    /// What there is to share out: the budget less control connections and what is kept for arrivals.
    shared: i64,
    /// Everybody is past its first second, and has what it shall have.
    steady: bool,
}

impl Shares {
    pub(super) fn count(&self) -> usize {
        self.instances.len()
    }

    /// Nothing is on its way, and everything is granted.
    pub(super) fn settled(&self) -> bool {
        self.steady && self.granted == self.shared
    }

    /// Whether `after` is the same with one instance less, or something else happened.
    fn lost_one(&self, after: &Self) -> Option<bool> {
        let (before, now): (BTreeSet<_>, BTreeSet<_>) =
            (self.instances.iter().collect(), after.instances.iter().collect());
        let gone = before.len().checked_sub(now.len())?;
        (now.is_subset(&before) && gone <= 1).then_some(gone == 1)
    }
}

/// What became of the share of an instance that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// Everything was granted to others after this.
    After(Duration),
    /// Something else happened at the same time.
    Blurred,
    /// Not within the patience.
    Never,
}

/// Looks at the rows, over a connection that is opened again when the server comes back.
pub(super) struct Observer {
    connection: Option<PgConnection>,
}

impl Observer {
    pub(super) fn new() -> Self {
        Self { connection: None }
    }

    pub(super) async fn shares(&mut self, system: &System) -> anyhow::Result<Shares> {
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => system.database().await?,
            };
            // One that fails belonged to a server that was stopped.
            if let Ok(shares) = look(&mut connection).await {
                self.connection = Some(connection);
                return Ok(shares);
            }
        }
    }

    /// The processes of the server behind each pool.
    pub(super) async fn backends(&mut self, system: &System) -> anyhow::Result<Vec<Vec<i32>>> {
        // What it looked with last may belong to a server that was stopped.
        self.shares(system).await?;
        let Some(connection) = &mut self.connection else { return Ok(Vec::new()) };
        let backends = sqlx::query_scalar(
            "SELECT array_agg(pid)
             FROM pg_stat_activity
             WHERE application_name LIKE 'rollcall/%' AND backend_type = 'client backend'
             GROUP BY application_name",
        );
        Ok(backends.fetch_all(connection).await?)
    }

    /// How many instances the budget feeds.
    pub(super) async fn seats(&mut self, system: &System) -> anyhow::Result<usize> {
        // Before the first instance there is no budget.
        Ok(usize::try_from(self.shares(system).await?.places / EACH).unwrap_or_default())
    }

    /// Waits until the shares of so many instances have settled.
    pub(super) async fn settled(
        &mut self,
        system: &System,
        count: usize,
        patience: Duration,
    ) -> anyhow::Result<Option<Shares>> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let shares = self.shares(system).await?;
            if shares.settled() && shares.count() == count {
                return Ok(Some(shares));
            }
            sleep(INTERVAL).await;
        }
        Ok(None)
    }

    /// Waits until one instance is gone and the others have all that it had.
    pub(super) async fn moved(
        &mut self,
        system: &System,
        before: &Shares,
        since: Instant,
        patience: Duration,
    ) -> anyhow::Result<Move> {
        loop {
            let shares = self.shares(system).await?;
            match before.lost_one(&shares) {
                Some(true) if shares.granted == shares.shared => return Ok(Move::After(since.elapsed())),
                Some(_) => {}
                None => return Ok(Move::Blurred),
            }
            if since.elapsed() > patience {
                return Ok(Move::Never);
            }
            sleep(INTERVAL).await;
        }
    }
}

async fn look(connection: &mut PgConnection) -> sqlx::Result<Shares> {
    sqlx::query_as(
        "SELECT
             coalesce(array_agg(instance) FILTER (WHERE instance IS NOT NULL), '{}') AS instances,
             coalesce(sum(granted), 0) AS granted,
             budget - arrival_places(budget) AS places,
             least(budget - arrival_places(budget) - count(instance), coalesce(sum(most), 0)) AS shared,
             coalesce(bool_and(settled AND granted = target), true) AS steady
         FROM membership
         LEFT JOIN members ON true
         GROUP BY budget",
    )
    .fetch_one(connection)
    .await
}
