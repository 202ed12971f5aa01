//! The message behind a promise, made again from what the client knows.

use common::command::{
    Command, CommandId, CreateUser, DEFAULT_PARTITIONS, DeleteUser, Digest, Email, Envelope, Idempotency, Name,
    Principal, ReactivateUser, SuspendUser, UpdateUser, UserId,
};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::torture::promises::{Kind, Request};

/// A message as the API published it.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) id: Uuid,
    pub(super) partition: u16,
    pub(super) body: Vec<u8>,
}

impl Sent {
    /// From the request and the command resource of its 202.
    pub(super) fn of(request: &Request, accepted: &Value) -> Option<Self> {
        let user_id: UserId = accepted["user_id"].as_str()?.parse().ok()?;
        let id: CommandId = accepted["id"].as_str()?.parse().ok()?;
        let command = command(request, user_id)?;
        let principal = Principal::anonymous();
        let idempotency = request.key.as_ref().map(|key| Idempotency {
            key: Digest::of_key(&principal, key),
            fingerprint: Digest::of_request(&command, request.if_match),
        });
        let envelope = Envelope {
            id,
            accepted_at: OffsetDateTime::parse(accepted["accepted_at"].as_str()?, &Rfc3339).ok()?,
            principal,
            if_match: request.if_match,
            idempotency,
            command,
        };
        Some(Self { id: id.into(), partition: user_id.partition(DEFAULT_PARTITIONS), body: envelope.encode() })
    }
}

fn command(request: &Request, user_id: UserId) -> Option<Command> {
    let name = || request.name.as_ref().and_then(|name| Name::parse(name).ok());
    Some(match request.kind {
        Kind::Create => {
            let email = Email::parse(request.email.as_ref()?).ok()?;
            Command::CreateUser(CreateUser { user_id, email, name: name()? })
        }
        Kind::Update => Command::UpdateUser(UpdateUser { user_id, email: None, name: name() }),
        Kind::Suspend => Command::SuspendUser(SuspendUser { user_id }),
        Kind::Reactivate => Command::ReactivateUser(ReactivateUser { user_id }),
        Kind::Delete => Command::DeleteUser(DeleteUser { user_id }),
    })
}
