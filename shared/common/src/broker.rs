//! RabbitMQ: the supervised connection, the topology, the confirmed publisher.

mod link;
mod publisher;
mod topology;

use std::time::Duration;

pub(crate) use link::dial;
pub use link::{Link, LinkState, supervise};
pub use publisher::{Message, PublishError, Publisher, PublisherPool};
pub use topology::{Topology, TopologyError};

/// A silent peer is noticed after at most two of these.
pub(crate) const HEARTBEAT_SECONDS: u16 = 5;

/// How long the broker may take to confirm a message, from the moment in which the publisher was asked.
pub const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
