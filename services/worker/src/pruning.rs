//! Pruning: deletes what is no longer kept (idempotency keys, published events, closed dead letters, the commands of old days)
//! and makes tomorrow's table of commands.

use std::time::Duration;

use common::config::{IdempotencyWindow, Retention};
use common::db::{DbError, Pool, within};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};
use sqlx::PgConnection;
use tracing::{info, warn};

use crate::{commands, dead_letters, events, idempotency};

/// Rows of one DELETE: a few milliseconds.
pub(crate) const PRUNED_AT_ONCE: u64 = 1000;
/// Between looks.
const INTERVAL: Duration = Duration::from_mins(1);
/// Between two batches while there is more: the partitions come first.
const PAUSE: Duration = Duration::from_millis(200);
/// For a connection, and again for each statement.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is kept for how long.
pub(crate) struct Pruning {
    pub(crate) pool: Pool,
    pub(crate) window: IdempotencyWindow,
    pub(crate) events: Duration,
    pub(crate) retention: Retention,
    pub(crate) shutdown: Shutdown,
}

impl Pruning {
    /// Starts the task; it ends when the process closes.
    pub(crate) fn start(self) {
        let shutdown = self.shutdown.clone();
        shutdown.supervise("pruning", Tier::Back, self.run());
    }

    async fn run(self) -> TaskResult {
        let pruning = async {
            let mut pause = INTERVAL;
            loop {
                // Jittered, so that workers that started together do not come together.
                tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
                pause = if self.prune().await { PAUSE } else { INTERVAL };
            }
        };
        tokio::select! {
            () = self.shutdown.reached(Phase::Closing) => Ok(()),
            () = pruning => Ok(()),
        }
    }

    /// One batch of each; says whether there may be more.
    async fn prune(&self) -> bool {
        let rows = [
            self.each("prune idempotency keys", async |conn| idempotency::prune(conn, self.window).await).await,
            self.each("prune events", async |conn| events::prune(conn, self.events).await).await,
            self.each("prune dead letters", async |conn| dead_letters::prune(conn, self.retention).await).await,
        ];
        self.each("make tomorrow's table", async |conn| commands::prepare_tomorrow(conn).await.map(|()| 0)).await;
        let days = self.each("prune commands", async |conn| commands::drop_days(conn, self.retention).await).await;
        if days > 0 {
            info!(days, "dropped the commands of days that are no longer kept");
        }
        rows.into_iter().any(|deleted| deleted >= PRUNED_AT_ONCE)
    }

    /// One of them; what fails is said, and stays for the next time.
    async fn each(&self, task: &str, work: impl AsyncFnOnce(&mut PgConnection) -> Result<u64, sqlx::Error>) -> u64 {
        let pruning = async {
            let mut lease = self.pool.acquire(PATIENCE).await?;
            let pruned = within(PATIENCE, work(&mut lease)).await?;
            lease.release().await?;
            Ok::<_, DbError>(pruned)
        };
        pruning.await.unwrap_or_else(|error| {
            warn!(error = chain(&error), "failed to {task}");
            0
        })
    }
}
