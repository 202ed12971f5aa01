//! Messages of one batch: the bytes as they came, and what this build reads in them.

use std::collections::HashSet;

use common::broker::FrameDefect;
use common::command::{CommandHeader, CommandId, Envelope, Message, MessageProperties, UnreadCommand, UserId};
use common::telemetry::TraceHeaders;
use lapin::types::ShortString;
use time::{Date, OffsetDateTime};

/// A message with what a dead letter keeps of it.
#[derive(Debug, Clone)]
pub struct IncomingMessage {
    /// The body as it came.
    pub body: Vec<u8>,
    /// Its trace context.
    pub trace: TraceHeaders,
    /// What it says.
    pub content: Message,
    /// Why it did not arrive as it was published, if it did not.
    pub defect: Option<FrameDefect>,
    /// Queue of the API instance that has a client waiting for the outcome.
    pub reply_to: Option<ShortString>,
}

impl IncomingMessage {
    /// Reads a message. One with a defect is no command, whatever its body says: it is not what its publisher sent.
    pub fn read(
        body: Vec<u8>,
        properties: MessageProperties<'_>,
        trace: TraceHeaders,
        defect: Option<FrameDefect>,
    ) -> Self {
        let content = match (Message::read(&body, properties), &defect) {
            (content, None) => content,
            (Message::Command(envelope), Some(defect)) => {
                Message::Unread(UnreadCommand { header: envelope.as_ref().into(), reason: defect.to_string() })
            }
            (Message::Unread(unread), Some(defect)) => {
                let reason = format!("{defect}; {}", unread.reason);
                Message::Unread(UnreadCommand { reason, ..unread })
            }
            (Message::Raw(reason), Some(defect)) => Message::Raw(format!("{defect}; {reason}")),
        };
        Self { body, trace, content, defect, reply_to: None }
    }

    /// The command's id, if it can be read.
    pub fn id(&self) -> Option<CommandId> {
        match &self.content {
            Message::Command(envelope) => Some(envelope.id),
            Message::Unread(unread) => Some(unread.header.id),
            Message::Raw(_) => None,
        }
    }

    /// The user that it concerns, if that can be read.
    pub(crate) fn user_id(&self) -> Option<UserId> {
        match &self.content {
            Message::Command(envelope) => Some(envelope.command.user_id()),
            Message::Unread(unread) => unread.header.user_id,
            Message::Raw(_) => None,
        }
    }

    /// The wire name of the command, as far as it can be read.
    pub(crate) fn kind(&self) -> Option<&str> {
        match &self.content {
            Message::Command(envelope) => Some(envelope.command.wire_name()),
            Message::Unread(unread) => Some(&unread.header.kind),
            Message::Raw(_) => None,
        }
    }

    /// The command, if it is one to this build.
    pub fn envelope(&self) -> Option<&Envelope> {
        match &self.content {
            Message::Command(envelope) => Some(envelope),
            Message::Unread(_) | Message::Raw(_) => None,
        }
    }

    /// What the row of the command says of it.
    pub(crate) fn header(&self) -> Option<CommandHeader> {
        match &self.content {
            Message::Command(envelope) => Some(envelope.as_ref().into()),
            Message::Unread(unread) => Some(unread.header.clone()),
            Message::Raw(_) => None,
        }
    }
}

/// Queue of a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    pub(crate) partition: u16,
    /// When the queue was last seen empty, by the database's clock, if it was.
    pub(crate) published_after: Option<OffsetDateTime>,
}

/// A message with a readable id.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'m> {
    pub(crate) header: CommandHeader,
    pub(crate) message: &'m IncomingMessage,
    pub(crate) source: Source,
}

impl<'m> Entry<'m> {
    /// The entries of a batch, in order of arrival; one that comes twice counts once.
    pub(crate) fn all(messages: impl IntoIterator<Item = (Source, &'m IncomingMessage)>) -> Vec<Self> {
        let mut once = HashSet::new();
        let entries = messages
            .into_iter()
            .filter_map(|(source, message)| Some(Self { header: message.header()?, message, source }));
        entries.filter(|entry| once.insert(entry.header.id)).collect()
    }

    pub(crate) fn id(&self) -> CommandId {
        self.header.id
    }

    pub(crate) fn user_id(&self) -> Option<UserId> {
        self.header.user_id
    }

    /// The day whose table has its row.
    pub(crate) fn day(&self) -> Date {
        self.header.id.minted_at().date()
    }
}

/// A command that can be applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate<'m> {
    pub(crate) entry: &'m Entry<'m>,
    pub(crate) envelope: &'m Envelope,
}
