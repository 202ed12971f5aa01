//! Channels, and what the broker allows of them.

use lapin::{Channel, Connection, ErrorKind};

/// Why a channel was not opened.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The connection has as many as it may.
    #[error(
        "the broker allows {0} channels on a connection, and all are taken; raise `channel_max` in rabbitmq.conf, take \
         channel_max out of AMQP_URL, or start more workers"
    )]
    Limit(u16),
    /// The connection is lost, or the broker refused.
    #[error("no channel was opened")]
    Broker(#[from] lapin::Error),
}

/// Opens a channel.
///
/// # Errors
/// See [`ChannelError`].
pub async fn open_channel(connection: &Connection) -> Result<Channel, ChannelError> {
    connection.create_channel().await.map_err(|error| match error.kind() {
        ErrorKind::ChannelsLimitReached => ChannelError::Limit(connection.configuration().channel_max()),
        _ => ChannelError::Broker(error),
    })
}
