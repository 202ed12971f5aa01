//! Replaying and discarding, one user's letters at a time.

use std::time::Duration;

use common::command::UserId;
use common::config::IdempotencyWindow;
use common::telemetry::TraceHeaders;
use sqlx::PgConnection;
use worker::blame::ApplyError;
use worker::dead_letters::{self, Letter, ReplayError, Step, Verdict};

use super::print;
use crate::say;

/// How often one user's letters are tried again when a batch was in the way.
const TRIES: u32 = 10;

/// Replays each letter with what waits behind it; gives how many failed.
pub(super) async fn replay(
    conn: &mut PgConnection,
    letters: &[Letter],
    window: IdempotencyWindow,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<usize> {
    let mut failed = 0;
    for letter in letters {
        let trace = TraceHeaders { traceparent: letter.traceparent.clone(), tracestate: letter.tracestate.clone() };
        let end = insist(async || match user(letter) {
            Some(user) => first(conn, letter, user, window, dry_run).await,
            None => dead_letters::replay_raw(conn, letter.id, &letter.payload, &trace, window, dry_run).await,
        });
        failed += usize::from(!told(letter, end.await, dry_run, json)?);
    }
    Ok(failed)
}

/// Discards each letter, and replays what waits behind it; gives how many did not go through.
pub(super) async fn discard(
    conn: &mut PgConnection,
    letters: &[Letter],
    window: IdempotencyWindow,
    dry_run: bool,
    json: bool,
) -> anyhow::Result<usize> {
    let mut failed = 0;
    for letter in letters {
        let end = insist(async || match user(letter) {
            Some(user) => dead_letters::discard(conn, user, letter.id, window, dry_run).await,
            None if dry_run => Ok(Vec::new()),
            None => dead_letters::discard_raw(conn, letter.id).await.map(|()| Vec::new()),
        });
        failed += usize::from(!told(letter, end.await, dry_run, json)?);
    }
    Ok(failed)
}

fn user(letter: &Letter) -> Option<UserId> {
    UserId::try_from(letter.user_id?).ok()
}

/// A letter that was closed meanwhile is not what the operator meant. One that waits is replayed with those before it.
async fn first(
    conn: &mut PgConnection,
    letter: &Letter,
    user: UserId,
    window: IdempotencyWindow,
    dry_run: bool,
) -> Result<Vec<Step>, ReplayError> {
    let found = dead_letters::find(conn, Some(letter.id), None).await?;
    if found.is_none_or(|found| found.state != "open") {
        return Err(ReplayError::NotOpen);
    }
    dead_letters::replay(conn, user, window, dry_run).await
}

async fn insist(mut attempt: impl AsyncFnMut() -> Result<Vec<Step>, ReplayError>) -> Result<Vec<Step>, ReplayError> {
    for number in 1..TRIES {
        match attempt().await {
            Err(ReplayError::Apply(ApplyError::Contention(_))) => {
                tokio::time::sleep(Duration::from_millis(20) * number).await;
            }
            end => return end,
        }
    }
    attempt().await
}

/// Tells what became of a letter, and whether all went well. A fault that is no letter's ends the run.
fn told(letter: &Letter, end: Result<Vec<Step>, ReplayError>, dry_run: bool, json: bool) -> anyhow::Result<bool> {
    match end {
        Ok(steps) => {
            say(print::steps(letter, &steps, dry_run, json));
            Ok(!steps.iter().any(|step| matches!(step.verdict, Verdict::Failed(..))))
        }
        Err(fault @ ReplayError::Apply(_)) => Err(fault.into()),
        Err(fault) => {
            say(print::refused(letter, &fault, json));
            Ok(false)
        }
    }
}
