//! Broker identity: the durable exchange by which a deployment recognises its broker, virtual host and prefix.
//!
//! # Why an exchange?
//! A worker with another `AMQP_URL` or `BROKER_PREFIX` than the API's connects, finds empty queues there and looks well,
//! while it owns partitions that it never reads. An exchange costs nothing, outlives restarts, and asking for one by name
//! (a passive declaration) changes nothing.
//!
//! # Who makes it?
//! The first process that reaches the broker, under a candidate that it made up, before it claims the deployment's row for that
//! candidate: so a mark in the row always has an exchange. Of several that do so at once, the database lets one win; the others
//! remove theirs and look for the winner's. A user without the right to declare it, as an API has one, waits for a mark.
//!
//! # What if it is missing?
//! Then this is another broker, or its data was lost, with the commands that waited in it. Nothing is published or consumed
//! until an operator has decided which: `rollcall deployment set broker` clears the mark, and the next process makes another.

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind, ExchangeKind};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;

/// What the membership knows of the broker's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// This process has not joined the deployment in its life.
    NotJoined,
    /// The deployment has no broker yet; an exchange of this name may become its mark.
    Candidate(Uuid),
    /// The deployment's broker has an exchange of this name.
    Confirmed(Uuid),
}

/// The broker connections' side. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Identity {
    mark: watch::Receiver<Mark>,
    claims: mpsc::UnboundedSender<Uuid>,
}

/// The membership's side.
#[derive(Debug)]
pub(crate) struct IdentityKeeper {
    mark: watch::Sender<Mark>,
    claims: mpsc::UnboundedReceiver<Uuid>,
}

/// Why a broker is not taken for the deployment's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error(
        "the broker has no exchange {0:?}, by which this deployment knows it; either AMQP_URL or BROKER_PREFIX leads to another \
         broker or virtual host than that of the other processes, or the broker has lost its data: correct the setting, or, \
         once it is certain that this is the broker from now on, run `rollcall deployment set broker`"
    )]
    Foreign(String),
    #[error("the deployment has no broker yet, and this user may not mark one; the first worker does")]
    Unmarked,
    #[error("failed to look for the exchange {name:?}, by which the deployment knows its broker")]
    Broker { name: String, source: lapin::Error },
}

/// Both sides, of a process that has not joined yet.
pub(crate) fn identity() -> (Identity, IdentityKeeper) {
    let (mark, marked) = watch::channel(Mark::NotJoined);
    let (claims, claimed) = mpsc::unbounded_channel();
    (Identity { mark: marked, claims }, IdentityKeeper { mark, claims: claimed })
}

impl IdentityKeeper {
    /// Says what the deployment's row has.
    pub(crate) fn set(&self, mark: Option<Uuid>) {
        self.mark.send_if_modified(|known| {
            let next = match (mark, *known) {
                (Some(mark), _) => Mark::Confirmed(mark),
                // The same candidate until there is a mark: an exchange of that name may exist already.
                (None, Mark::Candidate(candidate)) => Mark::Candidate(candidate),
                (None, _) => Mark::Candidate(Uuid::now_v7()),
            };
            let changed = next != *known;
            *known = next;
            changed
        });
    }

    /// Waits for a candidate whose exchange exists.
    pub(crate) async fn claimed(&mut self) -> Uuid {
        match self.claims.recv().await {
            Some(candidate) => candidate,
            None => std::future::pending().await,
        }
    }

    /// The same without waiting.
    pub(crate) fn claim(&mut self) -> Option<Uuid> {
        self.claims.try_recv().ok()
    }
}

impl Identity {
    /// Waits until this process has joined the deployment once.
    pub(crate) async fn joined(&self) {
        wait_for(&mut self.mark.clone(), |mark| *mark != Mark::NotJoined).await;
    }

    /// Waits until the deployment's broker is not the one with this mark any more.
    pub(crate) async fn replaced(&self, mark: Uuid) {
        wait_for(&mut self.mark.clone(), |current| *current != Mark::Confirmed(mark)).await;
    }

    /// Makes sure that this is the deployment's broker, and gives its mark; it becomes that when there is none yet.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub(crate) async fn verify(&self, connection: &Connection, prefix: &str) -> Result<Uuid, IdentityError> {
        let mut mark = self.mark.clone();
        loop {
            let current = *mark.borrow_and_update();
            match current {
                Mark::Confirmed(mark) => return look(connection, exchange(prefix, mark)).await.map(|()| mark),
                Mark::NotJoined => wait_for(&mut mark, |next| *next != current).await,
                Mark::Candidate(candidate) => {
                    let name = exchange(prefix, candidate);
                    declare(connection, &name).await?;
                    // Fails only when the process closes.
                    let _ = self.claims.send(candidate);
                    wait_for(&mut mark, |next| *next != current).await;
                    if *mark.borrow() != Mark::Confirmed(candidate) {
                        remove(connection, &name).await;
                    }
                }
            }
        }
    }
}

/// Waits for such a mark. The membership ends before the broker connections do: a mark that can no longer change ends no wait.
async fn wait_for(mark: &mut watch::Receiver<Mark>, fits: impl FnMut(&Mark) -> bool) {
    if mark.wait_for(fits).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn exchange(prefix: &str, mark: Uuid) -> String {
    format!("{prefix}deployment.{mark}")
}

async fn declare(connection: &Connection, name: &str) -> Result<(), IdentityError> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    request(connection, name, options).await.map_err(|source| match source.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == ACCESS_REFUSED => IdentityError::Unmarked,
        _ => IdentityError::Broker { name: name.to_owned(), source },
    })
}

async fn look(connection: &Connection, name: String) -> Result<(), IdentityError> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let Err(source) = request(connection, &name, options).await else { return Ok(()) };
    match source.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND => Err(IdentityError::Foreign(name)),
        _ => Err(IdentityError::Broker { name, source }),
    }
}

/// On a channel of its own, which a refusal closes.
async fn request(connection: &Connection, name: &str, options: ExchangeDeclareOptions) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, FieldTable::default()).await?;
    // Best effort: the channel ends with the connection at the latest.
    let _ = channel.close(200, "known".into()).await;
    Ok(())
}

/// Best effort: an exchange without a meaning only clutters the list.
async fn remove(connection: &Connection, name: &str) {
    if let Ok(channel) = connection.create_channel().await {
        let _ = channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await;
        let _ = channel.close(200, "removed".into()).await;
    }
}
