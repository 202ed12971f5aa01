//! A batch of messages: sent one behind the other, and then confirmed, refused or returned.

use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};

use super::{PublishError, Request};

/// One message after its publish.
pub(super) enum Sent {
    Pending(PublisherConfirm),
    Never(String),
    Broken,
}

/// One message after its confirm, or after all hope of one.
pub(super) enum Settled {
    Confirmed(Box<Confirmation>),
    Never(String),
    Broken,
}

impl Sent {
    pub(super) async fn confirmed(self) -> Settled {
        match self {
            Self::Pending(confirm) => {
                confirm.await.map_or(Settled::Broken, |confirmation| Settled::Confirmed(Box::new(confirmation)))
            }
            Self::Never(reason) => Settled::Never(reason),
            Self::Broken => Settled::Broken,
        }
    }
}

pub(super) async fn send(channel: &Channel, batch: &[Request]) -> Vec<Sent> {
    let mut sends = Vec::with_capacity(batch.len());
    for Request { message, .. } in batch {
        let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
        let properties = message.properties.clone().with_message_id(message.id.as_str().into());
        let exchange = message.exchange.as_str().into();
        let routing_key = message.routing_key.as_str().into();
        let sent = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
        sends.push(match sent {
            Ok(confirm) => Sent::Pending(confirm),
            // The library looks at the state before it writes anything.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) => Sent::Never(error.to_string()),
            Err(_) => Sent::Broken,
        });
    }
    sends
}

/// The id of a message that no queue took.
pub(super) fn returned_id(settled: &Settled) -> Option<String> {
    let Settled::Confirmed(confirmation) = settled else { return None };
    let (Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) = &**confirmation else { return None };
    returned.delivery.properties.message_id().as_ref().map(ToString::to_string)
}

pub(super) fn judge(settled: Settled) -> Result<(), PublishError> {
    match settled {
        Settled::Confirmed(confirmation) if confirmation.is_ack() => Ok(()),
        Settled::Confirmed(confirmation) if confirmation.is_nack() => Err(PublishError::Refused),
        Settled::Never(reason) => Err(PublishError::Unavailable(reason)),
        // A confirmation that is neither cannot come on a channel in confirm mode.
        Settled::Broken | Settled::Confirmed(_) => Err(PublishError::Unknown),
    }
}
