//! A small pool over sqlx's connections, as large as the lease of this instance says.
//!
//! # Why not sqlx's pool?
//! Measured on sqlx 0.9.0: a `begin()` that is cancelled leaves the session inside a transaction, and the next borrower's
//! statements are never committed; the ping on release has no deadline and keeps its permit, so one silent peer ends the
//! pool; a ping on acquire and another on release cost a third of the throughput; and the pool cannot be resized.
//!
//! # What does this one promise?
//! A connection goes back only through [`Lease::release`]. A lease that is dropped on any other way (an error, a deadline,
//! a cancelled future) closes its connection first and frees its place afterwards. Connections that the server could see
//! never exceed the size, except those in use when it shrank: they close as they come back. The connection used last is
//! used next; waiters are served in order; nothing pings. Behind a pooler that lends sessions by the transaction, a lease is
//! one transaction, and its release the commit.
//!
//! # Why does a lease run out by itself?
//! Others end this instance's sessions once its heartbeat is too old by the server's clock. A process that was frozen, or
//! is cut off, must have closed them before, by its own. And others take its share sooner when they see its control connection
//! end: so it opens nothing unless that connection answered just now.

mod places;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use self::places::{Found, Opening, Place, Places};
pub(crate) use self::places::{Heard, UNDER_WAY};
use super::connector::Connector;
use super::{DbError, Session, within};
use crate::config::DatabaseSettings;

/// The age at which a connection is replaced, so that changed DNS, roles and settings take hold.
const LIFETIME: Duration = Duration::from_mins(30);
/// Lifetimes differ by up to this, so that connections opened together do not all close together.
const LIFETIME_JITTER: Duration = Duration::from_mins(5);

/// How long the server may take to hear that a connection closes.
const CLOSE_DEADLINE: Duration = Duration::from_millis(500);
/// For the round trips by which a use begins and ends behind a pooler; the commit waits for the server's disk.
const USE_DEADLINE: Duration = Duration::from_secs(2);

/// Connections to one database. Cheap to clone; all clones are one pool.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

/// How many connections do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// How many there may be.
    pub size: usize,
    /// Open, being opened, or closed and not ended by the server yet: more than the size only while it shrinks.
    pub open: usize,
    /// Of these, those that are surely open.
    pub connected: usize,
    /// Lent out or being opened.
    pub in_use: usize,
    /// Open and waiting for work.
    pub idle: usize,
    /// Borrowers that wait for a place.
    pub waiting: usize,
}

/// One borrowed connection. [`release`](Self::release) it when its use ended cleanly; dropping it closes it.
#[derive(Debug)]
pub struct Lease {
    // Fields drop in order: the socket closes, then it no longer counts as open, then the place is free.
    open: Open,
    place: Place<Open>,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    /// What the size may be at most, whatever the lease says.
    most: usize,
    places: Arc<Places<Open>>,
}

#[derive(Debug)]
struct Open {
    session: Session,
    expires_at: Instant,
    opening: Opening<Open>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What is idle holds the places, which hold what is idle.
        drop(self.places.close());
    }
}

impl Pool {
    /// A pool of a fixed size that opens its connections when they are first needed, each with these session settings.
    ///
    /// # Errors
    /// [`DbError::Connect`] when sqlx cannot read the URL.
    pub fn new(settings: &DatabaseSettings, application_name: &str, session: &[(&str, &str)]) -> Result<Self, DbError> {
        let pool = Self::leased(settings, application_name, session)?;
        pool.resize(pool.most());
        Ok(pool)
    }

    /// A pool that lends nothing until a lease gives it a size.
    ///
    /// # Errors
    /// [`DbError::Connect`] when sqlx cannot read the URL.
    pub(crate) fn leased(
        settings: &DatabaseSettings,
        application_name: &str,
        session: &[(&str, &str)],
    ) -> Result<Self, DbError> {
        let connector = Connector::new(settings, application_name, session)?;
        let shared = Shared { connector, most: settings.connections, places: Places::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Borrows a connection, opening one when none is idle.
    ///
    /// # Errors
    /// [`DbError::Exhausted`] when none came free within `patience` or the pool is closed, else as for a connect.
    pub async fn acquire(&self, patience: Duration) -> Result<Lease, DbError> {
        let places = &self.shared.places;
        let waited = tokio::time::timeout(patience, places.acquire(|open| open.expires_at > Instant::now())).await;
        let Ok(Some((place, found))) = waited else { return Err(DbError::Exhausted(patience)) };
        let open = match found {
            Found::Idle(mut open) => {
                open.opening.busy(true);
                open
            }
            Found::Opening(opening) => {
                let open = self.open(opening, patience).await?;
                if self.shared.places.exceeded() {
                    // The lease ran out or shrank meanwhile, as it does in a process that was frozen.
                    return Err(DbError::Exhausted(patience));
                }
                open
            }
        };
        let mut lease = Lease { open, place };
        within(USE_DEADLINE, lease.open.session.begin()).await?;
        Ok(lease)
    }

    async fn open(&self, mut opening: Opening<Open>, patience: Duration) -> Result<Open, DbError> {
        let connected = tokio::select! {
            biased;
            () = self.shared.places.forsaken() => Err(DbError::Exhausted(patience)),
            connected = self.shared.connector.connect() => connected,
        };
        // Refused: there is no session whose end the server would have to notice.
        opening.busy(!matches!(connected, Err(DbError::Connect { .. })));
        let session = connected?;
        opening.connected();
        if session.pooled() {
            opening.hidden();
        }
        let jitter = LIFETIME_JITTER.mul_f64(rand::random::<f64>());
        Ok(Open { session, expires_at: Instant::now() + LIFETIME + jitter, opening })
    }

    /// Closes every idle connection: the server they led to is no longer the same.
    pub fn discard_idle(&self) {
        self.shared.places.discard_idle();
    }

    /// How the connections are used.
    pub fn status(&self) -> PoolStatus {
        self.shared.places.status()
    }

    /// Closes idle connections and lends no more; leases out close when they end.
    pub async fn close(&self) {
        let closing = self.shared.places.close().into_iter().map(async |open| {
            let Open { session, opening, .. } = open;
            let _ = tokio::time::timeout(CLOSE_DEADLINE, session.close()).await;
            drop(opening);
        });
        futures_util::future::join_all(closing).await;
    }

    /// Changes the size. What is idle beyond it closes at once, what is in use when it comes back.
    pub fn resize(&self, size: usize) {
        self.shared.places.resize(size.min(self.shared.most), None, None);
    }

    /// The same for a lease that runs out at that time. Of one that others can be given before that, connections are opened
    /// only as long as what was [`heard`](Self::heard) last counts.
    pub(crate) fn obey(&self, size: usize, until: Instant, heard: Option<Heard>) {
        self.shared.places.resize(size.min(self.shared.most), Some(until), heard);
    }

    /// Says that what was heard last counts for this long only.
    pub(crate) fn heard_for(&self, counts: Duration) {
        self.shared.places.heard_for(counts);
    }

    /// Says that the lease stood at a time, and for how long that counts.
    pub(crate) fn heard(&self, heard: Heard) {
        self.shared.places.heard(heard);
    }

    /// Takes into account what the server shows of this pool's sessions, as an answer to a question that was asked at this
    /// status and time: those that closed before and are not shown have ended, and those that are shown have not.
    pub(crate) fn correct(&self, status: PoolStatus, asked_at: Instant, sessions: usize) {
        self.shared.places.correct(status, asked_at, sessions);
    }

    /// Opens nothing more until the next resize; what is open stays, until the lease runs out.
    pub(crate) fn hold(&self) {
        self.shared.places.hold();
    }

    /// Closes everything when the lease has run out.
    pub(crate) fn expire(&self) {
        self.shared.places.expire();
    }

    /// The most borrowers and waiters at once since the last call.
    pub(crate) fn take_peak(&self) -> usize {
        self.shared.places.take_peak()
    }

    /// Waits until it has shrunk to its size; for ever, when it does not have to.
    pub(crate) async fn shrunk(&self) {
        self.shared.places.shrunk().await;
    }

    pub(crate) fn most(&self) -> usize {
        self.shared.most
    }

    /// Whether its connections were found to be a pooler's, which no lease can count.
    pub(crate) fn through_pooler(&self) -> bool {
        self.shared.connector.through_pooler()
    }
}

impl Lease {
    /// Gives the connection back. Only for a use that ended cleanly: no error, no open transaction. What was done counts
    /// once this says so.
    ///
    /// # Errors
    /// [`DbError::Statement`] or [`DbError::Deadline`] when the commit fails that a use behind a pooler ends with.
    pub async fn release(mut self) -> Result<(), DbError> {
        within(USE_DEADLINE, self.open.session.end()).await?;
        let Self { mut open, place } = self;
        open.opening.busy(false);
        place.put_back(open);
        Ok(())
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.open.session.connection()
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.open.session.connection_mut()
    }
}

/// Reports how a pool is used as metrics, for the life of the process.
pub fn observe_pool(pool: &Pool) {
    let pool = pool.clone();
    crate::telemetry::meter()
        .u64_observable_gauge("rollcall.db.pool.connections")
        .with_description("Connections of the pool, and borrowers that wait for one, by state")
        .with_callback(move |observer| {
            let PoolStatus { size, open, in_use, idle, waiting, .. } = pool.status();
            let states = [("granted", size), ("open", open), ("in_use", in_use), ("idle", idle), ("waiting", waiting)];
            for (state, count) in states {
                observer.observe(count.try_into().unwrap_or(u64::MAX), &[opentelemetry::KeyValue::new("state", state)]);
            }
        })
        .build();
}
