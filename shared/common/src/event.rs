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

/// One event as a subscriber reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
    #[serde(default)]
    pub traceparent: Option<String>,
    /// What the systems on the way added to it.
    #[serde(default)]
    pub tracestate: Option<String>,
    /// The user after the change: the representation that the API gives; of a deleted user only `id` and `version`. The
    /// version counts the user's changes, deletion included, so a subscriber that keeps state can drop what is not newer.
    pub data: serde_json::Value,
}

/// The attributes of an event that is about to be sent, borrowed from where they are kept.
#[derive(Debug, Clone, Copy)]
pub struct EventAttributes<'a> {
    /// See [`CloudEvent::id`].
    pub id: Uuid,
    /// See [`CloudEvent::source`].
    pub source: &'a str,
    /// See [`CloudEvent::type`](CloudEvent#structfield.type).
    pub kind: &'a str,
    /// See [`CloudEvent::subject`].
    pub subject: Uuid,
    /// See [`CloudEvent::time`].
    pub time: OffsetDateTime,
    /// See [`CloudEvent::traceparent`].
    pub traceparent: Option<&'a str>,
    /// See [`CloudEvent::tracestate`].
    pub tracestate: Option<&'a str>,
}

/// The members of a message before its data.
#[derive(Serialize)]
struct Head<'a> {
    specversion: &'a str,
    id: Uuid,
    source: &'a str,
    r#type: &'a str,
    subject: Uuid,
    #[serde(with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    datacontenttype: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

impl EventAttributes<'_> {
    /// The message as it is sent. `data` is JSON text, which is neither parsed nor written again.
    pub fn encode(&self, data: &str) -> Vec<u8> {
        let head = Head {
            specversion: "1.0",
            id: self.id,
            source: self.source,
            r#type: self.kind,
            subject: self.subject,
            time: self.time,
            datacontenttype: JSON,
            traceparent: self.traceparent,
            tracestate: self.tracestate,
        };
        let mut message = Vec::with_capacity(512 + data.len());
        // Cannot fail: every member is text, and the year of a change has four digits.
        let _ = serde_json::to_writer(&mut message, &head);
        message.pop();
        message.extend_from_slice(b",\"data\":");
        message.extend_from_slice(data.as_bytes());
        message.push(b'}');
        message
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
