//! The operations on users: reads answered here, writes accepted as commands.

mod model;
mod rows;

use std::sync::Arc;

use common::command::{Command, CreateUser, DeleteUser, Principal, ReactivateUser, SuspendUser, UpdateUser, UserId};
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use uuid::Uuid;

use crate::accept::{Accepted, Terms};
use crate::app::Api;
use crate::auth::{Caller, UsersRead, UsersWrite};
use crate::body::Body;
use crate::contract::Tag;
use crate::cursor;
use crate::headers::{Field, entity_tag, none_match};
use crate::problem::{Failed, Problem, ProblemKind};
use model::{
    ChangeFailures, ChangeUserAnswer, Changed, CreateFailures, CreateUserAnswer, DeleteFailures, DeleteUserAnswer,
    GetFailures, GetUserAnswer, ListFailures, ListUsersAnswer, NewUser, RETRY_AFTER_SECONDS, StatusFailures, UserPatch,
};
pub use model::{User, UserPage, UserStatus};
pub(crate) use rows::by_ids;
use rows::{Wanted, page};

const DEFAULT_LIMIT: u32 = 50;

/// Users
pub struct UsersApi(pub(crate) Arc<Api>);

#[OpenApi(prefix_path = "/v1", tag = "Tag::Users")]
impl UsersApi {
    /// Create a user
    #[oai(path = "/users", method = "post", operation_id = "create_user")]
    async fn create_user(
        &self,
        caller: Caller<UsersWrite>,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first one's outcome; another request under it is rejected with 422.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
        body: Body<NewUser>,
    ) -> Result<CreateUserAnswer, Failed<CreateFailures>> {
        let mut terms = Terms::read(&caller.principal, prefer.0.as_deref(), None, idempotency_key.0.as_deref())?;
        let Body((email, name)) = body;
        let user_id = terms.user_id();
        let command = Command::CreateUser(CreateUser { user_id, email, name });
        let changed = self.change(caller.principal, user_id, command, &mut terms).await?;
        let applied = terms.applied();
        Ok(match changed {
            Changed::User(user) => {
                let (location, etag) = (format!("/v1/users/{}", user.id), entity_tag(user.version));
                CreateUserAnswer::Created(Json(user), location, etag, applied)
            }
            Changed::Command(command) => {
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
    /// In the order of their ids. `Link: rel="next"` leads to the next page.
    #[oai(path = "/users", method = "get", operation_id = "list_users")]
    async fn list_users(
        &self,
        _caller: Caller<UsersRead>,
        /// Only the user with this e-mail address, in whatever letter case.
        email: Query<Option<String>>,
        /// Only users with this status.
        status: Query<Option<UserStatus>>,
        /// Where the last page ended: its `next_cursor`.
        cursor: Query<Option<String>>,
        /// Users on a page at most.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u32>>,
    ) -> Result<ListUsersAnswer, Failed<ListFailures>> {
        let after = match &cursor.0 {
            None => Uuid::nil(),
            Some(text) => cursor::decode(text).ok_or_else(|| {
                Problem::invalid_field(
                    "cursor",
                    "is not one that a page gave; take next_cursor as it is, or leave it out",
                )
            })?,
        };
        let email = email.0.map(|text| text.to_ascii_lowercase());
        if email.as_deref().is_some_and(|text| text.contains('\0')) {
            return Err(Problem::invalid_field("email", "has the control character U+0000; remove it").into());
        }
        let limit = limit.0.unwrap_or(DEFAULT_LIMIT);
        let wanted = Wanted { email, status: status.0, after, limit: i64::from(limit) + 1 };
        let mut items = page(&self.0.pool, &wanted).await?;
        let more = items.len() > limit as usize;
        items.truncate(limit as usize);
        let next_cursor = items.last().filter(|_| more).map(|last| cursor::encode(last.id));
        let link = next_cursor.as_deref().map(|cursor| next_link(&wanted, cursor, limit));
        Ok(ListUsersAnswer::Page(Json(UserPage { items, next_cursor }), link))
    }

    /// Change a user
    #[oai(path = "/users/:user_id", method = "patch", operation_id = "update_user")]
    async fn update_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first one's outcome; another request under it is rejected with 422.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
        body: Body<UserPatch>,
    ) -> Result<ChangeUserAnswer, Failed<ChangeFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let Body((email, name)) = body;
        let command = Command::UpdateUser(UpdateUser { user_id, email, name });
        Ok(self.change(caller.principal, user_id, command, &mut terms).await?.answer(terms))
    }

    /// Delete a user
    #[oai(path = "/users/:user_id", method = "delete", operation_id = "delete_user")]
    async fn delete_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it; when the user has changed since, nothing is deleted.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first one's outcome; another request under it is rejected with 422.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<DeleteUserAnswer, Failed<DeleteFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let command = Command::DeleteUser(DeleteUser { user_id: known(user_id.0)? });
        Ok(match self.0.acceptor.accept(caller.principal, command, &mut terms).await? {
            Accepted::Succeeded(_) => DeleteUserAnswer::Deleted(terms.applied()),
            Accepted::Pending(command) => {
                let location = command.location();
                DeleteUserAnswer::Accepted(Json(command), location, RETRY_AFTER_SECONDS, terms.applied())
            }
        })
    }

    /// Suspend a user
    #[oai(path = "/users/:user_id/suspend", method = "post", operation_id = "suspend_user")]
    async fn suspend_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first one's outcome; another request under it is rejected with 422.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<ChangeUserAnswer, Failed<StatusFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let command = Command::SuspendUser(SuspendUser { user_id });
        Ok(self.change(caller.principal, user_id, command, &mut terms).await?.answer(terms))
    }

    /// Reactivate a suspended user
    #[oai(path = "/users/:user_id/reactivate", method = "post", operation_id = "reactivate_user")]
    async fn reactivate_user(
        &self,
        caller: Caller<UsersWrite>,
        /// The user's id.
        user_id: Path<Uuid>,
        /// The `ETag` of the user as the client saw it; when the user has changed since, nothing is changed.
        #[oai(name = "If-Match")]
        if_match: Field,
        /// `wait=N`: answer with the outcome if it comes within N seconds, at most 30.
        #[oai(name = "Prefer")]
        prefer: Field,
        /// 1 to 255 visible ASCII characters. Within 24 hours (`IDEMPOTENCY_WINDOW_HOURS`) the same request under the same key
        /// takes effect once, and each gets the first one's outcome; another request under it is rejected with 422.
        #[oai(name = "Idempotency-Key")]
        idempotency_key: Field,
    ) -> Result<ChangeUserAnswer, Failed<StatusFailures>> {
        let mut terms =
            Terms::read(&caller.principal, prefer.0.as_deref(), if_match.0.as_deref(), idempotency_key.0.as_deref())?;
        let user_id = known(user_id.0)?;
        let command = Command::ReactivateUser(ReactivateUser { user_id });
        Ok(self.change(caller.principal, user_id, command, &mut terms).await?.answer(terms))
    }
}

impl UsersApi {
    async fn change(
        &self,
        principal: Principal,
        user_id: UserId,
        command: Command,
        terms: &mut Terms,
    ) -> Result<Changed, Problem> {
        let command = match self.0.acceptor.accept(principal, command, terms).await? {
            Accepted::Pending(command) => return Ok(Changed::Command(command)),
            Accepted::Succeeded(command) => command,
        };
        // Gone or unreadable since: the command that succeeded is still the truth to tell.
        Ok(match self.0.users.load(user_id.into()).await {
            Ok(Some(user)) => Changed::User(user),
            Ok(None) | Err(_) => Changed::Command(command),
        })
    }
}

/// An id that cannot be a user's is a user that is not there.
fn known(id: Uuid) -> Result<UserId, Problem> {
    UserId::try_from(id).map_err(|_| not_found())
}

fn not_found() -> Problem {
    Problem::new(ProblemKind::UserNotFound)
}

fn next_link(wanted: &Wanted, cursor: &str, limit: u32) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("cursor", cursor).append_pair("limit", &limit.to_string());
    if let Some(email) = &wanted.email {
        query.append_pair("email", email);
    }
    if let Some(status) = wanted.status {
        query.append_pair("status", status.as_str());
    }
    format!("</v1/users?{}>; rel=\"next\"", query.finish())
}
