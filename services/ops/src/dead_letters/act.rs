//! Replaying and discarding, one user's letters at a time.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use common::command::UserId;
use sqlx::PgConnection;
use worker::blame::ApplyError;
use worker::dead_letters::{self, Discarded, Letter, ReplayError, Step, Terms, Verdict};

use super::print::{self, Verb};
use crate::output::say;

/// How often one user's letters are tried again when a batch was in the way.
const TRIES: u32 = 10;

/// Replays each letter with what waits behind it; gives how many failed.
pub(super) async fn replay(
    conn: &mut PgConnection,
    letters: &[Letter],
    terms: Terms,
    json: bool,
) -> anyhow::Result<usize> {
    let mut failed = 0;
    for letter in letters {
        let end = retry_on_contention(async || match user(letter) {
            Some(user) => replay_open(conn, letter, user, terms).await,
            None => dead_letters::replay_raw(conn, letter, terms).await,
        });
        failed += usize::from(!report(letter, end.await, Verb::Replay, terms, json)?);
    }
    Ok(failed)
}

/// Discards the letters, and with `followers` all that wait behind them, and replays what else waits; gives how many of the
/// first ones did not go through.
pub(super) async fn discard(
    conn: &mut PgConnection,
    letters: &[Letter],
    followers: bool,
    terms: Terms,
    json: bool,
) -> anyhow::Result<usize> {
    let mut failed = 0;
    for (user, letters) in by_user(letters) {
        let Some(letter) = letters.first() else { continue };
        let ids: HashSet<i64> = letters.iter().map(|letter| letter.id).collect();
        let which = if followers { Discarded::All } else { Discarded::These(ids) };
        let end = retry_on_contention(async || match user {
            Some(user) => dead_letters::discard(conn, user, &which, terms).await,
            None if terms.dry_run => Ok(Vec::new()),
            None => dead_letters::discard_raw(conn, letter.id).await.map(|()| Vec::new()),
        });
        failed += usize::from(!report(letter, end.await, Verb::Discard, terms, json)?);
    }
    Ok(failed)
}

/// The letters of each user, in order; one that has no user stands alone.
pub(super) fn by_user(letters: &[Letter]) -> Vec<(Option<UserId>, Vec<&Letter>)> {
    let mut of_users: BTreeMap<UserId, Vec<&Letter>> = BTreeMap::new();
    let mut all = Vec::new();
    for letter in letters {
        match user(letter) {
            Some(user) => of_users.entry(user).or_default().push(letter),
            None => all.push((None, vec![letter])),
        }
    }
    for (user, mut letters) in of_users {
        letters.sort_by_key(|letter| letter.id);
        letters.dedup_by_key(|letter| letter.id);
        all.push((Some(user), letters));
    }
    all
}

fn user(letter: &Letter) -> Option<UserId> {
    UserId::try_from(letter.user_id?).ok()
}

/// A letter that was closed meanwhile is not what the operator meant. One that waits is replayed with those before it.
async fn replay_open(
    conn: &mut PgConnection,
    letter: &Letter,
    user: UserId,
    terms: Terms,
) -> Result<Vec<Step>, ReplayError> {
    let found = dead_letters::find(conn, Some(letter.id), None).await?;
    if found.is_none_or(|found| found.state != "open") {
        return Err(ReplayError::NotOpen);
    }
    dead_letters::replay(conn, user, terms).await
}

async fn retry_on_contention(
    mut attempt: impl AsyncFnMut() -> Result<Vec<Step>, ReplayError>,
) -> Result<Vec<Step>, ReplayError> {
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
fn report(
    letter: &Letter,
    end: Result<Vec<Step>, ReplayError>,
    verb: Verb,
    terms: Terms,
    json: bool,
) -> anyhow::Result<bool> {
    match end {
        Ok(steps) => {
            say(print::steps(letter, &steps, verb, terms.dry_run, json));
            Ok(!steps.iter().any(|step| matches!(step.verdict, Verdict::Failed(..))))
        }
        Err(
            fault @ ReplayError::Apply(
                ApplyError::Deployment(_) | ApplyError::Outage(_) | ApplyError::Fenced | ApplyError::Flood(_),
            ),
        ) => Err(fault.into()),
        Err(fault) => {
            say(print::refused(letter, &fault, json));
            Ok(false)
        }
    }
}
