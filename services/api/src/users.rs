//! The operations on users: reads answered here, writes accepted as commands.

mod history;
mod model;
mod rows;

use std::sync::Arc;

use common::command::{
    Command, CommandOutcome, CreateUser, DeleteUser, Email, ReactivateUser, SuspendUser, UpdateUser, UserId,
};
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::types::ParseFromJSON;
use uuid::Uuid;

use crate::accept::{Accepted, Terms};
use crate::app::Api;
use crate::auth::{Caller, HistoryRead, UsersRead, UsersWrite};
use crate::body::Body;
use crate::contract::Tag;
use crate::headers::{Field, entity_tag, none_match};
use crate::json::Json;
use crate::paging::{Order, Paging};
use crate::problem::{Failed, Problem, ProblemKind};
use history::{CommandRow, GetHistoryAnswer, HistoryEntry, HistoryPage};
use model::{
    ChangeFailures, ChangeUserAnswer, Changed, CreateFailures, CreateUserAnswer, DeleteFailures, DeleteUserAnswer,
    GetFailures, GetUserAnswer, HistoryFailures, ListFailures, ListUsersAnswer, NewUser, RETRY_AFTER_SECONDS,
    ReactivateFailures, SuspendFailures, UserPatch,
};
pub use model::{User, UserPage, UserStatus};
pub(crate) use rows::by_ids;
use rows::{Wanted, page};

/// Users
pub struct UsersApi(pub(crate) Arc<Api>);

#[OpenApi(prefix_path = "/v1", tag = "Tag::Users")]
impl UsersApi {
    /// Create a user
    ///
    /// Without `users:read` the outcome is the command, never the user.
    #[oai(path = "/users", method = "post", operation_id = "create_user")]
    async fn create_user(
        &self,
        caller: Caller<UsersWrite>,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first outcome; another one under it is rejected (`idempotency-key-reused`).
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
        body: Body<NewUser>,
    ) -> Result<CreateUserAnswer, Failed<CreateFailures>> {
        let mut terms = Terms::read(&caller.principal, prefer.0.as_deref(), None, idempotency_key.0.as_deref())?;
        let Body((email, name)) = body;
        let user_id = terms.user_id();
        let command = Command::CreateUser(CreateUser { user_id, email, name });
        let changed = self.change(caller, user_id, command, &mut terms).await?;
        let applied = terms.applied();
        Ok(match changed {
            Changed::User(user) => {
                let (location, etag) = (format!("/v1/users/{}", user.id), entity_tag(user.version));
                CreateUserAnswer::Created(Json(user), location, etag, applied)
            }
            Changed::Applied(command, version) => {
                let (location, etag) = (format!("/v1/users/{user_id}"), entity_tag(version));
                CreateUserAnswer::Applied(Json(command), location, etag, applied)
            }
            Changed::Pending(command) => {
                let location = command.location();
                CreateUserAnswer::Accepted(Json(command), location, RETRY_AFTER_SECONDS, applied)
            }
        })
    }

    /// Read a user
    #[oai(path = "/users/:user_id", method = "get", operation_id = "get_user")]
    async fn get_user(
        &self,
        _caller: Caller<UsersRead>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// Entity tags that the client has; when one is current, the answer is 304.
        #[oai(name = "If-None-Match")]
        if_none_match: Field,
    ) -> Result<GetUserAnswer, Failed<GetFailures>> {
        let user = self.0.users.load(user_id.0).await?.ok_or_else(not_found)?;
        let etag = entity_tag(user.version);
        if none_match(if_none_match.0.as_deref(), &etag) {
            return Ok(GetUserAnswer::NotModified(etag));
        }
        Ok(GetUserAnswer::Found(Json(user), etag))
    }

    /// List users
    ///
    /// In the order of their ids. `Link` leads to the pages before and behind this one; filters combine.
    #[oai(path = "/users", method = "get", operation_id = "list_users")]
    async fn list_users(
        &self,
        _caller: Caller<UsersRead>,
        /// Only the user with this e-mail address, in whatever letter case; a `+` in it is written as `%2B`.
        email: Query<Option<String>>,
        /// Only users with this status.
        status: Query<Option<UserStatus>>,
        /// Where to go on: `next_cursor` or `prev_cursor` of a page of this list.
        cursor: Query<Option<String>>,
        /// Users on a page at most; 50 when it is left out.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
    ) -> Result<ListUsersAnswer, Failed<ListFailures>> {
        let paging = Paging::read("/v1/users".to_owned(), Order::Ascending, cursor.0.as_deref(), limit.0)?;
        let email = email.0.as_deref().map(filter).transpose()?;
        let wanted = Wanted { email, status: status.0 };
        let paged = paging.page(page(&self.0.pool, &wanted, &paging).await?, |user| user.id);
        let filters = [("email", wanted.email.as_deref()), ("status", wanted.status.map(UserStatus::as_str))];
        let link = paging.link(&paged, &filters);
        let page = UserPage { items: paged.items, next_cursor: paged.next, prev_cursor: paged.previous };
        Ok(ListUsersAnswer::Page(Json(page), link))
    }

    /// Read what was done to a user
    ///
    /// The commands for this user with their outcomes, newest first, for as long as outcomes are kept. They stay when the
    /// user is deleted. A command that was rejected is here as well, so an id that never became a user can have a history.
    #[oai(path = "/users/:user_id/history", method = "get", operation_id = "get_user_history")]
    async fn get_user_history(
        &self,
        _caller: Caller<HistoryRead>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// Where to go on: `next_cursor` or `prev_cursor` of a page of this history.
        cursor: Query<Option<String>>,
        /// Commands on a page at most; 50 when it is left out.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
    ) -> Result<GetHistoryAnswer, Failed<HistoryFailures>> {
        let list = format!("/v1/users/{}/history", user_id.0);
        let paging = Paging::read(list, Order::Descending, cursor.0.as_deref(), limit.0)?;
        let rows = history::page(&self.0.pool, user_id.0, &paging).await?.ok_or_else(not_found)?;
        let paged = paging.page(rows, CommandRow::cursor);
        let link = paging.link(&paged, &[]);
        let items = paged.items.into_iter().map(HistoryEntry::from).collect();
        let page = HistoryPage { items, next_cursor: paged.next, prev_cursor: paged.previous };
        Ok(GetHistoryAnswer::Page(Json(page), link))
    }

    /// Change a user
    ///
    /// Without `users:read` the outcome is the command, never the user.
    #[oai(path = "/users/:user_id", method = "patch", operation_id = "update_user")]
    async fn update_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it, or a list of them; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first outcome; another one under it is rejected (`idempotency-key-reused`).
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
        body: Body<UserPatch>,
    ) -> Result<ChangeUserAnswer, Failed<ChangeFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let Body((email, name)) = body;
        let command = Command::UpdateUser(UpdateUser { user_id, email, name });
        Ok(self.change(caller, user_id, command, &mut terms).await?.answer(&terms))
    }

    /// Delete a user
    #[oai(path = "/users/:user_id", method = "delete", operation_id = "delete_user")]
    async fn delete_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it, or a list of them; when the user has changed since, nothing is deleted.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first outcome; another one under it is rejected (`idempotency-key-reused`).
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<DeleteUserAnswer, Failed<DeleteFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let command = Command::DeleteUser(DeleteUser { user_id });
        self.settle(user_id, &mut terms).await;
        Ok(match self.0.acceptor.accept(caller.principal, command, &mut terms).await? {
            Accepted::Succeeded(..) => DeleteUserAnswer::Deleted(terms.applied()),
            Accepted::Pending(command) => {
                let location = command.location();
                DeleteUserAnswer::Accepted(Json(command), location, RETRY_AFTER_SECONDS, terms.applied())
            }
        })
    }

    /// Suspend a user
    ///
    /// Without `users:read` the outcome is the command, never the user.
    #[oai(path = "/users/:user_id/suspend", method = "post", operation_id = "suspend_user")]
    async fn suspend_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it, or a list of them; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first outcome; another one under it is rejected (`idempotency-key-reused`).
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<ChangeUserAnswer, Failed<SuspendFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let command = Command::SuspendUser(SuspendUser { user_id });
        Ok(self.change(caller, user_id, command, &mut terms).await?.answer(&terms))
    }

    /// Reactivate a suspended user
    ///
    /// Without `users:read` the outcome is the command, never the user.
    #[oai(path = "/users/:user_id/reactivate", method = "post", operation_id = "reactivate_user")]
    async fn reactivate_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it, or a list of them; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first outcome; another one under it is rejected (`idempotency-key-reused`).
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<ChangeUserAnswer, Failed<ReactivateFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let command = Command::ReactivateUser(ReactivateUser { user_id });
        Ok(self.change(caller, user_id, command, &mut terms).await?.answer(&terms))
    }
}

impl UsersApi {
    /// A command carries one version: of several the current one, as far as it can be read.
    async fn settle(&self, user_id: UserId, terms: &mut Terms) {
        if terms.several_versions()
            && let Ok(Some(user)) = self.0.users.load(user_id.into()).await
        {
            terms.settle(user.version);
        }
    }

    async fn change(
        &self,
        caller: Caller<UsersWrite>,
        user_id: UserId,
        command: Command,
        terms: &mut Terms,
    ) -> Result<Changed, Problem> {
        self.settle(user_id, terms).await;
        let (command, reply) = match self.0.acceptor.accept(caller.principal, command, terms).await? {
            Accepted::Pending(command) => return Ok(Changed::Pending(command)),
            Accepted::Succeeded(command, reply) => (command, reply),
        };
        if caller.reads_users {
            if let Some(user) = reply.and_then(|reply| replied_user(&reply, user_id)) {
                return Ok(Changed::User(user));
            }
            // Gone or unreadable since: the command that succeeded is still the truth to tell.
            return Ok(match self.0.users.load(user_id.into()).await {
                Ok(Some(user)) => Changed::User(user),
                Ok(None) | Err(_) => Changed::Pending(command),
            });
        }
        Ok(match command.user_version {
            Some(version) => Changed::Applied(command, version),
            None => Changed::Pending(command),
        })
    }
}

/// The user after a change, if the reply carries it.
fn replied_user(reply: &CommandOutcome, user_id: UserId) -> Option<User> {
    let user = User::parse_from_json_string(reply.user.as_ref()?.get()).ok()?;
    (user.id == Uuid::from(user_id) && Some(user.version) == reply.user_version).then_some(user)
}

/// An id that cannot be a user's is a user that is not there.
fn known(id: Uuid) -> Result<UserId, Problem> {
    UserId::try_from(id).map_err(|_| not_found())
}

/// An address to look for, in lower case. What is no address matches nobody, and is refused like a misspelt filter.
fn filter(email: &str) -> Result<String, Problem> {
    match Email::parse(email) {
        Ok(email) => Ok(email.as_str().to_ascii_lowercase()),
        Err(_) if email.contains(' ') => {
            let fault = "has a blank, which + means in a query; write + as %2B, like ada%2Btest@example.org";
            Err(Problem::invalid_field("email", fault))
        }
        Err(fault) => Err(Problem::invalid_field("email", fault)),
    }
}

fn not_found() -> Problem {
    Problem::new(ProblemKind::UserNotFound)
}

#[cfg(test)]
mod tests {
    use common::command::OutcomeStatus;
    use serde_json::value::RawValue;
    use time::OffsetDateTime;
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_user_of_a_reply_is_read_as_the_worker_writes_it() {
        let (id, other) = (UserId::mint(), UserId::mint());
        // The members as `jsonb` orders and spaces them.
        let text = format!(
            r#"{{"id": "{id}", "name": "Ada", "email": "ada@example.org", "status": "suspended", "version": 2,
            "created_at": "2026-11-05T12:34:56Z", "updated_at": "2026-11-05T12:34:56.78Z",
            "suspended_at": "2026-11-05T12:34:56.789012Z", "of": "a later release"}}"#
        );
        let reply = |user_version, text: &str| CommandOutcome {
            status: OutcomeStatus::Succeeded,
            reason: None,
            applied_at: OffsetDateTime::UNIX_EPOCH,
            user_version: Some(user_version),
            user: RawValue::from_string(text.to_owned()).ok(),
        };
        let user = replied_user(&reply(2, &text), id).expect("a user");
        assert_eq!((user.status, user.version), (UserStatus::Suspended, 2));
        assert_eq!(user.suspended_at, Some(datetime!(2026-11-05 12:34:56.789012 UTC)));
        for (reason, reply, id) in [
            ("another user", reply(2, &text), other),
            ("another version", reply(3, &text), id),
            ("a member is missing", reply(2, &text.replace("email", "mail")), id),
            ("no user", reply(2, "no JSON"), id),
        ] {
            assert!(replied_user(&reply, id).is_none(), "{reason}");
        }
    }
}
