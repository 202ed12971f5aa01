//! A batch of messages: sent one behind the other, and then confirmed, refused or returned.

use futures_util::FutureExt;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};

use super::{Message, PublishError, Request};

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

/// Sends the messages in their order. Each is handed to the library's I/O thread before the first one is waited for: that thread
/// writes what has gathered with one system call, and wakes this task once for all of it.
pub(super) async fn send(channel: &Channel, batch: &mut [Request]) -> Vec<Sent> {
    let handed_over = batch.iter_mut().map(|request| {
        let mut sending = Box::pin(publish(channel, &mut request.message));
        // The first poll puts the frames into the library's queue.
        match (&mut sending).now_or_never() {
            Some(sent) => Err(sent),
            None => Ok(sending),
        }
    });
    let handed_over: Vec<_> = handed_over.collect();
    let mut sends = Vec::with_capacity(handed_over.len());
    for sending in handed_over {
        sends.push(match sending {
            Ok(sending) => sending.await,
            Err(sent) => sent,
        });
    }
    sends
}

/// Publishes a message, whose properties are used up.
async fn publish(channel: &Channel, message: &mut Message) -> Sent {
    let options = BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
    let properties = std::mem::take(&mut message.properties).with_message_id(message.id.as_str().into());
    let (exchange, routing_key) = (message.exchange.as_str().into(), message.routing_key.as_str().into());
    match channel.basic_publish(exchange, routing_key, options, &message.body, properties).await {
        Ok(confirm) => Sent::Pending(confirm),
        // The library looks at the state before it writes anything.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidChannelState(..)) => Sent::Never(error.to_string()),
        Err(_) => Sent::Broken,
    }
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
