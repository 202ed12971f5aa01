//! The door: those that arrive take a connection one after the other.
//!
//! # Why is there a door, and why at the broker?
//! Whoever asks the database whether there is room has taken a connection already, and a few places are all that is kept
//! for that. The broker is the only other thing that all instances share: of a queue that is exclusive, it lets one
//! connection at a time be the owner, and it ends with that connection.
//!
//! # What if the broker is away?
//! Then there is no turn, and after a random pause the instance goes on without: reads must not need the broker.

use std::time::Duration;

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::broker::dial;
use crate::config::BrokerSettings;

/// For a connection to the broker: one that is away must not keep anybody from reading.
const CONNECTED: Duration = Duration::from_secs(3);
/// Between two tries, at most.
const PAUSE: Duration = Duration::from_millis(60);
/// How long to wait for a turn: as long as many take that were started at once.
const PATIENCE: Duration = Duration::from_secs(40);
/// Those who have no turn come spread over this.
const SPREAD: Duration = Duration::from_secs(1);
/// How long a turn lasts at most: as long as the others take to close what they shall give up, one that is frozen included.
/// In a soak of 2,000 events two seconds were too short: the next one came while the place was not free again.
const TURN: Duration = Duration::from_secs(10);
/// In milliseconds: above the longest turn. Whoever is frozen with the door in its hand loses it, too.
const EXPIRES: u32 = 11_000;
/// For one answer of the broker.
const ANSWER: Duration = Duration::from_secs(1);

/// Where those that arrive queue up.
#[derive(Debug, Clone)]
pub(super) struct Door {
    settings: BrokerSettings,
}

/// The right to take a connection that nobody counts yet. It ends with a connection to the broker of its own: being refused
/// is an error, which on a link would end what else goes over it.
#[derive(Debug)]
pub(crate) struct Turn {
    connection: Connection,
    began: Instant,
}

impl Door {
    /// That of the deployment which the settings name.
    pub(super) fn new(settings: &BrokerSettings) -> Self {
        Self { settings: settings.clone() }
    }

    /// Waits until it is this instance's turn; `None` when the broker does not say whose it is.
    pub(super) async fn enter(&self) -> Option<Turn> {
        if let Ok(Some(turn)) = timeout(PATIENCE, self.queue_up()).await {
            return Some(turn);
        }
        warn!("takes a connection without a turn: the broker gives none");
        sleep(SPREAD.mul_f64(rand::random())).await;
        None
    }

    async fn queue_up(&self) -> Option<Turn> {
        let connection = timeout(CONNECTED, dial(&self.settings, "arriving")).await.ok()?.ok()?;
        loop {
            // A broker that does not answer has no door.
            if timeout(ANSWER, self.declare(&connection)).await.ok()?.is_ok() {
                return Some(Turn { connection, began: Instant::now() });
            }
            if !connection.status().connected() {
                return None;
            }
            sleep(PAUSE.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        }
    }

    /// Fails while another connection has the queue, and with it the channel.
    async fn declare(&self, connection: &Connection) -> lapin::Result<()> {
        let channel = connection.create_channel().await?;
        // Exclusive: it is one connection's. Not durable: after a restart of the broker nobody holds it.
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-expires".into(), AMQPValue::LongUInt(EXPIRES));
        channel.queue_declare(format!("{}arrivals", self.settings.prefix).into(), options, arguments).await?;
        Ok(())
    }
}

impl Turn {
    /// Whether it has lasted for too long.
    pub(crate) fn over(&self) -> bool {
        self.began.elapsed() > TURN
    }

    /// Lets the next one in. What fails here expires by itself.
    pub(crate) async fn end(self) {
        let _ = timeout(ANSWER, self.connection.close(200, "arrived".into())).await;
    }
}
