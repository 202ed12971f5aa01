//! Reads every promise and every row afterwards, and decides.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::load::{Life, Promises};
use super::system::System;

/// How many broken promises are shown one by one.
const SHOWN: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    accepted: usize,
    refused: u64,
    unknown: u64,
    lost: Vec<String>,
    twice: Vec<String>,
    reordered: Vec<String>,
    wrong: Vec<String>,
}

/// A command's row.
struct Outcome {
    status: String,
    version: Option<i64>,
    applied_at: OffsetDateTime,
}

impl Verdict {
    /// Whether every promise was kept.
    pub(crate) fn kept(&self) -> bool {
        [&self.lost, &self.twice, &self.reordered, &self.wrong].into_iter().all(Vec::is_empty)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "accepted   {}", self.accepted)?;
        writeln!(f, "refused    {} (503, nothing promised)", self.refused)?;
        writeln!(f, "unknown    {} (504 or no answer, nothing promised)", self.unknown)?;
        let kinds =
            [("lost", &self.lost), ("twice", &self.twice), ("reordered", &self.reordered), ("wrong", &self.wrong)];
        for (kind, found) in kinds {
            writeln!(f, "{kind:<10} {}", found.len())?;
            for one in found.iter().take(SHOWN) {
                writeln!(f, "  {one}")?;
            }
        }
        write!(f, "{}", if self.kept() { "every promise was kept" } else { "PROMISES WERE BROKEN" })
    }
}

/// Waits until nothing moves any more, then compares.
pub(crate) async fn judge(system: &System, promises: &Promises, patience: Duration) -> anyhow::Result<Verdict> {
    let mut connection = system.database().await?;
    let ids: Vec<Uuid> = promises.lives.iter().flat_map(|life| &life.promises).map(|promise| promise.id).collect();
    let outcomes = settle(&mut connection, &ids, patience).await?;
    let mut verdict = Verdict {
        accepted: ids.len(),
        refused: promises.refused,
        unknown: promises.unknown,
        wrong: promises.wrong.clone(),
        ..Verdict::default()
    };
    for life in &promises.lives {
        judge_order(&mut verdict, life, &outcomes);
    }
    judge_versions(&mut verdict, &mut connection).await?;
    Ok(verdict)
}

async fn settle(
    connection: &mut PgConnection,
    ids: &[Uuid],
    patience: Duration,
) -> anyhow::Result<HashMap<Uuid, Outcome>> {
    let deadline = Instant::now() + patience;
    loop {
        let rows: Vec<(Uuid, String, Option<i64>, OffsetDateTime)> =
            sqlx::query_as("SELECT id, status, user_version, applied_at FROM commands WHERE id = ANY($1)")
                .bind(ids)
                .fetch_all(&mut *connection)
                .await?;
        if rows.len() == ids.len() || Instant::now() > deadline {
            return Ok(rows
                .into_iter()
                .map(|(id, status, version, applied_at)| (id, Outcome { status, version, applied_at }))
                .collect());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A later promise has a later version; a conditional one came right after the version that it named.
fn judge_order(verdict: &mut Verdict, life: &Life, outcomes: &HashMap<Uuid, Outcome>) {
    let mut last = 0;
    let mut last_at = OffsetDateTime::UNIX_EPOCH;
    for promise in &life.promises {
        let Some(outcome) = outcomes.get(&promise.id) else {
            verdict.lost.push(format!("command {} of user {} has no outcome", promise.id, life.user));
            continue;
        };
        match (outcome.status.as_str(), outcome.version) {
            ("succeeded", Some(version)) => {
                if version <= last {
                    verdict.reordered.push(format!(
                        "command {} of user {}: version {version} at {} after version {last} at {last_at}",
                        promise.id, life.user, outcome.applied_at
                    ));
                }
                if promise.if_match.is_some_and(|expected| expected + 1 != version) {
                    verdict.wrong.push(format!("command {} was conditional, and not on this version", promise.id));
                }
                last = version;
                last_at = outcome.applied_at;
            }
            // A version that was lost, or a state that was there already.
            ("rejected", _) => {}
            (status, _) => verdict.wrong.push(format!("command {} ended as {status}", promise.id)),
        }
    }
}

/// The versions that the commands of a user gave are 1, 2, 3 … up to the user's own: none twice, none without a command.
async fn judge_versions(verdict: &mut Verdict, connection: &mut PgConnection) -> anyhow::Result<()> {
    let odd: Vec<(Uuid, i64, i64, i64)> = sqlx::query_as(
        "SELECT users.id, users.version, count(*), count(DISTINCT commands.user_version)
         FROM users
         LEFT JOIN commands ON commands.user_id = users.id AND commands.status = 'succeeded'
         GROUP BY users.id, users.version
         HAVING count(*) <> users.version
             OR count(DISTINCT commands.user_version) <> users.version
             OR max(commands.user_version) <> users.version",
    )
    .fetch_all(connection)
    .await?;
    for (user, version, commands, distinct) in odd {
        verdict
            .twice
            .push(format!("user {user} has version {version} after {commands} commands with {distinct} versions"));
    }
    Ok(())
}
