//! Each operation against its rows, against what the client was told, and against those that were promised before it.

use common::command::Rejection;
use rand::seq::IteratorRandom;
use serde_json::Value;

use super::rows::{Row, Rows};
use super::{Broken, Verdict};
use crate::torture::promises::{Kind, Life, Operation, Promises, Shown};

/// Commands whose status is asked for once more in the end.
const ASKED: usize = 200;

/// Every operation of one life.
pub(super) fn judge(verdict: &mut Verdict, life: &Life, rows: &Rows) {
    // What is known of each operation that succeeded: when it was promised, and the least version of whatever came after.
    let mut before = Vec::new();
    for operation in &life.operations {
        let found = outcome(verdict, life, operation, rows);
        let floor = before.iter().filter(|(accepted, _)| *accepted < operation.sent).map(|(_, version)| *version).max();
        let floor = floor.unwrap_or(0);
        if let Some(row) = found {
            judge_outcome(verdict, operation, row);
            if let Some(version) = row.version.filter(|version| *version <= floor) {
                verdict.found(
                    Broken::Reordered,
                    format!("command {} of user {}: version {version} after version {floor}", row.id, life.user),
                );
            }
        }
        if let Some(Shown::Version(shown)) = operation.shown {
            judge_shown(verdict, life, operation, rows, (floor, shown));
        }
        let version = match operation.shown {
            Some(Shown::Version(version)) => Some(version),
            _ => found.and_then(|row| row.version),
        };
        before.extend(operation.accepted.zip(version));
    }
}

/// The outcome of its attempts, which is one.
fn outcome<'r>(verdict: &mut Verdict, life: &Life, operation: &Operation, rows: &'r Rows) -> Option<&'r Row> {
    let mut first: Option<&Row> = None;
    for promise in &operation.promises {
        let Some(row) = rows.commands.get(&promise.id) else {
            verdict.unkept(promise.id, life.user);
            continue;
        };
        if row.user_id != life.user || row.kind != operation.request.kind.wire_name() {
            verdict.found(Broken::Wrong, format!("command {} is recorded as another", promise.id));
        }
        if promise.rejected.is_some() && promise.rejected != row.reason {
            let told = promise.rejected.as_deref().unwrap_or_default();
            verdict.found(Broken::Wrong, format!("command {}: told {told}, but {}", promise.id, row.outcome()));
        }
        if promise.parked && !row.letter {
            verdict.found(Broken::Wrong, format!("command {} never was the dead letter that was told of", promise.id));
        }
        match first {
            None => first = Some(row),
            Some(first) => {
                if (&first.status, &first.reason, first.version) != (&row.status, &row.reason, row.version) {
                    let (one, other) = (first.outcome(), row.outcome());
                    let what = format!("a retry of command {} ({one}) ended otherwise: {} ({other})", first.id, row.id);
                    verdict.found(Broken::Twice, what);
                }
            }
        }
    }
    first
}

/// Whether the outcome is one that the request can have.
fn judge_outcome(verdict: &mut Verdict, operation: &Operation, row: &Row) {
    let request = &operation.request;
    let reason = row.reason.as_deref().and_then(Rejection::from_name);
    let explained = match (row.status.as_str(), reason) {
        ("succeeded", _) => {
            !request.reused
                && request.if_match.is_none_or(|expected| row.version == Some(expected + 1))
                && row.version.is_some() == (request.kind != Kind::Delete)
        }
        ("rejected", Some(Rejection::KeyReused)) => request.reused,
        ("rejected", Some(Rejection::VersionLost)) => request.if_match.is_some(),
        ("rejected", Some(Rejection::AlreadySuspended)) => request.kind == Kind::Suspend,
        ("rejected", Some(Rejection::NotSuspended)) => request.kind == Kind::Reactivate,
        ("rejected", Some(Rejection::NotFound)) => {
            let what = format!("command {} found no user {}, who was promised before", row.id, row.user_id);
            verdict.found(Broken::Reordered, what);
            true
        }
        _ => false,
    };
    if !explained {
        let what = format!("command {} {} of user {}: {}", row.id, row.kind, row.user_id, row.outcome());
        verdict.found(Broken::Wrong, what);
    }
}

/// A client that waited was shown a version: then something of this kind was applied within it, after all before it.
fn judge_shown(verdict: &mut Verdict, life: &Life, operation: &Operation, rows: &Rows, (floor, shown): (i64, i64)) {
    let kind = operation.request.kind.wire_name();
    let fits = |row: &&Row| {
        row.succeeded() && row.kind == kind && row.version.is_some_and(|version| version > floor && version <= shown)
    };
    // With a key the rows are known; without one any of the kind will do.
    let fitting = match operation.promises.as_slice() {
        [] => rows.of_user(life.user).any(|row| fits(&row)),
        promises => promises.iter().filter_map(|promise| rows.commands.get(&promise.id)).any(|row| fits(&row)),
    };
    if !fitting {
        let what = format!("user {}: version {shown} was shown after {floor}, but no {kind} made it", life.user);
        verdict.found(Broken::Wrong, what);
    }
}

/// The status resource agrees with the rows.
pub(super) async fn judge_status(
    verdict: &mut Verdict,
    bases: &[String],
    promises: &Promises,
    rows: &Rows,
) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let sample = promises.ids().into_iter().sample(&mut rand::rng(), ASKED);
    for (id, base) in sample.into_iter().zip(bases.iter().cycle()) {
        let Some(row) = rows.commands.get(&id) else { continue };
        let told: Value = http.get(format!("{base}/v1/commands/{id}")).send().await?.json().await?;
        if told["status"] != row.status.as_str() || told["user_version"].as_i64() != row.version {
            verdict.found(Broken::Wrong, format!("command {id}: {}, but the API says {told}", row.outcome()));
        }
    }
    Ok(())
}
