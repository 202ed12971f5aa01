//! Admission of messages: refuses what no API publishes, before it is read or applied.
//!
//! A client of the broker that may write to the exchange of commands can publish anything to any partition. With a key, what
//! is not signed is not read: its id may be another command's, and its user must not be blocked. A command in another partition
//! than its subject's is parked, because its order among the subject's commands is unknown. What is malformed or too large
//! never gets here: the filter of the connection marks it.

use common::command::{CommandKeys, Message, SIGNATURE_HEADER, UserId};
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};

use crate::incoming::IncomingMessage;

/// The message of a delivery, whose body is empty afterwards.
pub(crate) fn admit(delivery: &mut Delivery, keys: &CommandKeys) -> IncomingMessage {
    let refusal = refusal(delivery, keys);
    let message = IncomingMessage::take(delivery);
    match refusal {
        Some(reason) => {
            // What the filter replaced has lost its signature, too: the defect is the cause.
            let reason = match &message.defect {
                Some(defect) => format!("{defect}; {reason}"),
                None => reason,
            };
            IncomingMessage { content: Message::Raw(reason), ..message }
        }
        None => message,
    }
}

fn refusal(delivery: &Delivery, keys: &CommandKeys) -> Option<String> {
    let properties = &delivery.properties;
    let text = |property: &Option<ShortString>| property.as_ref().map(ShortString::to_string).unwrap_or_default();
    let signature = match properties.headers().as_ref().and_then(|headers| headers.inner().get(SIGNATURE_HEADER)) {
        Some(AMQPValue::LongString(value)) => std::str::from_utf8(value.as_bytes()).ok(),
        _ => None,
    };
    let (id, kind) = (text(properties.message_id()), text(properties.kind()));
    keys.verify(signature, &id, &kind, &delivery.data).err().map(|fault| fault.to_string())
}

/// Why a command does not belong into the partition in which it came, if it does not.
pub(crate) fn misplaced(user: Option<UserId>, partition: u16, partitions: u16) -> Option<String> {
    let own = user?.partition(partitions);
    (own != partition).then(|| {
        format!("published to partition {partition}, and the commands of its user belong to {own} of {partitions}")
    })
}
