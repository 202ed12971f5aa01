//! Letters as text and as JSON.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;
use worker::dead_letters::{Letter, ReplayError, Step, Verdict};
use worker::users::Outcome;

/// What the operator does with a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Replay,
    Discard,
}

/// One letter on one line.
pub(super) fn line(letter: &Letter, json: bool) -> String {
    if json {
        return object(letter).to_string();
    }
    let command = letter.command_id.map_or_else(|| "no command".to_owned(), |id| id.to_string());
    format!(
        "{:>6}  {}  {:<36}  {:<16}  {:<5}  {:>4} behind  {}",
        letter.id,
        at(letter.last_seen_at),
        command,
        letter.kind.as_deref().unwrap_or("-"),
        letter.sqlstate.as_deref().unwrap_or("-"),
        letter.behind,
        plain(&letter.reason),
    )
}

/// One letter with everything.
pub(super) fn whole(letter: &Letter, behind: &[(Uuid, String)], json: bool) -> String {
    let payload = String::from_utf8_lossy(&letter.payload);
    if json {
        let mut object = object(letter);
        object["traceparent"] = json!(letter.traceparent);
        object["tracestate"] = json!(letter.tracestate);
        object["payload"] = serde_json::from_slice(&letter.payload).unwrap_or_else(|_| json!(payload));
        object["payload_base64"] = json!(BASE64_STANDARD.encode(&letter.payload));
        object["properties_base64"] = json!(letter.properties.as_ref().map(|octets| BASE64_STANDARD.encode(octets)));
        object["behind"] = behind.iter().map(|(id, kind)| json!({ "command_id": id, "type": kind })).collect();
        return format!("{object:#}");
    }
    let mut text = String::new();
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let members = [
        ("letter", letter.id.to_string()),
        ("state", letter.state.clone()),
        ("command", or_none(letter.command_id.map(|id| id.to_string()))),
        ("user", or_none(letter.user_id.map(|id| id.to_string()))),
        ("type", or_none(letter.kind.clone())),
        ("reason", plain(&letter.reason)),
        ("sqlstate", or_none(letter.sqlstate.clone())),
        ("attempts", letter.attempts.to_string()),
        ("first seen", at(letter.first_seen_at)),
        ("last seen", at(letter.last_seen_at)),
        ("trace", or_none(letter.traceparent.clone())),
        ("properties", or_none(letter.properties.as_ref().map(|octets| octets.escape_ascii().to_string()))),
        (
            "size",
            letter.size.map_or_else(
                || letter.payload.len().to_string(),
                |size| format!("{size}, of which the message below is the beginning"),
            ),
        ),
        ("message", plain(&payload)),
        ("behind it", letter.behind.to_string()),
    ];
    for (name, value) in members {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{name:<11} {value}");
    }
    for (id, kind) in behind {
        let _ = writeln!(text, "{:<11} {id}  {kind}", "");
    }
    text.trim_end().to_owned()
}

/// What became of a letter and of what waited behind it.
pub(super) fn steps(letter: &Letter, steps: &[Step], verb: Verb, dry_run: bool, json: bool) -> String {
    if json {
        let steps: Vec<Value> = steps
            .iter()
            .map(|s| {
                let (status, sqlstate, reason) = parts(&s.verdict);
                json!({ "command_id": s.command_id, "type": s.kind, "status": status, "sqlstate": sqlstate, "reason": reason })
            })
            .collect();
        return json!({ "id": letter.id, "dry_run": dry_run, "commands": steps }).to_string();
    }
    let mut text = format!("letter {}{}", letter.id, if dry_run { " (tried, and nothing changed)" } else { "" });
    if steps.is_empty() && letter.user_id.is_some() {
        text.push_str(": somebody else dealt with it");
    } else if steps.is_empty() {
        text.push_str(match (dry_run, verb) {
            (true, Verb::Replay) => ": can be read",
            (true, Verb::Discard) => ": would be discarded",
            (false, _) => ": closed",
        });
    }
    for step in steps {
        let verdict = match step.verdict {
            Verdict::Discarded if dry_run => "would be discarded".to_owned(),
            ref other => verdict(other),
        };
        let _ = write!(text, "\n  {}  {:<16}  {verdict}", step.command_id, step.kind);
    }
    text
}

/// Why nothing was done about a letter.
pub(super) fn refused(letter: &Letter, fault: &ReplayError, json: bool) -> String {
    if json {
        return json!({ "id": letter.id, "refused": fault.to_string() }).to_string();
    }
    format!("letter {}: {fault}", letter.id)
}

fn verdict(verdict: &Verdict) -> String {
    match parts(verdict) {
        (status, Some(sqlstate), Some(reason)) => format!("{status} ({sqlstate}): {}", plain(reason)),
        (status, _, Some(reason)) => format!("{status}: {}", plain(reason)),
        (status, ..) => status.to_owned(),
    }
}

/// A word, the SQLSTATE and the reason.
fn parts(verdict: &Verdict) -> (&'static str, Option<&str>, Option<&str>) {
    match verdict {
        Verdict::Decided(Outcome::Succeeded(_)) => ("succeeded", None, None),
        Verdict::Decided(Outcome::Rejected(rejection)) => ("rejected", None, Some(rejection.as_str())),
        Verdict::Decided(Outcome::Parked(_) | Outcome::Behind) | Verdict::Waits => ("waits", None, None),
        Verdict::Discarded => ("discarded", None, None),
        Verdict::Failed(sqlstate, reason) => ("failed again", sqlstate.as_deref(), Some(reason)),
    }
}

/// What a list shows: nothing that the sender of the message wrote freely.
fn object(letter: &Letter) -> Value {
    json!({
        "id": letter.id,
        "command_id": letter.command_id,
        "user_id": letter.user_id,
        "type": letter.kind,
        "reason": letter.reason,
        "sqlstate": letter.sqlstate,
        "attempts": letter.attempts,
        "first_seen_at": at(letter.first_seen_at),
        "last_seen_at": at(letter.last_seen_at),
        "state": letter.state,
        "behind": letter.behind,
        "size": letter.size.unwrap_or_else(|| i64::try_from(letter.payload.len()).unwrap_or(i64::MAX)),
    })
}

fn at(time: OffsetDateTime) -> String {
    // To the second; a time of this millennium can be written.
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// On one line, and without what a terminal would take for a command: anybody who can publish may have written it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
