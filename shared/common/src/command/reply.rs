//! Reply message: what became of commands, from the worker that applied them to the API instance whose clients wait.
//!
//! # What does a reply say?
//! One message has the replies to several commands of one instance. Each names its command and carries the outcome
//! as the command's row has it, and for a change the user after it, so that the API answers without reading the
//! database. A reply without an outcome is a *hint*: the command is decided, and its row says how. A reply is sent
//! after the commit and may be lost; the row stays the truth.
//!
//! # Who can forge one?
//! With a [command key](super::CommandKeys) the worker signs replies as the API signs commands, with the name of the
//! queue as the message id, and [`REPLY_TYPE`] as the type. An API with a key takes other replies for hints.
//!
//! # What may change?
//! Members that a release does not know are ignored, and an outcome with a status that it does not know is a hint.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::CommandId;

/// The AMQP `type` of a message of replies; no command has it.
pub const REPLY_TYPE: &str = "replies";
/// Replies in one message.
const MOST_REPLIES: usize = 100;
/// Bytes of one message, well below the size at which the connection's filter cuts a body.
const LARGEST_MESSAGE: usize = 48 * 1024;
/// Of a reply without its texts; the longest has fewer.
const REPLY_SIZE: usize = 256;

/// What a worker says of one command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandReply {
    /// The command.
    pub id: CommandId,
    /// What became of it; absent when only its row says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<CommandOutcome>,
}

/// What became of a command, as its row has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CommandOutcome {
    /// How it was decided.
    pub status: OutcomeStatus,
    /// Why it was rejected or parked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was decided, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub applied_at: OffsetDateTime,
    /// The user's version after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_version: Option<i64>,
    /// The user after it, with the members of the API's representation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<RawValue>>,
}

/// How a command was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeStatus {
    /// Applied.
    Succeeded,
    /// Changed nothing.
    Rejected,
    /// Could not be applied.
    Parked,
    /// A status of another release.
    #[serde(other)]
    Unknown,
}

/// The body of a message.
#[derive(Serialize, Deserialize)]
struct Body<R> {
    replies: R,
}

impl CommandReply {
    /// Reads the body of a message.
    ///
    /// # Errors
    /// Says what cannot be read and where; the text can quote the body.
    pub fn decode_all(body: &[u8]) -> Result<Vec<Self>, serde_json::Error> {
        let Body { mut replies } = serde_json::from_slice::<Body<Vec<Self>>>(body)?;
        for reply in &mut replies {
            reply.outcome.take_if(|outcome| outcome.status == OutcomeStatus::Unknown);
        }
        Ok(replies)
    }

    /// Writes the bodies of as many messages as these replies need.
    pub fn encode_all(replies: &[Self]) -> Vec<Vec<u8>> {
        let mut bodies = Vec::with_capacity(1);
        let mut rest = replies;
        while !rest.is_empty() {
            let (replies, later) = rest.split_at(fitting(rest));
            // Strings, integers, JSON and a date within years 0 to 9999: nothing here can fail to serialise.
            bodies.push(serde_json::to_vec(&Body { replies }).unwrap_or_default());
            rest = later;
        }
        bodies
    }

    /// About how many bytes it takes, and not fewer.
    fn size(&self) -> usize {
        let texts = self.outcome.as_ref().map_or(0, |outcome| {
            // Each character of a reason can be escaped.
            let reason = outcome.reason.as_ref().map_or(0, |reason| 6 * reason.len());
            reason + outcome.user.as_ref().map_or(0, |user| user.get().len())
        });
        REPLY_SIZE + texts
    }
}

/// How many of these go into one message: one at least.
fn fitting(replies: &[CommandReply]) -> usize {
    let mut size = 0;
    let fits = |reply: &&CommandReply| {
        size += reply.size();
        size <= LARGEST_MESSAGE
    };
    replies.iter().take(MOST_REPLIES).take_while(fits).count().max(1)
}
