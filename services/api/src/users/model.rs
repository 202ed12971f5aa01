//! What the operations on users take and give.

use common::command::{Email, Name};
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, Object, Union};
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use crate::accept::Terms;
use crate::body::{Checked, Members};
use crate::commands::CommandResource;
use crate::contract::{EXAMPLE_TIME, EXAMPLE_USER};
use crate::cursor::{Cursor, Toward};
use crate::headers::entity_tag;
use crate::json::Json;
use crate::problem::{Failures, ProblemKind};

/// Whether a user may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum UserStatus {
    /// As created.
    Active,
    /// Until it is reactivated.
    Suspended,
}

/// A user
#[derive(Debug, Clone, Object, Serialize)]
#[oai(example, skip_serializing_if_is_none)]
pub struct User {
    /// The user's id: a UUIDv7, or a UUIDv8 when it was created under an `Idempotency-Key`.
    pub id: Uuid,
    /// The e-mail address, as it was written.
    pub email: String,
    /// What people call the user.
    pub name: String,
    /// Whether the user may act.
    pub status: UserStatus,
    /// Counts the changes; the `ETag` of this representation.
    pub version: i64,
    /// When it was created.
    #[serde(with = "rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last changed.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Since when it is suspended.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<OffsetDateTime>,
}

/// A page of users, in the order of their ids
#[derive(Debug, Object, Serialize)]
#[oai(example, skip_serializing_if_is_none)]
pub struct UserPage {
    /// The users.
    pub items: Vec<User>,
    /// Continues after the last item; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Leads back to what stands before the first item; absent on the first page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_cursor: Option<String>,
}

/// A user to create
#[derive(Debug, Object)]
#[oai(example)]
pub(crate) struct NewUser {
    /// An e-mail address in ASCII; unique without regard to letter case.
    #[oai(validator(max_length = 254))]
    email: String,
    /// 1 to 200 characters, none of them a control character or invisible; the joiners U+200C and U+200D only where a script
    /// or an emoji needs them.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: String,
}

/// What to change (RFC 7396); at least one member, and none can be removed
#[derive(Debug, Object)]
#[oai(example, skip_serializing_if_is_none)]
pub(crate) struct UserPatch {
    /// The new e-mail address.
    #[oai(validator(max_length = 254))]
    email: Option<String>,
    /// The new name.
    #[oai(validator(min_length = 1, max_length = 200))]
    name: Option<String>,
}

impl Example for User {
    fn example() -> Self {
        Self {
            id: EXAMPLE_USER,
            email: "ada@example.org".to_owned(),
            name: "Ada".to_owned(),
            status: UserStatus::Active,
            version: 1,
            created_at: EXAMPLE_TIME,
            updated_at: EXAMPLE_TIME,
            suspended_at: None,
        }
    }
}

impl Example for UserPage {
    fn example() -> Self {
        let next = Cursor { toward: Toward::Next, from: EXAMPLE_USER }.encode("/v1/users");
        Self { items: vec![User::example()], next_cursor: Some(next), prev_cursor: None }
    }
}

impl Example for NewUser {
    fn example() -> Self {
        Self { email: "ada@example.org".to_owned(), name: "Ada".to_owned() }
    }
}

impl Example for UserPatch {
    fn example() -> Self {
        Self { email: None, name: Some("Ada Lovelace".to_owned()) }
    }
}

impl Checked for NewUser {
    type Valid = (Email, Name);

    fn check(members: &mut Members) -> Option<Self::Valid> {
        let email = members.required("email", Email::parse);
        let name = members.required("name", Name::parse);
        Some((email?, name?))
    }
}

impl Checked for UserPatch {
    const MEDIA_TYPE: &'static str = "application/merge-patch+json";
    type Valid = (Option<Email>, Option<Name>);

    fn check(members: &mut Members) -> Option<Self::Valid> {
        let nothing = !members.has("email") && !members.has("name");
        let email = members.optional("email", Email::parse);
        let name = members.optional("name", Name::parse);
        if nothing {
            return members.fault("body", "changes nothing; give email, name or both");
        }
        Some((email, name))
    }
}

impl UserStatus {
    /// As it is stored and asked for.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
        }
    }
}

/// The user after the change, or without `users:read` the command
#[derive(Debug, Union, Serialize)]
#[oai(one_of)]
#[serde(untagged)]
pub(crate) enum WriteOutcome {
    /// With `users:read`.
    User(User),
    /// Without.
    Command(CommandResource),
}

#[derive(ApiResponse)]
pub(crate) enum CreateUserAnswer {
    /// Created, and the outcome came within the wait, but the caller may not read users, or the user cannot be read any more:
    /// the command, and the version of the user.
    #[oai(status = 200)]
    Applied(
        Json<CommandResource>,
        #[oai(header = "Location")] String,
        #[oai(header = "ETag")] String,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
    /// Created: the outcome came within the wait.
    #[oai(status = 201)]
    Created(
        Json<User>,
        #[oai(header = "Location")] String,
        #[oai(header = "ETag")] String,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
    /// Accepted: the broker has the command for good. Also when the outcome was waited for and the command is `parked` behind
    /// an earlier one of its user: it is applied after that.
    #[oai(status = 202)]
    Accepted(
        Json<CommandResource>,
        #[oai(header = "Location")] String,
        #[oai(header = "Retry-After")] u32,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum ChangeUserAnswer {
    /// Changed: the outcome came within the wait. To a caller that may read users it is the user; to others, and when the user
    /// cannot be read any more, the command and the version of the user.
    #[oai(status = 200)]
    Changed(Json<WriteOutcome>, #[oai(header = "ETag")] String, #[oai(header = "Preference-Applied")] Option<String>),
    /// Accepted: the broker has the command for good. Also when the outcome was waited for and the command is `parked` behind
    /// an earlier one of its user: it is applied after that.
    #[oai(status = 202)]
    Accepted(
        Json<CommandResource>,
        #[oai(header = "Location")] String,
        #[oai(header = "Retry-After")] u32,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
}

#[derive(ApiResponse)]
#[expect(clippy::large_enum_variant, reason = "it lives for one answer; the macro takes no box")]
pub(crate) enum DeleteUserAnswer {
    /// Deleted: the outcome came within the wait.
    #[oai(status = 204)]
    Deleted(#[oai(header = "Preference-Applied")] Option<String>),
    /// Accepted: the broker has the command for good. Also when the outcome was waited for and the command is `parked` behind
    /// an earlier one of its user: it is applied after that.
    #[oai(status = 202)]
    Accepted(
        Json<CommandResource>,
        #[oai(header = "Location")] String,
        #[oai(header = "Retry-After")] u32,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
}

#[derive(ApiResponse)]
pub(crate) enum GetUserAnswer {
    /// The user.
    #[oai(status = 200)]
    Found(Json<User>, #[oai(header = "ETag")] String),
    /// The client's representation is current.
    #[oai(status = 304)]
    NotModified(#[oai(header = "ETag")] String),
}

#[derive(ApiResponse)]
pub(crate) enum ListUsersAnswer {
    /// A page.
    #[oai(status = 200)]
    Page(Json<UserPage>, #[oai(header = "Link")] Option<String>),
}

macro_rules! failures {
    ($($operation:ident: $($kind:ident)+;)+) => {$(
        /// How the operation can fail.
        pub(crate) struct $operation;

        impl Failures for $operation {
            const KINDS: &'static [ProblemKind] = &[$(ProblemKind::$kind),+];
        }
    )+};
}

failures! {
    CreateFailures: InvalidRequest RequestTimeout EmailTaken UserExists CommandParked BodyTooLarge UnsupportedMediaType
        IdempotencyKeyReused BrokerUnavailable NotReady Overloaded OutcomeUnknown;
    ChangeFailures: InvalidRequest UserNotFound RequestTimeout EmailTaken CommandParked VersionLost BodyTooLarge
        UnsupportedMediaType IdempotencyKeyReused BrokerUnavailable NotReady Overloaded OutcomeUnknown;
    DeleteFailures: InvalidRequest UserNotFound CommandParked VersionLost IdempotencyKeyReused BrokerUnavailable NotReady
        Overloaded OutcomeUnknown;
    SuspendFailures: InvalidRequest UserNotFound AlreadySuspended CommandParked VersionLost IdempotencyKeyReused
        BrokerUnavailable NotReady Overloaded OutcomeUnknown;
    ReactivateFailures: InvalidRequest UserNotFound NotSuspended CommandParked VersionLost IdempotencyKeyReused
        BrokerUnavailable NotReady Overloaded OutcomeUnknown;
    GetFailures: InvalidRequest UserNotFound DatabaseUnavailable Overloaded;
    ListFailures: InvalidRequest DatabaseUnavailable Overloaded;
    HistoryFailures: InvalidRequest UserNotFound DatabaseUnavailable Overloaded;
}

/// When to ask for the outcome.
pub(crate) const RETRY_AFTER_SECONDS: u32 = 1;

/// What a command that leaves a user behind is answered with.
pub(crate) enum Changed {
    /// The user after it.
    User(User),
    /// The command, which was applied, and the user's version after it.
    Applied(CommandResource, i64),
    /// The command, whose outcome is not known yet.
    Pending(CommandResource),
}

impl Changed {
    /// The answer of the operations that change a user.
    pub(crate) fn answer(self, terms: &Terms) -> ChangeUserAnswer {
        match self {
            Self::User(user) => {
                let etag = entity_tag(user.version);
                ChangeUserAnswer::Changed(Json(WriteOutcome::User(user)), etag, terms.applied())
            }
            Self::Applied(command, version) => {
                let etag = entity_tag(version);
                ChangeUserAnswer::Changed(Json(WriteOutcome::Command(command)), etag, terms.applied())
            }
            Self::Pending(command) => {
                let location = command.location();
                ChangeUserAnswer::Accepted(Json(command), location, RETRY_AFTER_SECONDS, terms.applied())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::assert_written_as_described;

    #[test]
    fn users_are_written_as_the_contract_describes_them() {
        let suspended = User {
            name: "Ada \"λ\" \u{1f469}\u{200d}\u{1f4bb}\\".to_owned(),
            status: UserStatus::Suspended,
            version: i64::MAX,
            suspended_at: Some(EXAMPLE_TIME - time::Duration::nanoseconds(1)),
            ..User::example()
        };
        assert_written_as_described(&User::example());
        assert_written_as_described(&suspended);
        assert_written_as_described(&UserPage::example());
        assert_written_as_described(&WriteOutcome::User(suspended));
        assert_written_as_described(&WriteOutcome::Command(CommandResource::example()));
    }
}
