//! Message of a partition queue: a command, or as much of one as this build can read.
//!
//! What has a readable id has a status; what has a readable subject as well blocks it, in order. Both are looked for apart
//! from the rest of the message, so that a command of a later release, or one with a fault, cannot be overtaken.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::{CommandId, Envelope, Principal, UserId};
use crate::redaction;

/// The members of an envelope that this build understands.
const MEMBERS: [&str; 7] = ["id", "accepted_at", "principal", "if_match", "idempotency", "command", "must_understand"];
/// What a row says of a member that cannot be read.
const UNKNOWN: &str = "unknown";
/// The API mints the id and takes the time in the same moment.
const MOST_AFTER_ID: Duration = Duration::minutes(10);
/// Longer names are cut.
const LONGEST_NAME: usize = 200;

/// Why a message body is no command to this build.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No JSON, a type that is not known, or a member that is missing, wrong or not known.
    #[error("{}", redaction::json(.0))]
    Json(#[from] serde_json::Error),
    /// A member of the envelope must be understood and is not known; its name, where it can be one.
    #[error("the member {0:?} must be understood, and this release does not know it")]
    Member(String),
}

/// What the row of a command says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandHeader {
    /// The command's id.
    pub id: CommandId,
    /// The subject; none when it cannot be read.
    pub user_id: Option<UserId>,
    /// The wire name, or `unknown`.
    pub kind: String,
    /// Who sent it, or `unknown`.
    pub principal: String,
    /// When it was accepted, or else minted.
    pub accepted_at: OffsetDateTime,
}

/// A command with a readable id that this build cannot apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadCommand {
    /// What could be read.
    pub header: CommandHeader,
    /// Why the rest could not.
    pub reason: String,
}

/// A message, as far as this build understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A command.
    Command(Box<Envelope>),
    /// Has a readable id, and is not understood.
    Unread(UnreadCommand),
    /// Has no readable id, for this reason.
    Raw(String),
}

/// AMQP properties that repeat a part of the body.
#[derive(Debug, Clone, Copy, Default)]
pub struct MessageProperties<'a> {
    /// `message_id`: the command's id.
    pub message_id: Option<&'a str>,
    /// `type`: the wire name.
    pub kind: Option<&'a str>,
}

impl Message {
    /// Reads a message.
    pub fn read(body: &[u8], properties: MessageProperties<'_>) -> Self {
        let fault = match Envelope::decode(body) {
            Ok(mut envelope) => {
                envelope.accepted_at = bounded(envelope.accepted_at, envelope.id);
                return Self::Command(Box::new(envelope));
            }
            Err(fault) => fault,
        };
        match CommandHeader::find(body, properties) {
            Some(header) => Self::Unread(UnreadCommand { header, reason: format!("not understood: {fault}") }),
            None => Self::Raw(format!("undecodable: {fault}")),
        }
    }
}

impl From<&Envelope> for CommandHeader {
    fn from(envelope: &Envelope) -> Self {
        Self {
            id: envelope.id,
            user_id: Some(envelope.command.user_id()),
            kind: envelope.command.wire_name().to_owned(),
            principal: envelope.principal.as_str().to_owned(),
            accepted_at: envelope.accepted_at,
        }
    }
}

impl CommandHeader {
    /// What can be read of a command of another release, or of a faulty one.
    fn find(body: &[u8], properties: MessageProperties<'_>) -> Option<Self> {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
        let id: CommandId =
            [text("/id"), properties.message_id].into_iter().flatten().find_map(|id| id.parse().ok())?;
        let accepted_at = text("/accepted_at").and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        let principal = text("/principal").and_then(|name| Principal::parse(name).ok());
        Some(Self {
            id,
            user_id: text("/command/data/user_id").and_then(|id| id.parse().ok()),
            kind: text("/command/type").or(properties.kind).map_or_else(|| UNKNOWN.to_owned(), name),
            principal: principal.map_or_else(|| UNKNOWN.to_owned(), |principal| principal.as_str().to_owned()),
            accepted_at: accepted_at.map_or_else(|| id.minted_at(), |at| bounded(at, id)),
        })
    }
}

/// The time of acceptance, at most a little after that of the id: any publisher can have written it, and idempotency keys are
/// kept for long after it.
fn bounded(accepted_at: OffsetDateTime, id: CommandId) -> OffsetDateTime {
    accepted_at.min(id.minted_at().saturating_add(MOST_AFTER_ID))
}

/// A name that anybody can have written, where it has the form of one. Names are shown in logs and lists, so an
/// address, which has an `@`, is none.
fn name(text: &str) -> String {
    let fits = text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits { text.chars().take(LONGEST_NAME).collect() } else { UNKNOWN.to_owned() }
}

#[derive(Deserialize)]
struct Members {
    #[serde(default)]
    must_understand: Vec<String>,
    #[serde(flatten)]
    #[expect(clippy::zero_sized_map_values, reason = "members are flattened into maps only")]
    others: BTreeMap<String, IgnoredAny>,
}

/// Refuses an envelope with a member that must be understood and is not known.
pub(super) fn check_members(body: &[u8]) -> Result<(), DecodeError> {
    let Members { must_understand, others } = serde_json::from_slice(body)?;
    let conditions = others.into_keys().filter(|name| name.starts_with("if_"));
    match must_understand.into_iter().chain(conditions).find(|name| !MEMBERS.contains(&name.as_str())) {
        Some(unknown) => Err(DecodeError::Member(name(&unknown))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_acceptance_is_bounded_by_that_of_the_id() {
        let body = |id: &str, at: &str| {
            let data = r#"{"user_id":"01890a5d-ac96-774b-bcce-b302099a8057"}"#;
            format!(
                r#"{{"id":"{id}","accepted_at":"{at}","principal":"anonymous","command":{{"type":"users.delete","data":{data}}}}}"#
            )
        };
        let accepted_at = |body: &str| match Message::read(body.as_bytes(), MessageProperties::default()) {
            Message::Command(envelope) => envelope.accepted_at,
            Message::Unread(unread) => unread.header.accepted_at,
            Message::Raw(reason) => panic!("{reason}"),
        };
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let minted_at = id.parse::<CommandId>().expect("an id").minted_at();
        let honest = "2023-06-29T23:21:30Z";
        assert_eq!(accepted_at(&body(id, honest)), OffsetDateTime::parse(honest, &Rfc3339).expect("a time"));
        for text in [body(id, "9999-12-31T23:59:59Z"), body(id, "9999-12-31T23:59:59Z").replace("delete", "later")] {
            assert_eq!(accepted_at(&text), minted_at + MOST_AFTER_ID);
        }
        // No time is later than that of the latest id.
        assert_eq!(accepted_at(&body("e677d21f-d800-7000-8000-000000000000", honest)).year(), 2023);
    }
}
