//! The command contract: what the API publishes, what the worker applies, and what comes of it.
//!
//! # Why newtypes with one way in?
//! A message can come from any publisher, so the worker decodes through the same `parse` functions as the API
//! validates with. What decodes can be stored.
//!
//! # What may change?
//! Wire names are frozen once released. A new field needs `#[serde(default)]`, because the worker is deployed before
//! the API and replays old messages. `tests/it/command.rs` pins the JSON of each command.
//!
//! # Which members must be understood?
//! A worker that was rolled back receives messages of the next release. It never applies a part of what was asked for:
//!
//! 1. Everything in `command` must be understood: its type and every member of its data.
//! 2. A member of the envelope whose name begins with `if_` is a condition and must be understood.
//! 3. Every other member of the envelope is a note, which a build that does not know it ignores, unless the array
//!    `must_understand` of the envelope has its name.
//!
//! A new envelope member that is no condition but changes what the command does goes into `must_understand`. The worker
//! parks what it does not understand with its original bytes and blocks the subject ([`Message`]).

mod id;
mod idempotency;
mod invisible;
mod message;
mod reply;
mod signature;
mod text;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use id::{CommandId, CommandIdKey, IdOrigin, InvalidId, UserId};
pub use idempotency::{Digest, Idempotency, InvalidDigest};
pub use message::{CommandHeader, DecodeError, Message, MessageProperties, UnreadCommand};
pub use reply::{CommandOutcome, CommandReply, OutcomeStatus, REPLY_TYPE};
pub use signature::{CommandKeys, SIGNATURE_HEADER, SignatureError};
pub use text::{Email, InvalidText, Name, Principal};

/// The number of partitions unless `PARTITIONS` says otherwise.
pub const DEFAULT_PARTITIONS: u16 = 16;

/// One message on the wire: a command and who sent it when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Identifies the command for ever: deduplication, status, audit.
    pub id: CommandId,
    /// When the API accepted it.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// Who sent it; `anonymous` without authentication.
    pub principal: Principal,
    /// The user's version that the sender saw (`If-Match`); the command is rejected when it is no longer the current one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_match: Option<i64>,
    /// The client's `Idempotency-Key` and what it asked for under it; the command is rejected with
    /// [`Rejection::KeyReused`] when that was something else before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<Idempotency>,
    /// What to do.
    pub command: Command,
}

/// Everything that can be asked of a user. Closed: a forgotten handler is a compile error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", deny_unknown_fields)]
pub enum Command {
    /// `users.create`
    #[serde(rename = "users.create")]
    CreateUser(CreateUser),
    /// `users.update`
    #[serde(rename = "users.update")]
    UpdateUser(UpdateUser),
    /// `users.delete`
    #[serde(rename = "users.delete")]
    DeleteUser(DeleteUser),
    /// `users.suspend`
    #[serde(rename = "users.suspend")]
    SuspendUser(SuspendUser),
    /// `users.reactivate`
    #[serde(rename = "users.reactivate")]
    ReactivateUser(ReactivateUser),
}

/// Creates a user. Rejected with [`Rejection::EmailTaken`] or [`Rejection::UserExists`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    /// Minted by the API, or derived from the idempotency key.
    pub user_id: UserId,
    /// Unique without regard to letter case.
    pub email: Email,
    /// What people call the user.
    pub name: Name,
}

/// Changes the members that are given. Rejected with [`Rejection::NotFound`], [`Rejection::EmailTaken`] or
/// [`Rejection::VersionLost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateUser {
    /// Whom to change.
    pub user_id: UserId,
    /// The new address, if it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    /// The new name, if it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// Removes a user's row; the commands stay. Rejected with [`Rejection::NotFound`] or [`Rejection::VersionLost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteUser {
    /// Whom to remove.
    pub user_id: UserId,
}

/// Suspends an active user. Rejected with [`Rejection::NotFound`], [`Rejection::VersionLost`] or
/// [`Rejection::AlreadySuspended`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuspendUser {
    /// Whom to suspend.
    pub user_id: UserId,
}

/// Makes a suspended user active again. Rejected with [`Rejection::NotFound`], [`Rejection::VersionLost`] or
/// [`Rejection::NotSuspended`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReactivateUser {
    /// Whom to reactivate.
    pub user_id: UserId,
}

/// A business outcome that changed nothing. Stored in `commands.reason` under its [name](Self::as_str).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Another user has this e-mail address.
    EmailTaken,
    /// A user with this id exists already (only a publisher that mints its own ids can cause it).
    UserExists,
    /// There is no such user.
    NotFound,
    /// The user's version is no longer the one named in `If-Match`.
    VersionLost,
    /// The user is suspended already.
    AlreadySuspended,
    /// The user is active already.
    NotSuspended,
    /// Another request came under the same idempotency key before.
    KeyReused,
}

impl Envelope {
    /// Reads a message body.
    ///
    /// # Errors
    /// Says what cannot be decoded and where, or which member is not understood.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        message::check_members(body)?;
        Ok(serde_json::from_slice(body)?)
    }

    /// Writes the message body.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, integers and a date within years 0 to 9999: nothing here can fail to serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Command {
    /// The user whom this command concerns: the unit of ordering.
    pub fn user_id(&self) -> UserId {
        match self {
            Self::CreateUser(c) => c.user_id,
            Self::UpdateUser(c) => c.user_id,
            Self::DeleteUser(c) => c.user_id,
            Self::SuspendUser(c) => c.user_id,
            Self::ReactivateUser(c) => c.user_id,
        }
    }

    /// The name on the wire, in the AMQP `type` property and in `commands.type`.
    pub fn wire_name(&self) -> &'static str {
        match self {
            Self::CreateUser(_) => "users.create",
            Self::UpdateUser(_) => "users.update",
            Self::DeleteUser(_) => "users.delete",
            Self::SuspendUser(_) => "users.suspend",
            Self::ReactivateUser(_) => "users.reactivate",
        }
    }
}

impl Rejection {
    const ALL: [Self; 7] = [
        Self::EmailTaken,
        Self::UserExists,
        Self::NotFound,
        Self::VersionLost,
        Self::AlreadySuspended,
        Self::NotSuspended,
        Self::KeyReused,
    ];

    /// The stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmailTaken => "email-taken",
            Self::UserExists => "user-exists",
            Self::NotFound => "user-not-found",
            Self::VersionLost => "version-lost",
            Self::AlreadySuspended => "already-suspended",
            Self::NotSuspended => "not-suspended",
            Self::KeyReused => "idempotency-key-reused",
        }
    }

    /// The rejection with this stored name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == name)
    }
}
