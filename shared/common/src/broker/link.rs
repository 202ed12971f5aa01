//! One supervised connection to the broker.
//!
//! # Why not the client library's recovery?
//! It ends in a consumer that waits for ever while the connection looks connected, and it gives up after 16 failures.
//! Here a connection is never mended: it is replaced, with a new generation number, and everything that belonged to the
//! old one fails. Attempts have no end; their pauses are jittered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::{Connection, Event};
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

use super::dial::{DialError, dial};
use super::identity::IdentityError;
use super::{BrokerUser, Identity, LinkReports, Topology, TopologyError, gaps, missing};
use crate::config::BrokerSettings;
use crate::health::{Ability, CheckFailure, Health};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier};

/// For the topology, once there is a connection: a broker that has just started can leave a request unanswered for good.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// An error event can be missed only if the library has a fault; looking costs nothing.
const STATUS_POLL: Duration = Duration::from_millis(250);

/// What a user of the connection needs to know.
#[derive(Debug, Clone)]
pub enum LinkState {
    /// Not connected, and why.
    Down(String),
    /// The broker takes no messages for now (memory or disk alarm).
    Blocked(String),
    /// Connected.
    Up {
        /// The connection.
        connection: Arc<Connection>,
        /// Counts connections of this process; a channel belongs to one generation.
        generation: u64,
        /// What the users of the connection report about it.
        reports: Arc<LinkReports>,
    },
}

/// Follows the connection through its generations.
pub type Link = watch::Receiver<LinkState>;

/// Keeps a connection until the process closes, makes sure on each that what this user needs exists, and reports to `health`
/// under `name`. With an `identity` it waits until the process has joined its deployment once, because until then nobody has
/// compared its settings, and connects to the deployment's broker only.
pub fn supervise(
    shutdown: &Shutdown,
    health: &Health,
    name: &'static str,
    settings: &BrokerSettings,
    (user, identity): (BrokerUser, Option<Identity>),
) -> Link {
    health.register(name, Ability::Write);
    let (sender, receiver) = watch::channel(LinkState::Down("not connected yet".to_owned()));
    let reports = Arc::new(LinkReports::new(Topology::new(settings)));
    let (health, settings) = (health.clone(), settings.clone());
    let keeper = Keeper { name, settings, user, identity, health, reports, shutdown: shutdown.clone(), sender };
    shutdown.supervise(name, Tier::Links, keeper.keep());
    receiver
}

struct Keeper {
    name: &'static str,
    settings: BrokerSettings,
    user: BrokerUser,
    /// None for tools, which belong to no deployment.
    identity: Option<Identity>,
    health: Health,
    reports: Arc<LinkReports>,
    shutdown: Shutdown,
    sender: watch::Sender<LinkState>,
}

impl Keeper {
    async fn keep(self) -> TaskResult {
        if let Some(identity) = &self.identity {
            self.tell_down("waits until this process has joined its deployment".into());
            tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => return Ok(()),
                () = identity.joined() => {}
            }
        }
        let mut pause = FIRST_PAUSE;
        let mut generation = 0;
        loop {
            let ended = tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => return Ok(()),
                connected = self.connect() => match connected {
                    Ok((connection, mark)) => {
                        generation += 1;
                        pause = FIRST_PAUSE;
                        info!(link = self.name, generation, "connected to the broker");
                        match self.hold(connection, generation, mark).await {
                            None => return Ok(()),
                            Some(reason) => reason.within("the connection ended"),
                        }
                    }
                    Err(error) => error.check(),
                },
            };
            warn!(link = self.name, reason = %ended, "no connection to the broker");
            self.tell_down(ended);
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => return Ok(()),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Connects, and makes sure that this is the deployment's broker and has its topology. Gives the broker's mark, too.
    async fn connect(&self) -> Result<(Connection, Option<Uuid>), LinkError> {
        let connection = dial(&self.settings, self.name).await?;
        let checking = async {
            let mark = match &self.identity {
                Some(identity) => Some(identity.verify(&connection, &self.settings.prefix).await?),
                None => None,
            };
            self.reports.topology().check(&connection, self.user).await?;
            Ok::<_, LinkError>(mark)
        };
        let mark = tokio::time::timeout(CHECK_DEADLINE, checking).await.map_err(|_| LinkError::Deadline)??;
        Ok((connection, mark))
    }

    /// Watches one connection; `None` when the process closes, else why the connection ended.
    async fn hold(&self, connection: Connection, generation: u64, mark: Option<Uuid>) -> Option<CheckFailure> {
        let mut events = Box::pin(connection.events_listener());
        let connection = Arc::new(connection);
        let up = || {
            let (connection, reports) = (Arc::clone(&connection), Arc::clone(&self.reports));
            LinkState::Up { connection, generation, reports }
        };
        let replaced = async {
            match (&self.identity, mark) {
                (Some(identity), Some(mark)) => identity.replaced(mark).await,
                _ => std::future::pending().await,
            }
        };
        let mut replaced = std::pin::pin!(replaced);
        let mut watch = std::pin::pin!(gaps::watch(&connection, &self.reports, self.user));
        if connection.status().blocked() {
            self.tell_blocked("already");
        } else {
            self.tell_up(up());
        }
        loop {
            tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => {
                    let _ = tokio::time::timeout(Duration::from_secs(1), connection.close(200, "stopping".into())).await;
                    return None;
                }
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.tell_blocked(&reason),
                    Some(Event::ConnectionUnblocked) => self.tell_up(up()),
                    // Also the error of a channel, which is for the user of that channel, and ends nothing else, unless what
                    // this user needs is missing: the check of the next connection names it.
                    Some(Event::Error(error)) => {
                        let name = missing(&error);
                        let missing = name.iter().any(|name| self.reports.topology().needed_by(self.user).contains(name));
                        if let Some(name) = name {
                            gaps::note(&self.reports, &name);
                        }
                        if missing && connection.status().connected() {
                            let closing = connection.close(200, "something is missing".into());
                            let _ = tokio::time::timeout(Duration::from_secs(1), closing).await;
                        }
                        if missing || !connection.status().connected() {
                            return Some(CheckFailure::logged("the broker or the network ended it", error.to_string()));
                        }
                    }
                    None => return Some("the client library ended".into()),
                    Some(_) => {}
                },
                () = &mut watch => {}
                () = &mut replaced => {
                    // The deployment has another broker from now on, which this one may be.
                    let _ = tokio::time::timeout(Duration::from_secs(1), connection.close(200, "replaced".into())).await;
                    return Some("the deployment has another broker".into());
                }
                () = tokio::time::sleep(STATUS_POLL) => {
                    if !connection.status().connected() {
                        return Some("it is not connected any more".into());
                    }
                    if matches!(*self.sender.borrow(), LinkState::Up { .. }) {
                        self.health.set(self.name, self.reports.line().map_err(CheckFailure::from));
                    }
                }
            }
        }
    }

    fn tell_up(&self, state: LinkState) {
        self.health.set(self.name, self.reports.line().map_err(CheckFailure::from));
        self.sender.send_replace(state);
    }

    fn tell_down(&self, failure: CheckFailure) {
        let reason = failure.to_string();
        self.health.set(self.name, Err(failure));
        self.sender.send_replace(LinkState::Down(reason));
    }

    fn tell_blocked(&self, reason: &str) {
        let words = "the broker takes no messages for now";
        let failure = CheckFailure::logged(words, format!("{words} ({reason})"));
        let reason = failure.to_string();
        self.health.set(self.name, Err(failure));
        self.sender.send_replace(LinkState::Blocked(reason));
    }
}

#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the broker did not answer within {CHECK_DEADLINE:?}")]
    Deadline,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

impl LinkError {
    /// What a caller of `/readyz` may know: no address or user, and nothing that the broker or the client library says.
    fn check(&self) -> CheckFailure {
        let words = match self {
            Self::Dial(DialError::Uri(_)) => "AMQP_URL cannot be used; the log says why".to_owned(),
            Self::Dial(DialError::Connect(_)) => "the broker cannot be reached, or refuses the connection".to_owned(),
            Self::Topology(TopologyError::Access { right, resource, .. }) => {
                format!("the broker's user may not {right} the {resource}; the log has the command that grants it")
            }
            Self::Deadline | Self::Identity(_) | Self::Topology(_) => self.to_string(),
        };
        CheckFailure::caused(words, self)
    }
}
