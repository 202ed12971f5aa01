//! The event contract: what subscribers are told of each change, as CloudEvents 1.0 in structured JSON.
//!
//! # Why is the event's id the command's?
//! A command makes at most one change, so its id tells repeated messages, and leads to the status of the command.
//!
//! # What may change?
//! Type names are frozen once released. Members may be added, so a subscriber has to ignore those that it does not know.
//! `tests/it/event.rs` pins the JSON.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::command::Command;

/// `datacontenttype` of every event.
const JSON: &str = "application/json";
/// The content type of the messages: attributes and data in one JSON object.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";
/// Every event type; each is the routing key of its messages too.
pub const TYPES: [&str; 5] =
    ["users.created", "users.updated", "users.deleted", "users.suspended", "users.reactivated"];

/// One event as it is published.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CloudEvent {
    /// Always `1.0`.
    pub specversion: String,
    /// The id of the command that made the change; a message with an id that was seen before is a repetition.
    pub id: Uuid,
    /// Which deployment it comes from (`EVENT_SOURCE`).
    pub source: String,
    /// One of [`TYPES`].
    pub r#type: String,
    /// The user's id.
    pub subject: Uuid,
    /// When the change was made.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Always `application/json`.
    pub datacontenttype: String,
    /// The request's trace (the extension "Distributed Tracing").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What the systems on the way added to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
    /// The user after the change: the representation that the API gives; of a deleted user only `id` and `version`. The
    /// version counts the user's changes, deletion included, so a subscriber that keeps state can drop what is not newer.
    pub data: serde_json::Value,
}

impl CloudEvent {
    /// An event without trace.
    pub fn new(id: Uuid, source: String, kind: String, subject: Uuid, data: serde_json::Value) -> Self {
        Self {
            specversion: "1.0".to_owned(),
            id,
            source,
            r#type: kind,
            subject,
            time: OffsetDateTime::now_utc(),
            datacontenttype: JSON.to_owned(),
            traceparent: None,
            tracestate: None,
            data,
        }
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        // Cannot fail: every member is text, a number or JSON already.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The type of the event that a command leads to when it succeeds.
pub fn type_of(command: &Command) -> &'static str {
    let [created, updated, deleted, suspended, reactivated] = TYPES;
    match command {
        Command::CreateUser(_) => created,
        Command::UpdateUser(_) => updated,
        Command::DeleteUser(_) => deleted,
        Command::SuspendUser(_) => suspended,
        Command::ReactivateUser(_) => reactivated,
    }
}
