//! The JSON of replies, and how many go into one message.

use rollcall_common::broker::LARGEST_BODY;
use rollcall_common::command::{CommandId, CommandOutcome, CommandReply, OutcomeStatus};
use serde_json::value::RawValue;
use time::macros::datetime;

/// Another release reads what this one writes.
const GOLDEN: &str = include_str!("golden/replies.json");

fn outcome(status: OutcomeStatus, reason: Option<&str>, user: Option<String>) -> CommandOutcome {
    CommandOutcome {
        status,
        reason: reason.map(str::to_owned),
        applied_at: datetime!(2026-11-05 12:34:56.789012 UTC),
        user_version: user.as_ref().map(|_| 1),
        user: user.map(|user| RawValue::from_string(user).expect("JSON")),
    }
}

fn samples() -> Vec<CommandReply> {
    let at = "2026-11-05T12:34:56.789012Z";
    let user = format!(
        r#"{{"id":"01890a5d-ac96-774b-bcce-b302099a8057","email":"ada@example.org","name":"Ada","status":"active","version":1,"created_at":"{at}","updated_at":"{at}"}}"#
    );
    let outcomes = [
        Some(outcome(OutcomeStatus::Succeeded, None, Some(user))),
        Some(outcome(OutcomeStatus::Rejected, Some("email-taken"), None)),
        Some(outcome(OutcomeStatus::Parked, Some("22P05"), None)),
        None,
    ];
    let id = |number| format!("019a5c3e-7115-7abc-8def-01234567{number:04}").parse().expect("a command id");
    (1..).zip(outcomes).map(|(number, outcome)| CommandReply { id: id(number), outcome }).collect()
}

#[test]
fn replies_are_written_as_their_golden_file_and_read_again() {
    let [body] = &CommandReply::encode_all(&samples())[..] else { panic!("one message") };
    assert_eq!(std::str::from_utf8(body), Ok(GOLDEN.trim_end()));
    let read = CommandReply::decode_all(GOLDEN.as_bytes()).expect("replies");
    assert_eq!(CommandReply::encode_all(&read), std::slice::from_ref(body));
}

#[test]
fn what_a_later_release_adds_is_ignored_or_makes_a_hint() {
    let later = GOLDEN.replace(r#""status":"rejected""#, r#""status":"postponed","until":[1]"#);
    let later = later.replace(r#"{"replies""#, r#"{"of":"a later release","replies""#);
    let read = CommandReply::decode_all(later.as_bytes()).expect("replies");
    let decided: Vec<bool> = read.iter().map(|reply| reply.outcome.is_some()).collect();
    assert_eq!(decided, [true, false, true, false]);
}

#[test]
fn what_is_no_reply_is_refused() {
    for body in ["", "{}", "[]", r#"{"replies":[{}]}"#, r#"{"replies":[{"id":"1"}]}"#, &GOLDEN[1..]] {
        assert!(CommandReply::decode_all(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn many_replies_are_several_messages_that_no_filter_cuts() {
    let text = "\u{10FFFF}".repeat(200);
    let user = |name: &str| format!(r#"{{"email":"{}","name":"{name}"}}"#, "a".repeat(254));
    for (name, reason) in [("Ada", None), (text.as_str(), None), ("Ada", Some("\u{1}".repeat(500)))] {
        let one = |_| {
            let outcome = outcome(OutcomeStatus::Succeeded, reason.as_deref(), Some(user(name)));
            CommandReply { id: CommandId::mint(), outcome: Some(outcome) }
        };
        let replies: Vec<CommandReply> = (0..250).map(one).collect();
        let bodies = CommandReply::encode_all(&replies);
        let mut read = Vec::new();
        for body in &bodies {
            assert!(body.len() as u64 <= LARGEST_BODY, "{} bytes", body.len());
            let part = CommandReply::decode_all(body).expect("replies");
            assert!((1..=100).contains(&part.len()));
            read.extend(part.into_iter().map(|reply| reply.id));
        }
        assert_eq!(read, replies.iter().map(|reply| reply.id).collect::<Vec<_>>());
    }
    assert!(CommandReply::encode_all(&[]).is_empty());
}
