//! The examples of what is answered. They tell one life: a user is created, updated, suspended and reactivated, an hour apart.

use poem_openapi::types::{Example, ToJSON};
use serde_json::{Value, json};
use time::Duration;

use super::{EXAMPLE_COMMAND, EXAMPLE_TIME, EXAMPLE_USER};
use crate::auth::{CHALLENGE, scope_challenge};
use crate::commands::{CommandResource, decided_example};
use crate::cursor::{Cursor, Toward};
use crate::users::{User, UserStatus};

/// An answer of an operation.
#[derive(Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) operation: &'a str,
    pub(super) status: &'a str,
    /// The scope that the operation needs, or one of them.
    pub(super) scope: &'a str,
}

impl Answer<'_> {
    /// Whether something is only read.
    pub(super) fn of_read(self) -> bool {
        self.operation.starts_with("get_") || self.operation.starts_with("list_")
    }

    fn version(self) -> i64 {
        match self.operation {
            "update_user" => 2,
            "suspend_user" => 3,
            "reactivate_user" => 4,
            _ => 1,
        }
    }

    /// The body, where its schema has no example that fits every operation.
    pub(super) fn body(self, schema: &str) -> Option<Value> {
        match schema {
            "User" => self.user().to_json(),
            "Command" if !self.of_read() => self.command().to_json(),
            _ => None,
        }
    }

    fn user(self) -> User {
        let changed_at = EXAMPLE_TIME + Duration::hours(self.version() - 1);
        let suspended_at = (self.operation == "suspend_user").then_some(changed_at);
        User {
            name: if self.version() == 1 { "Ada" } else { "Ada Lovelace" }.to_owned(),
            status: if suspended_at.is_some() { UserStatus::Suspended } else { UserStatus::Active },
            version: self.version(),
            updated_at: changed_at,
            suspended_at,
            ..User::example()
        }
    }

    fn command(self) -> CommandResource {
        let kind = Some(format!("users.{}", self.operation.trim_end_matches("_user")));
        if self.status == "200" {
            return CommandResource { kind, user_version: Some(self.version()), ..decided_example() };
        }
        CommandResource { kind, ..CommandResource::example() }
    }

    /// What a write that was waited for is answered with.
    pub(super) fn outcomes(self) -> Value {
        json!({
            "user": { "summary": "With `users:read`", "value": self.user().to_json() },
            "command": { "summary": "Without `users:read`", "value": self.command().to_json() },
        })
    }

    /// The value of a header.
    pub(super) fn header(self, name: &str) -> Value {
        match name {
            "Location" if self.status == "202" => format!("/v1/commands/{EXAMPLE_COMMAND}").into(),
            "Location" => format!("/v1/users/{EXAMPLE_USER}").into(),
            "ETag" => format!("\"{}\"", self.version()).into(),
            "Retry-After" => 1.into(),
            "Preference-Applied" => "wait=5".into(),
            "Link" => self.link().into(),
            "Accept" => "application/json".into(),
            "Accept-Patch" => "application/merge-patch+json".into(),
            "Accept-Encoding" => "identity".into(),
            "WWW-Authenticate" if self.status == "403" => scope_challenge(self.scope).into(),
            "WWW-Authenticate" => CHALLENGE.into(),
            "RateLimit" if self.status == "429" => "\"caller\";r=0;t=60".into(),
            "RateLimit" => "\"caller\";r=599;t=1".into(),
            "RateLimit-Policy" => "\"caller\";q=600;w=60".into(),
            _ => "private, no-cache, no-transform".into(),
        }
    }

    fn link(self) -> String {
        let (list, from) = match self.operation {
            "get_user_history" => (format!("/v1/users/{EXAMPLE_USER}/history"), EXAMPLE_COMMAND),
            _ => ("/v1/users".to_owned(), EXAMPLE_USER),
        };
        let cursor = Cursor { toward: Toward::Next, from }.encode(&list);
        format!("<{list}?cursor={cursor}&limit=50>; rel=\"next\"")
    }
}

/// A command that is looked up: before and after it is applied, and lost.
pub(super) fn looked_up() -> Value {
    let mut pending = CommandResource::example().to_json().unwrap_or_default();
    // Until it is decided, its id is all that is known.
    for member in ["type", "user_id"] {
        pending.as_object_mut().map(|members| members.remove(member));
    }
    pending.pointer_mut("/links").and_then(Value::as_object_mut).map(|links| links.remove("user"));
    let mut unknown = pending.clone();
    unknown["status"] = "unknown".into();
    json!({
        "pending": { "summary": "Not applied yet", "value": pending },
        "succeeded": { "summary": "Applied", "value": decided_example().to_json() },
        "unknown": { "summary": "Lost, and final", "value": unknown },
    })
}
