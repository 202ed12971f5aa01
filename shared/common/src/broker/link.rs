//! One supervised connection to the broker.
//!
//! # Why not the client library's recovery?
//! It ends in a consumer that waits for ever while the connection looks connected, and it gives up after 16 failures.
//! Here a connection is never mended: it is replaced, with a new generation number, and everything that belonged to the
//! old one fails. Attempts have no end; their pauses are jittered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Topology, TopologyError};
use crate::config::BrokerSettings;
use crate::health::{Ability, Health};
use crate::shutdown::{Phase, Shutdown, TaskResult, Tier, chain};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
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
    },
}

/// Follows the connection through its generations.
pub type Link = watch::Receiver<LinkState>;

/// Keeps a connection until the process closes, declares the topology on each, and reports to `health` under `name`.
/// A queue with wrong arguments ends the process.
pub fn supervise(shutdown: &Shutdown, health: &Health, name: &'static str, settings: &BrokerSettings) -> Link {
    health.register(name, Ability::Write);
    let (sender, receiver) = watch::channel(LinkState::Down("not connected yet".to_owned()));
    let keeper =
        Keeper { name, settings: settings.clone(), health: health.clone(), shutdown: shutdown.clone(), sender };
    shutdown.supervise(name, Tier::Links, keeper.keep());
    receiver
}

struct Keeper {
    name: &'static str,
    settings: BrokerSettings,
    health: Health,
    shutdown: Shutdown,
    sender: watch::Sender<LinkState>,
}

impl Keeper {
    async fn keep(self) -> TaskResult {
        let mut pause = FIRST_PAUSE;
        let mut generation = 0;
        let mut failed = false;
        loop {
            let ended = tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => return Ok(()),
                connected = self.connect(failed) => match connected {
                    Ok(connection) => {
                        generation += 1;
                        pause = FIRST_PAUSE;
                        failed = false;
                        info!(link = self.name, generation, "connected to the broker");
                        if self.hold(connection, generation).await.is_none() {
                            return Ok(());
                        }
                        "the connection ended".to_owned()
                    }
                    Err(LinkError::Topology(fault @ TopologyError::Mismatch { .. })) => return Err(fault.into()),
                    Err(error) => {
                        failed = true;
                        chain(&error)
                    }
                },
            };
            warn!(link = self.name, reason = ended, "no connection to the broker");
            self.tell(LinkState::Down(ended));
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => return Ok(()),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Connects and declares the topology.
    async fn connect(&self, failed_before: bool) -> Result<Connection, LinkError> {
        let attempt = async {
            let connection = dial(&self.settings, self.name, failed_before).await?;
            Topology::new(&self.settings).declare(&connection).await?;
            Ok(connection)
        };
        tokio::time::timeout(CONNECT_DEADLINE, attempt).await.map_err(|_| LinkError::Deadline)?
    }

    /// Watches one connection; `None` when the process closes, else `Some` when the connection ended.
    async fn hold(&self, connection: Connection, generation: u64) -> Option<()> {
        let mut events = Box::pin(connection.events_listener());
        let connection = Arc::new(connection);
        let up = || LinkState::Up { connection: Arc::clone(&connection), generation };
        self.tell(if connection.status().blocked() { blocked("already") } else { up() });
        loop {
            tokio::select! {
                () = self.shutdown.reached(Phase::Disconnecting) => {
                    let _ = tokio::time::timeout(Duration::from_secs(1), connection.close(200, "stopping".into())).await;
                    return None;
                }
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => self.tell(blocked(&reason)),
                    Some(Event::ConnectionUnblocked) => self.tell(up()),
                    Some(Event::Error(_)) | None => return Some(()),
                    Some(_) => {}
                },
                () = tokio::time::sleep(STATUS_POLL) => if !connection.status().connected() {
                    return Some(());
                },
            }
        }
    }

    fn tell(&self, state: LinkState) {
        let check = match &state {
            LinkState::Up { .. } => Ok("connected".to_owned()),
            LinkState::Blocked(reason) | LinkState::Down(reason) => Err(reason.clone()),
        };
        self.health.set(self.name, check);
        self.sender.send_replace(state);
    }
}

/// Connects; without a deadline of its own. A careful attempt makes sure first that somebody speaks AMQP there: one of the
/// library that is given up leaves its thread and its socket behind for as long as the peer stays silent.
pub(crate) async fn dial(settings: &BrokerSettings, name: &str, careful: bool) -> Result<Connection, LinkError> {
    let uri = settings.uri().map_err(LinkError::Uri)?;
    if careful {
        greet(&uri).await?;
    }
    let properties = ConnectionProperties::default().with_connection_name(format!("rollcall {name}").into());
    let address = address_of(&uri);
    Connection::connect_uri(uri, properties).await.map_err(|source| LinkError::Connect(address, source))
}

/// Sends the protocol header and waits for the first byte of the answer. TLS begins with the client's turn, so there a
/// connection alone must do.
async fn greet(uri: &AMQPUri) -> Result<(), LinkError> {
    const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
    let address = (uri.authority.host.as_str(), uri.authority.port);
    let io = |error: std::io::Error| LinkError::Connect(address_of(uri), lapin::Error::from(error));
    let mut stream = TcpStream::connect(address).await.map_err(io)?;
    if uri.scheme == AMQPScheme::AMQP {
        stream.write_all(PROTOCOL_HEADER).await.map_err(io)?;
        stream.read_u8().await.map_err(io)?;
    }
    Ok(())
}

fn address_of(uri: &AMQPUri) -> String {
    format!("{}:{}", uri.authority.host, uri.authority.port)
}

fn blocked(reason: &str) -> LinkState {
    LinkState::Blocked(format!("the broker takes no messages for now ({reason})"))
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("AMQP_URL cannot be read: {0}")]
    Uri(String),
    #[error("failed to connect to the broker at {0}")]
    Connect(String, #[source] lapin::Error),
    #[error("the broker did not answer within {CONNECT_DEADLINE:?}")]
    Deadline,
    #[error(transparent)]
    Topology(#[from] TopologyError),
}
