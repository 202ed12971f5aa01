//! Each user as a whole: its versions are 1, 2, 3 … up to its own, each made once, and it is as the last of them left it.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::rows::{Row, Rows, User};
use super::{Broken, Verdict};
use crate::torture::promises::{Kind, Operation, Promises};

/// Every user that has a row or a command.
pub(super) fn judge(verdict: &mut Verdict, promises: &Promises, rows: &Rows) {
    let operations = promises.lives.iter().flat_map(|life| &life.operations);
    let known: HashMap<Uuid, &Operation> = operations
        .flat_map(|operation| operation.promises.iter().map(move |promise| (promise.id, operation)))
        .collect();
    for user in rows.users.values().filter(|user| rows.of_user(user.id).next().is_none()) {
        verdict.found(Broken::Wrong, format!("user {} was created by no command", user.id));
    }
    for id in rows.concerned() {
        let commands: Vec<&Row> = rows.of_user(id).filter(|row| row.succeeded()).collect();
        let made = judge_versions(verdict, id, &commands, &known);
        let deleted = commands.iter().any(|row| row.kind == Kind::Delete.wire_name());
        match rows.users.get(&id) {
            Some(_) if deleted => verdict.found(Broken::Wrong, format!("user {id} was deleted and is there")),
            None if !deleted && made > 0 => {
                verdict.found(Broken::Lost, format!("user {id} has {made} versions and is not there"));
            }
            Some(user) if user.version != made => {
                let what = format!("user {id} has version {}, but the commands made {made}", user.version);
                verdict.found(Broken::Twice, what);
            }
            Some(user) => judge_state(verdict, user, &commands, &known),
            None => {}
        }
    }
}

/// Gives the highest version.
fn judge_versions(verdict: &mut Verdict, user: Uuid, commands: &[&Row], known: &HashMap<Uuid, &Operation>) -> i64 {
    let mut makers: BTreeMap<i64, Vec<&Row>> = BTreeMap::new();
    for row in commands {
        if let Some(version) = row.version {
            makers.entry(version).or_default().push(row);
        }
    }
    let highest = makers.keys().next_back().copied().unwrap_or(0);
    for missing in (1..=highest).filter(|version| !makers.contains_key(version)) {
        verdict.found(Broken::Twice, format!("user {user}: no command made version {missing} of {highest}"));
    }
    for (version, rows) in makers {
        // Several commands are one change only if they are retries of it: under one key, of one kind. Of an attempt whose
        // answer was lost nobody knows the id.
        let keys: HashSet<_> = rows.iter().filter_map(|row| known.get(&row.id)).map(|o| &o.request.key).collect();
        let kinds: HashSet<_> = rows.iter().map(|row| &row.kind).collect();
        if rows.len() > 1 && (keys.len() > 1 || keys.iter().any(|key| key.is_none()) || kinds.len() > 1) {
            verdict.found(Broken::Twice, format!("user {user}: {} commands made version {version}", rows.len()));
        }
    }
    highest
}

/// The last change of the name and of the status is what the row shows. One of unknown fate says nothing of the name.
fn judge_state(verdict: &mut Verdict, user: &User, commands: &[&Row], known: &HashMap<Uuid, &Operation>) {
    let last = |kinds: &[Kind]| {
        let names: Vec<_> = kinds.iter().map(|kind| kind.wire_name()).collect();
        commands.iter().filter(|row| names.contains(&row.kind.as_str())).max_by_key(|row| row.version)
    };
    let named = last(&[Kind::Create, Kind::Update]).and_then(|row| known.get(&row.id)).map(|o| &o.request.name);
    if let Some(Some(name)) = named
        && *name != user.name
    {
        verdict.found(Broken::Wrong, format!("user {} is named {:?} and not {name:?}", user.id, user.name));
    }
    let suspended = last(&[Kind::Suspend, Kind::Reactivate]).is_some_and(|row| row.kind == Kind::Suspend.wire_name());
    if suspended != (user.status == "suspended") {
        verdict.found(Broken::Wrong, format!("user {} is {}, against the last change", user.id, user.status));
    }
}
