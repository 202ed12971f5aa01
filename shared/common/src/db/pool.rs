//! A small pool over sqlx's connections.
//!
//! # Why not sqlx's pool?
//! Measured on sqlx 0.9.0: a `begin()` that is cancelled leaves the session inside a transaction, and the next borrower's
//! statements are never committed; the ping on release has no deadline and keeps its permit, so one silent peer ends the
//! pool; a ping on acquire and another on release cost a third of the throughput; and the pool cannot be resized.
//!
//! # What does this one promise?
//! A connection goes back only through [`Lease::release`]. A lease that is dropped on any other way (an error, a deadline,
//! a cancelled future) closes its connection first and frees its place afterwards, so open connections never exceed the
//! size. The connection used last is used next; waiters are served in order; nothing pings.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::DbError;
use super::connector::Connector;
use crate::config::DatabaseSettings;

/// The age at which a connection is replaced, so that changed DNS, roles and settings take hold.
const LIFETIME: Duration = Duration::from_mins(30);
/// Lifetimes differ by up to this, so that connections opened together do not all close together.
const LIFETIME_JITTER: Duration = Duration::from_mins(5);

/// A fixed number of connections to one database. Cheap to clone; all clones are one pool.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// How many connections do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// The size of the pool.
    pub size: usize,
    /// Lent out or being opened.
    pub in_use: usize,
    /// Open and waiting for work.
    pub idle: usize,
}

/// One borrowed connection. [`release`](Self::release) it when its use ended cleanly; dropping it closes it.
#[derive(Debug)]
pub struct Lease {
    // Declared before the permit: fields drop in order, so the socket closes before the place is free.
    open: Open,
    permit: OwnedSemaphorePermit,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    size: usize,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Open>>,
}

#[derive(Debug)]
struct Open {
    connection: PgConnection,
    expires_at: Instant,
}

impl Pool {
    /// A pool that opens its connections when they are first needed, each with these session settings.
    ///
    /// # Errors
    /// [`DbError::Connect`] when sqlx cannot read the URL.
    pub fn new(settings: &DatabaseSettings, application_name: &str, session: &[(&str, &str)]) -> Result<Self, DbError> {
        let shared = Shared {
            connector: Connector::new(settings, application_name, session)?,
            size: settings.connections,
            permits: Arc::new(Semaphore::new(settings.connections)),
            idle: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Borrows a connection, opening one when none is idle.
    ///
    /// # Errors
    /// [`DbError::Exhausted`] when none came free within `patience` or the pool is closed, else as for a connect.
    pub async fn acquire(&self, patience: Duration) -> Result<Lease, DbError> {
        let shared = Arc::clone(&self.shared);
        let waited = tokio::time::timeout(patience, Arc::clone(&shared.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = waited else { return Err(DbError::Exhausted(patience)) };
        while let Some(open) = shared.pop() {
            if open.expires_at > Instant::now() {
                return Ok(Lease { open, permit, shared });
            }
        }
        let connection = shared.connector.connect().await?;
        let jitter = LIFETIME_JITTER.mul_f64(rand::random::<f64>());
        let open = Open { connection, expires_at: Instant::now() + LIFETIME + jitter };
        Ok(Lease { open, permit, shared })
    }

    /// Closes every idle connection: the server they led to is no longer the same.
    pub fn discard_idle(&self) {
        self.shared.lock().clear();
    }

    /// How the connections are used.
    pub fn status(&self) -> PoolStatus {
        let in_use = self.shared.size.saturating_sub(self.shared.permits.available_permits());
        PoolStatus { size: self.shared.size, in_use, idle: self.shared.lock().len() }
    }

    /// Closes idle connections and lends no more; leases out close when they end.
    pub async fn close(&self) {
        self.shared.permits.close();
        while let Some(open) = self.shared.pop() {
            // The server notices a closed socket too; the message only saves it a log line.
            let _ = tokio::time::timeout(Duration::from_millis(500), open.connection.close()).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Open>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<Open> {
        self.lock().pop()
    }
}

impl Lease {
    /// Gives the connection back. Only for a use that ended cleanly: no error, no open transaction.
    pub fn release(self) {
        let Self { open, permit, shared } = self;
        // Looked up under the lock: `close` closes the permits first, so nothing is put in behind its back.
        let mut idle = shared.lock();
        if !shared.permits.is_closed() {
            idle.push(open);
        }
        drop(idle);
        // Last, so that the next borrower finds the connection.
        drop(permit);
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.open.connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.open.connection
    }
}

/// Reports how a pool is used as metrics, for the life of the process.
pub fn observe_pool(pool: &Pool) {
    let pool = pool.clone();
    crate::telemetry::meter()
        .u64_observable_gauge("rollcall.db.pool.connections")
        .with_description("Connections of the pool, by state")
        .with_callback(move |observer| {
            let PoolStatus { size, in_use, idle } = pool.status();
            for (state, count) in [("size", size), ("in_use", in_use), ("idle", idle)] {
                observer.observe(count.try_into().unwrap_or(u64::MAX), &[opentelemetry::KeyValue::new("state", state)]);
            }
        })
        .build();
}
