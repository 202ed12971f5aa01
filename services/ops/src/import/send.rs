//! One row sent, and its outcome awaited.

use anyhow::Context;
use client::types::{CommandStatus, NewUser};
use client::{Client, Error, Written, types};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::journal::hex;
use super::report::Flaw;
use super::rows::Row;

const WAIT: &str = "wait=30";

/// What became of a command.
enum End {
    /// It is so, and this is the user.
    Done(Uuid),
    /// It was so before.
    Already(Uuid),
    Rejected(Flaw),
}

/// Creates the user of a row and, where it says so, suspends it. Gives what is wrong if that is not possible; fails when the
/// service cannot be asked.
pub(super) async fn send(client: &Client, import: &str, row: &Row) -> anyhow::Result<Option<Flaw>> {
    let key = key(import, row);
    let body = NewUser { email: row.email.clone(), name: row.name.clone() };
    let created = client.create_user().prefer(WAIT).idempotency_key(&key).body(body).send().await;
    let (user, already) = match end(client, created.map(client::ResponseValue::into_inner), "user-exists").await? {
        End::Done(user) => (user, false),
        // A row that was imported before the window of its key began has the id that the key gives it.
        End::Already(user) => (user, true),
        End::Rejected(fault) => return Ok(Some(fault)),
    };
    if !row.suspended() {
        return Ok(None);
    }
    let suspending = client.suspend_user().user_id(user).prefer(WAIT);
    let suspending = if already {
        // Only as it was created: what others made of it since stays.
        suspending.if_match("\"1\"").idempotency_key(format!("{key}-suspend-again"))
    } else {
        suspending.idempotency_key(format!("{key}-suspend"))
    };
    let same = if already { "version-lost" } else { "already-suspended" };
    match end(client, suspending.send().await.map(client::ResponseValue::into_inner), same).await? {
        End::Rejected(fault) => Ok(Some(Flaw { field: "status".to_owned(), ..fault })),
        End::Already(_) if already && !suspended(client, user).await? => Ok(Some(Flaw::new(
            "status",
            "was changed since the row was imported, and stays active; suspend the user if it should not be",
        ))),
        End::Done(_) | End::Already(_) => Ok(None),
    }
}

async fn suspended(client: &Client, user: Uuid) -> Result<bool, Error> {
    let user = client.get_user().user_id(user).send().await?;
    Ok(user.status == types::UserStatus::Suspended)
}

/// The same for the same row in the same import, whenever it is sent.
fn key(import: &str, row: &Row) -> String {
    let status = if row.suspended() { "suspended" } else { "active" };
    // None of them has the character zero.
    let parts = [import, &row.email, &row.name, status].join("\0");
    format!("import-{}", hex(&Sha256::digest(parts)))
}

/// What to do about a command that was accepted and lost. Imported again, the row is sent under the same key: applied after
/// all, it takes effect once.
fn lost(command: Uuid) -> Flaw {
    Flaw::new(
        "row",
        &format!(
            "was accepted and then lost: command {command} is neither applied nor waiting; have an operator look for the \
             cause (README, Lost commands), then import the row again"
        ),
    )
}

/// Follows a command to its end. `same` is the rejection that says that it is so already.
async fn end<E>(client: &Client, answer: Result<Written<types::User>, E>, same: &str) -> anyhow::Result<End>
where
    Error: From<E>,
{
    let (command, reason) = match answer.map_err(Error::from) {
        Ok(Written::Applied(user)) => return Ok(End::Done(user.id)),
        Ok(Written::Accepted(command)) => {
            // Decided already where the key may not read users.
            let decided = command.status == CommandStatus::Succeeded;
            let command = if decided { command } else { client.outcome(command.id).await? };
            if command.status == CommandStatus::Unknown {
                return Ok(End::Rejected(lost(command.id)));
            }
            let user = command.user_id.context("a command without its user")?;
            if command.status == CommandStatus::Succeeded {
                return Ok(End::Done(user));
            }
            let reason = if command.status == CommandStatus::Parked { None } else { command.reason.clone() };
            (command, reason.unwrap_or_else(|| "command-parked".to_owned()))
        }
        Err(Error::Problem(problem)) if matches!(problem.status, 409 | 412 | 422) => {
            let id = problem.command_id.context("a rejection without its command")?;
            (client.outcome(id).await?, problem.kind().to_owned())
        }
        Err(Error::Problem(problem)) if problem.kind() == "invalid-request" && !problem.errors.is_empty() => {
            let first = problem.errors.first().map(|fault| Flaw::new(&fault.field, &fault.detail));
            return Ok(End::Rejected(first.context("a problem without a fault")?));
        }
        Err(Error::Problem(problem)) if problem.kind() == "user-not-found" => {
            return Ok(End::Rejected(Flaw::new(
                "row",
                "was imported, and its user deleted since; import it under another --name",
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if reason == same {
        return Ok(End::Already(command.user_id.context("a command without its user")?));
    }
    Ok(End::Rejected(match reason.as_str() {
        "email-taken" => Flaw::new(
            "email",
            "another user has this address, in whatever letter case; change it, or leave the row out",
        ),
        "command-parked" => Flaw::new(
            "row",
            &format!(
                "could not be applied: command {} is parked; have an operator look (rollcall dead-letters), then import again",
                command.id
            ),
        ),
        other => Flaw::new("row", &format!("was rejected ({other}); look up /problems/{other}")),
    }))
}
