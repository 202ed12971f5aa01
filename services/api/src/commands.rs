//! The status of a command.

mod rows;

use std::sync::Arc;

use common::command::{CommandId, CommandOutcome, Envelope, IdOrigin, OutcomeStatus, Principal, Rejection};
use poem_openapi::param::Path;
use poem_openapi::types::Example;
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use crate::accept::Terms;
use crate::app::Api;
use crate::auth::{Caller, UsersRead, UsersWrite};
use crate::contract::{EXAMPLE_COMMAND, EXAMPLE_TIME, EXAMPLE_USER, Tag};
use crate::headers::Field;
use crate::json::Json;
use crate::problem::{Failed, Failures, Problem, ProblemKind};
pub(crate) use rows::decided;

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum CommandStatus {
    /// Accepted; not applied yet.
    Pending,
    /// Applied.
    Succeeded,
    /// Changed nothing, for the reason in `reason`.
    Rejected,
    /// Could not be applied, or waits behind one that could not; once an operator has dealt with it, it is decided.
    Parked,
    /// Neither applied nor waiting, although everything else that was accepted then is decided: it was lost outside of the
    /// service, or after a 504 it never reached the broker. Final: look at the user, and send the request again, under its
    /// `Idempotency-Key` if it had one.
    Unknown,
}

/// A command and its outcome
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "Command", example, skip_serializing_if_is_none)]
pub struct CommandResource {
    /// The command's id.
    pub id: Uuid,
    /// What became of it.
    pub status: CommandStatus,
    /// What was asked for, like `users.create`. Absent when a pending or unknown command is looked up.
    #[oai(rename = "type")]
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The user concerned. Absent when a pending or unknown command is looked up, or no user could be read in a parked one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Uuid>,
    /// When it was accepted.
    #[serde(with = "rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// When it was decided.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<OffsetDateTime>,
    /// Why it was rejected, as the last segment of a problem type, or parked: an SQLSTATE; `behind-another`, waiting for
    /// the command in `blocked_by`; `not-understood`, by the release of the worker; `id-ahead`, minted by a clock that is
    /// more than a day ahead; `record-dropped`, from a day whose outcomes are no longer kept; `wrong-partition`, published by
    /// another program than the API; `worker-ended`; `expired`, `delivery-limit`, `queue-full`, `broker-refused` or
    /// `broker`, dead-lettered by the broker; or `discarded`, by an operator and for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The earlier command of its user that it waits behind. Absent unless it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked_by: Option<Uuid>,
    /// The user's version after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_version: Option<i64>,
    /// Where to look next.
    pub links: CommandLinks,
}

/// Paths on this host
#[derive(Debug, Clone, Object, Serialize)]
#[oai(skip_serializing_if_is_none)]
pub struct CommandLinks {
    /// The command.
    #[oai(rename = "self")]
    #[serde(rename = "self")]
    pub this: String,
    /// The user concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A command's row, or what a reply says that it has, or that there will be none.
#[derive(Debug, Clone)]
pub struct Decided {
    id: Uuid,
    user_id: Option<Uuid>,
    kind: Option<String>,
    principal: Option<String>,
    accepted_at: OffsetDateTime,
    applied_at: Option<OffsetDateTime>,
    reason: Option<String>,
    blocked_by: Option<Uuid>,
    user_version: Option<i64>,
    /// How it was decided.
    pub(crate) decision: Decision,
}

/// How a command was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Succeeded,
    Rejected(Rejection),
    Parked,
    /// It is lost.
    Unknown,
}

impl Decided {
    /// The row of a command that was accepted here, made from the outcome that a reply carries.
    pub(crate) fn replied(envelope: &Envelope, outcome: &CommandOutcome) -> Self {
        let decision = match (outcome.status, outcome.reason.as_deref().and_then(Rejection::from_name)) {
            (OutcomeStatus::Succeeded, _) => Decision::Succeeded,
            (OutcomeStatus::Rejected, Some(rejection)) => Decision::Rejected(rejection),
            // As a row says it.
            (OutcomeStatus::Rejected | OutcomeStatus::Parked | OutcomeStatus::Unknown, _) => Decision::Parked,
        };
        Self {
            id: envelope.id.into(),
            user_id: Some(envelope.command.user_id().into()),
            kind: Some(envelope.command.wire_name().to_owned()),
            principal: Some(envelope.principal.as_str().to_owned()),
            accepted_at: envelope.accepted_at,
            applied_at: Some(outcome.applied_at),
            reason: outcome.reason.clone(),
            blocked_by: None,
            user_version: outcome.user_version,
            decision,
        }
    }

    /// One that was accepted and will have no row.
    fn unknown(id: CommandId) -> Self {
        Self {
            id: id.into(),
            user_id: None,
            kind: None,
            principal: None,
            accepted_at: id.minted_at(),
            applied_at: None,
            reason: None,
            blocked_by: None,
            user_version: None,
            decision: Decision::Unknown,
        }
    }

    /// Whether this principal sent it; no row says so of one that is lost.
    fn sent_by(&self, principal: &Principal) -> bool {
        self.principal.as_deref() == Some(principal.as_str())
    }

    /// Whether it waits behind another, and will be applied after that.
    pub(crate) fn waits(&self) -> bool {
        self.decision == Decision::Parked && self.reason.as_deref() == Some(BEHIND)
    }
}

impl CommandResource {
    /// A command that the broker has.
    pub(crate) fn accepted(envelope: &Envelope) -> Self {
        let user_id = envelope.command.user_id().into();
        Self {
            kind: Some(envelope.command.wire_name().to_owned()),
            accepted_at: envelope.accepted_at,
            ..Self::pending(envelope.id, Some(user_id))
        }
    }

    fn pending(id: CommandId, user_id: Option<Uuid>) -> Self {
        Self {
            id: id.into(),
            status: CommandStatus::Pending,
            kind: None,
            user_id,
            accepted_at: id.minted_at(),
            applied_at: None,
            reason: None,
            blocked_by: None,
            user_version: None,
            links: links(id.into(), user_id),
        }
    }

    /// Its path.
    pub(crate) fn location(&self) -> String {
        self.links.this.clone()
    }
}

impl Example for CommandResource {
    fn example() -> Self {
        Self {
            id: EXAMPLE_COMMAND,
            status: CommandStatus::Pending,
            kind: Some("users.create".to_owned()),
            user_id: Some(EXAMPLE_USER),
            accepted_at: EXAMPLE_TIME,
            applied_at: None,
            reason: None,
            blocked_by: None,
            user_version: None,
            links: links(EXAMPLE_COMMAND, Some(EXAMPLE_USER)),
        }
    }
}

/// One that succeeded, for the contract.
pub(crate) fn decided_example() -> CommandResource {
    CommandResource {
        status: CommandStatus::Succeeded,
        applied_at: Some(EXAMPLE_TIME + time::Duration::milliseconds(12)),
        user_version: Some(1),
        ..CommandResource::example()
    }
}

fn links(id: Uuid, user_id: Option<Uuid>) -> CommandLinks {
    CommandLinks { this: format!("/v1/commands/{id}"), user: user_id.map(|id| format!("/v1/users/{id}")) }
}

impl From<Decided> for CommandResource {
    fn from(row: Decided) -> Self {
        Self {
            id: row.id,
            status: match row.decision {
                Decision::Succeeded => CommandStatus::Succeeded,
                Decision::Rejected(_) => CommandStatus::Rejected,
                Decision::Parked => CommandStatus::Parked,
                Decision::Unknown => CommandStatus::Unknown,
            },
            kind: row.kind,
            user_id: row.user_id,
            accepted_at: row.accepted_at,
            applied_at: row.applied_at,
            reason: row.reason,
            blocked_by: row.blocked_by,
            user_version: row.user_version,
            links: links(row.id, row.user_id),
        }
    }
}

/// Commands
pub struct CommandsApi(pub(crate) Arc<Api>);

#[derive(ApiResponse)]
enum GetCommand {
    /// The command. While it is pending, `Retry-After` says when to look again.
    #[oai(status = 200)]
    Found(
        Json<CommandResource>,
        #[oai(header = "Retry-After")] Option<u32>,
        #[oai(header = "Preference-Applied")] Option<String>,
    ),
}

struct GetCommandFailures;

impl Failures for GetCommandFailures {
    const KINDS: &'static [ProblemKind] = &[
        ProblemKind::InvalidRequest,
        ProblemKind::CommandNotFound,
        ProblemKind::CommandExpired,
        ProblemKind::DatabaseUnavailable,
        ProblemKind::Overloaded,
    ];
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Commands")]
impl CommandsApi {
    /// Ask what became of a command
    ///
    /// `pending` until a worker applied it, then `succeeded`, `rejected` or `parked`. With `Prefer: wait=N` the answer
    /// comes as soon as the command is decided, at the latest after N seconds.
    ///
    /// `unknown` is final, too: minutes after its acceptance the command is neither applied nor waiting, although every
    /// other one of that time is decided. It was lost outside of the service, or after a 504 it never reached the broker.
    /// Look at the user, then send the request again, under its `Idempotency-Key` if it had one.
    ///
    /// A command is shown to the principal that sent it, and with `users:read` to others. To everybody else it does not exist.
    #[oai(path = "/commands/:command_id", method = "get", operation_id = "get_command")]
    async fn get_command(
        &self,
        caller: Caller<(UsersRead, UsersWrite)>,
        /// The id from the 202.
        command_id: Path<Uuid>,
        /// `wait=N`: wait up to N seconds, at most 30, for the outcome.
        #[oai(name = "Prefer")]
        prefer: Field,
    ) -> Result<GetCommand, Failed<GetCommandFailures>> {
        let terms = Terms::read(&caller.principal, prefer.0.as_deref(), None, None)?;
        let missing = || Problem::new(ProblemKind::CommandNotFound);
        let id = CommandId::try_from(command_id.0).map_err(|_| missing())?;
        // Of a command without a row, its id alone says whose it is.
        let shown = match self.0.acceptor.origin(id, &caller.principal)? {
            IdOrigin::Principal => true,
            // Where nobody has to log in, there is one principal.
            IdOrigin::Deployment => caller.reads_users && !caller.principal.is_anonymous(),
            IdOrigin::Unknown => false,
        };
        let kept = OffsetDateTime::now_utc() - id.minted_at() <= self.0.retention.0;
        // Only a command that is shown and can still be decided is worth waiting for.
        let mut terms = if shown && kept { terms } else { Terms::read(&caller.principal, None, None, None)? };
        let resource = match self.0.acceptor.look(id, &caller.principal, &mut terms).await? {
            Some(decided) if decided.decision != Decision::Unknown => {
                if !caller.reads_users && !decided.sent_by(&caller.principal) {
                    return Err(missing().into());
                }
                decided.into()
            }
            _ if !shown => return Err(missing().into()),
            _ if !kept => return Err(Problem::new(ProblemKind::CommandExpired).into()),
            Some(lost) => lost.into(),
            None => CommandResource::pending(id, None),
        };
        let again = (resource.status == CommandStatus::Pending).then_some(1);
        Ok(GetCommand::Found(Json(resource), again, terms.applied()))
    }
}

/// `commands.reason` of a command that waits behind another of its user; only the database names that one.
pub(crate) const BEHIND: &str = "behind-another";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::assert_written_as_described;

    #[test]
    fn commands_are_written_as_the_contract_describes_them() {
        let blocked = CommandResource {
            status: CommandStatus::Parked,
            reason: Some(BEHIND.to_owned()),
            blocked_by: Some(EXAMPLE_COMMAND),
            ..decided_example()
        };
        let id = CommandId::try_from(EXAMPLE_COMMAND).expect("an id");
        for command in [CommandResource::example(), decided_example(), blocked, CommandResource::pending(id, None)] {
            assert_written_as_described(&command);
        }
    }
}
