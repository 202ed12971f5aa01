//! RabbitMQ: the supervised connection, the broker's identity, the topology, its setup and rights, the confirmed publisher.

mod channel;
mod dial;
mod frames;
mod gaps;
mod identity;
mod link;
mod publisher;
mod refusal;
mod reports;
mod rights;
mod setup;
mod topology;

use std::time::Duration;

pub use channel::{ChannelError, open_channel};
pub(crate) use dial::dial;
pub use frames::{FrameDefect, LARGEST_BODY};
pub use identity::Identity;
pub(crate) use identity::{IdentityKeeper, identity};
pub use link::{Link, LinkState, supervise};
pub use publisher::{Message, PublishError, Publisher, PublisherPool};
pub use refusal::TopologyError;
use refusal::missing;
pub use reports::LinkReports;
pub use rights::{BrokerUser, Permissions, subscriber_permissions};
pub use setup::{DeclaredObject, SetupError, set_up};
pub use topology::Topology;

/// A silent peer is noticed after at most two of these.
pub(crate) const HEARTBEAT_SECONDS: u16 = 5;

/// Bytes of the largest frame: for each connection the client library keeps two buffers of 32 of these in memory, which are
/// 8 MiB with the broker's usual 128 KiB. More than the longest properties that the frame filter lets pass (16 KiB), because
/// the broker sends them in one frame whatever its size.
pub(crate) const FRAME_MAX: u32 = 20 * 1024;

/// How long the broker may take to confirm a message, from the moment in which the publisher was asked.
pub const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
