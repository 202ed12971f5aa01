//! Point reads that arrive together are answered by one query.
//!
//! # Why lanes and no timer?
//! A lane takes what is waiting and asks for it. While it asks, the next reads gather; so batches grow with the load, and
//! a read that arrives alone is one query with no added wait. Before a lane asks, it lets the tasks run that are ready: their
//! reads belong to the same query, which costs the database as much for one row as for a few.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use common::db::{DbError, Pool, within};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier};
use sqlx::PgConnection;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::failed_reads::read_failed;

/// The whole of a read, from the request to the answer.
pub(crate) const READ_DEADLINE: Duration = Duration::from_millis(1500);
/// Queries of one loader that run side by side.
const LANES: usize = 2;
const LARGEST_BATCH: usize = 128;
/// Reads that wait; beyond, they are refused at once.
const QUEUE_LENGTH: usize = 4096;

/// The rows that a query found, under their ids.
pub type Rows<'c, V> = Pin<Box<dyn Future<Output = Result<Vec<(Uuid, V)>, sqlx::Error>> + Send + 'c>>;

/// A query for many ids: what is not there does not come back.
pub type Fetch<V> = for<'c> fn(&'c mut PgConnection, &'c [Uuid]) -> Rows<'c, V>;

/// Why a read gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Too many reads wait.
    #[error("too many reads wait")]
    Full,
    /// The database did not answer in time, or failed.
    #[error("the database did not answer")]
    Unavailable,
}

/// Hands reads to the lanes. Cheap to clone.
#[derive(Debug)]
pub struct Loader<V> {
    requests: mpsc::Sender<Request<V>>,
}

impl<V> Clone for Loader<V> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone() }
    }
}

#[derive(Debug)]
struct Request<V> {
    id: Uuid,
    deadline: Instant,
    answer: oneshot::Sender<Result<Option<V>, LoadError>>,
}

impl<V: Clone + Send + 'static> Loader<V> {
    /// Starts the lanes; they end when the process closes.
    pub fn start(shutdown: &Shutdown, pool: &Pool, fetch: Fetch<V>) -> Self {
        let (requests, receiver) = mpsc::channel(QUEUE_LENGTH);
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..LANES {
            let lane = Lane { receiver: Arc::clone(&receiver), pool: pool.clone(), fetch };
            shutdown.supervise("loader", Tier::Back, lane.run(shutdown.clone()));
        }
        Self { requests }
    }

    /// Reads one row; `None` when there is none.
    ///
    /// # Errors
    /// See [`LoadError`]; at the latest after the read deadline.
    pub async fn load(&self, id: Uuid) -> Result<Option<V>, LoadError> {
        let deadline = Instant::now() + READ_DEADLINE;
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request { id, deadline, answer }).map_err(|_| LoadError::Full)?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(LoadError::Unavailable),
        }
    }
}

struct Lane<V> {
    receiver: Arc<Mutex<mpsc::Receiver<Request<V>>>>,
    pool: Pool,
    fetch: Fetch<V>,
}

impl<V: Clone + Send + 'static> Lane<V> {
    async fn run(self, shutdown: Shutdown) -> TaskResult {
        loop {
            let mut batch = Vec::new();
            {
                let mut receiver = self.receiver.lock().await;
                tokio::select! {
                    // Reads that were handed over are still answered.
                    biased;
                    // Zero when nobody can ask any more; then only the end is left to wait for.
                    1.. = receiver.recv_many(&mut batch, LARGEST_BATCH) => {}
                    () = shutdown.reached(Phase::Closing) => return Ok(()),
                }
                tokio::task::yield_now().await;
                while batch.len() < LARGEST_BATCH
                    && let Ok(request) = receiver.try_recv()
                {
                    batch.push(request);
                }
            }
            self.answer(batch).await;
        }
    }

    async fn answer(&self, batch: Vec<Request<V>>) {
        let now = Instant::now();
        // Nobody waits any more for those that are late.
        let batch: Vec<_> = batch.into_iter().filter(|r| r.deadline > now && !r.answer.is_closed()).collect();
        let Some(deadline) = batch.iter().map(|request| request.deadline).max() else { return };
        let mut ids: Vec<Uuid> = batch.iter().map(|request| request.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut rows = self.query(&ids, deadline - now).await;
        if rows.as_ref().is_err_and(DbError::lost_connection) {
            // The server was restarted: what the pool holds is dead, and the read can be asked again.
            self.pool.discard_idle();
            rows = self.query(&ids, deadline - now).await;
        }
        let mut rows = rows.map_err(|error| {
            read_failed(&error);
            LoadError::Unavailable
        });
        // Nearly always each row is for one reader.
        let shared = ids.len() < batch.len();
        for Request { id, answer, .. } in batch {
            let row = rows.as_mut().map(|rows| if shared { rows.get(&id).cloned() } else { rows.remove(&id) });
            let _ = answer.send(row.map_err(|error| *error));
        }
    }

    async fn query(&self, ids: &[Uuid], deadline: Duration) -> Result<HashMap<Uuid, V>, DbError> {
        let mut lease = self.pool.acquire(deadline).await?;
        let rows = within(deadline, (self.fetch)(&mut lease, ids)).await?;
        lease.release().await?;
        Ok(rows.into_iter().collect())
    }
}
