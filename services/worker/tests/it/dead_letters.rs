//! What is recorded as a dead letter, in which order, and what is not.

use common::command::{Envelope, UserId};
use common::telemetry::TraceHeaders;
use lapin::types::{AMQPValue, FieldTable};
use rollcall_worker::dead_letters::{
    BrokerCause, CollectedMessage, Filter, RawMessage, behind, collect_one, list, record_raw,
};
use rollcall_worker::incoming::IncomingMessage;
use rollcall_worker::users::Outcome;

use crate::support::{Fixture, TRIGGER, create, done, message, poisoned, suspend, update};

fn line(envelope: &Envelope, line: &str) -> (Option<uuid::Uuid>, String) {
    (Some(envelope.id.into()), line.to_owned())
}

#[tokio::test]
async fn what_comes_after_a_dead_letter_of_its_user_is_parked_in_order_and_nobody_else() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    let (guilty, follower) = (create(ada, "ada@example.org", "Poison"), suspend(ada));
    let mut first: Vec<_> = (0..198).map(|n| create(UserId::mint(), &format!("u{n}@example.org"), "User")).collect();
    first.insert(50, guilty.clone());
    first.insert(150, follower.clone());
    let outcomes = fixture.apply(&first).await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Some(done(1))).count(), 198);
    assert_eq!([&outcomes[50], &outcomes[150]], [&Some(poisoned()), &Some(Outcome::Behind)]);

    // A batch that raises nothing, and one that raises for another user.
    let second = [update(ada, None, Some("Ada")), create(bob, "bob@example.org", "Bob")];
    assert_eq!(fixture.apply(&second).await, [Some(Outcome::Behind), Some(done(1))]);
    let third = [update(bob, None, Some("Poison")), suspend(ada), suspend(bob)];
    assert_eq!(fixture.apply(&third).await, [Some(poisoned()), Some(Outcome::Behind), Some(Outcome::Behind)]);
    assert_eq!(fixture.apply(&third).await, [None, None, None], "recorded once");

    let expected = [
        line(&guilty, "22023 1"),
        line(&follower, "- 0"),
        line(&second[0], "- 0"),
        line(&third[0], "22023 1"),
        line(&third[1], "- 0"),
        line(&third[2], "- 0"),
    ];
    assert_eq!(fixture.letters().await, expected);
    let conn = &mut fixture.database.conn;
    let heads = list(conn, &Filter::default(), 10).await.expect("letters");
    assert_eq!(
        heads.iter().map(|l| (l.command_id, l.behind)).collect::<Vec<_>>(),
        [(Some(guilty.id.into()), 3), (Some(third[0].id.into()), 1)]
    );
    let waiting = behind(conn, &heads[0]).await.expect("commands");
    let expected = [&follower, &second[0], &third[1]].map(|c| (c.id.into(), c.command.wire_name().to_owned()));
    assert_eq!(waiting, expected);
    fixture.stop().await;
}

#[tokio::test]
async fn letters_are_found_by_what_is_known_of_them() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let user = UserId::mint();
    fixture.apply(&[create(user, "ada@example.org", "Poison")]).await;
    let none = TraceHeaders::default();
    let raw = RawMessage { payload: b"\0no command", reason: "undecodable: \0", trace: &none, defect: None };
    record_raw(&mut fixture.database.conn, raw).await.expect("a letter");
    let now = time::OffsetDateTime::now_utc();
    let table = [
        ("all", Filter::default(), 2),
        ("a user's", Filter { user_id: Some(user.into()), ..Filter::default() }, 1),
        ("another's", Filter { user_id: Some(UserId::mint().into()), ..Filter::default() }, 0),
        ("a type", Filter { kind: Some("users.create".to_owned()), ..Filter::default() }, 1),
        ("another type", Filter { kind: Some("users.delete".to_owned()), ..Filter::default() }, 0),
        ("a word of the reason", Filter { reason: Some("DATABASE refused".to_owned()), ..Filter::default() }, 1),
        ("a wildcard is none", Filter { reason: Some("%".to_owned()), ..Filter::default() }, 0),
        ("an SQLSTATE", Filter { sqlstate: Some("22023".to_owned()), ..Filter::default() }, 1),
        ("since then", Filter { since: Some(now - time::Duration::hours(1)), ..Filter::default() }, 2),
        ("from now on", Filter { since: Some(now + time::Duration::hours(1)), ..Filter::default() }, 0),
    ];
    for (what, filter, count) in table {
        assert_eq!(list(&mut fixture.database.conn, &filter, 10).await.expect(what).len(), count, "{what}");
    }
    assert_eq!(fixture.letters().await.len(), 2);
    fixture.stop().await;
}

#[tokio::test]
async fn a_message_that_is_no_command_is_recorded_as_it_came_and_once() {
    let mut fixture = Fixture::start().await;
    let trace = TraceHeaders { traceparent: Some("00-1-2-01".to_owned()), tracestate: None };
    for _ in 0..2 {
        let message = RawMessage { payload: b"\xffno command", reason: "undecodable", trace: &trace, defect: None };
        record_raw(&mut fixture.database.conn, message).await.expect("a letter");
    }
    assert_eq!(fixture.letters().await, [(None, "- 2".to_owned())]);
    let letters = list(&mut fixture.database.conn, &Filter::default(), 10).await.expect("letters");
    assert_eq!(letters[0].payload, b"\xffno command");
    assert_eq!(letters[0].traceparent, trace.traceparent);
    fixture.stop().await;
}

#[tokio::test]
async fn a_dead_letter_keeps_the_trace_of_its_message() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let guilty = create(UserId::mint(), "ada@example.org", "Poison");
    let trace = TraceHeaders { traceparent: Some("00-a-b-01".to_owned()), tracestate: Some("x=y".to_owned()) };
    let guilty = IncomingMessage { trace, ..message(&guilty.encode()) };
    fixture.applier().apply(&[guilty]).await.expect("outcomes");
    let kept = fixture.database.count("dead_letters WHERE traceparent = '00-a-b-01' AND tracestate = 'x=y'").await;
    assert_eq!((kept, fixture.letters().await.len()), (1, 1));
    fixture.stop().await;
}

/// What the broker gave up for this reason, in its own word.
fn given_up(word: &str, body: &[u8]) -> CollectedMessage {
    let mut headers = FieldTable::default();
    headers.insert("x-first-death-reason".into(), AMQPValue::LongString(word.into()));
    CollectedMessage { message: message(body), cause: BrokerCause::of(Some(&headers)) }
}

#[tokio::test]
async fn what_the_broker_gave_up_is_collected_once_and_holds_its_user() {
    let mut fixture = Fixture::start().await;
    let (lost, known) = (UserId::mint(), UserId::mint());
    let decided = create(known, "known@example.org", "Known");
    fixture.apply(std::slice::from_ref(&decided)).await;
    let undelivered = create(lost, "lost@example.org", "Lost");
    for payload in [decided.encode(), undelivered.encode(), undelivered.encode(), b"{}".to_vec(), b"{}".to_vec()] {
        collect_one(&mut fixture.database.conn, &given_up("delivery_limit", &payload)).await.expect("a record");
    }
    let row = fixture.database.command(undelivered.id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous parked delivery-limit"));
    let row = fixture.database.command(decided.id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous succeeded - v1"), "it was applied before");
    let next = [suspend(lost), suspend(known), undelivered.clone()];
    assert_eq!(fixture.apply(&next).await, [Some(Outcome::Behind), Some(done(2)), None]);
    let expected = [line(&undelivered, "- 1"), (None, "- 2".to_owned()), line(&next[0], "- 0")];
    assert_eq!(fixture.letters().await, expected);
    fixture.stop().await;
}

#[tokio::test]
async fn a_letter_of_the_broker_says_why() {
    let mut fixture = Fixture::start().await;
    let table = [
        ("expired", "expired", "message-ttl"),
        ("delivery_limit", "delivery-limit", "delivery-limit below"),
        ("maxlen", "queue-full", "drop-head"),
        ("rejected", "broker-refused", "other than the worker"),
        ("no word of ours", "broker", "given up by the broker"),
    ];
    for (word, code, advice) in table {
        let command = suspend(UserId::mint());
        let collected = given_up(word, &command.encode());
        collect_one(&mut fixture.database.conn, &collected).await.expect("a record");
        let row = fixture.database.command(command.id).await;
        assert_eq!(row, Some(format!("users.suspend anonymous parked {code}")), "{word}");
        let letters = list(&mut fixture.database.conn, &Filter::default(), 10).await.expect("letters");
        assert!(letters.last().is_some_and(|letter| letter.reason.contains(advice)), "{word}: {letters:?}");
    }
    assert_eq!(fixture.letters().await.len(), 5);
    fixture.stop().await;
}
