//! Messages that cannot be applied, kept for an operator with the reason.

use common::broker::{Message, PublishError, Publisher, Topology};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use uuid::Uuid;

use crate::blame::ApplyError;

/// The header that carries the reason.
pub const REASON_HEADER: &str = "x-rollcall-reason";
/// Reasons are cut here: a header is no place for a stack trace.
const LONGEST_REASON: usize = 1000;

/// Sends to the dead-letter exchange. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    publisher: Publisher,
    exchange: String,
}

impl DeadLetters {
    /// Over the publisher of the worker.
    pub fn new(publisher: Publisher, topology: &Topology) -> Self {
        Self { publisher, exchange: topology.dead_letters() }
    }

    /// Sends a message body with its reason and waits for the confirm. At least once: a kill can repeat it.
    ///
    /// # Errors
    /// [`ApplyError::Outage`]; the message is then still in its partition's queue.
    pub async fn send(&self, body: &[u8], reason: &str) -> Result<(), ApplyError> {
        let mut headers = FieldTable::default();
        let reason: String = reason.chars().take(LONGEST_REASON).collect();
        headers.insert(REASON_HEADER.into(), AMQPValue::LongString(reason.into()));
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
        // A fresh id: the body may have none, and returned messages are matched by it.
        let id = Uuid::now_v7().to_string();
        let message = Message {
            exchange: self.exchange.clone(),
            routing_key: String::new(),
            id,
            properties,
            body: body.to_vec(),
        };
        self.publisher.publish(message).await.map_err(|error: PublishError| ApplyError::Outage(error.into()))
    }
}

const PERSISTENT: u8 = 2;
