//! Commands that this build does not understand: they have a status, block their user and keep their bytes.

use common::command::{Command, Envelope, MessageProperties, UserId};
use common::telemetry::TraceHeaders;
use rollcall_worker::dead_letters::{Filter, ReplayError, Verdict, discard_raw, find, list, replay, replay_raw};
use rollcall_worker::incoming::IncomingMessage;
use rollcall_worker::users::Outcome;
use serde_json::{Value, json};

use crate::support::{Fixture, TERMS, TRIGGER, create, delete, done, message, poisoned, suspend, update};

/// What another release, or a fault, makes of a message.
type Change = fn(&mut Value);

fn body(envelope: &Envelope, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut json = serde_json::from_slice(&envelope.encode()).expect("JSON");
    change(&mut json);
    json.to_string().into_bytes()
}

fn not_understood() -> Outcome {
    Outcome::Parked("not-understood".to_owned())
}

async fn status(fixture: &mut Fixture, envelope: &Envelope) -> String {
    fixture.database.command(envelope.id).await.unwrap_or_default()
}

#[tokio::test]
async fn what_is_not_understood_is_parked_and_blocks_its_user_in_order() {
    let mut fixture = Fixture::start().await;
    let table: [(&str, Change); 8] = [
        ("an unknown type", |json| json["command"]["type"] = "users.merge".into()),
        ("a faulty address", |json| json["command"]["data"]["email"] = "nobody".into()),
        ("an unknown member of the data", |json| json["command"]["data"]["phone"] = "1".into()),
        ("an unknown condition", |json| json["if_unmodified_since"] = "2026-11-05T12:34:56Z".into()),
        ("a member that must be understood", |json| {
            json["dry_run"] = true.into();
            json["must_understand"] = json!(["if_match", "dry_run"]);
        }),
        ("no principal", |json| json["principal"] = Value::Null),
        ("a condition of another type", |json| json["if_match"] = "*".into()),
        ("a NUL in its type", |json| json["command"]["type"] = "users\0merge".into()),
    ];
    for (number, (what, change)) in (0_i64..).zip(table) {
        let ada = UserId::mint();
        let (creating, foreign) =
            (create(ada, &format!("u{number}@example.org"), "Ada"), update(ada, Some("x@example.org"), Some("Ada")));
        let later = suspend(ada);
        let bytes = body(&foreign, change);
        let batch = [message(&creating.encode()), message(&bytes), message(&later.encode())];
        let outcomes = fixture.applier().apply(&batch).await.expect(what).outcomes;
        assert_eq!([&outcomes[&creating.id], &outcomes[&foreign.id]], [&done(1), &not_understood()], "{what}");
        assert_eq!(outcomes[&later.id], Outcome::Behind, "{what}");
        assert!(status(&mut fixture, &foreign).await.contains("parked not-understood"), "{what}");
        assert_eq!(fixture.applier().apply(&batch).await.expect(what).outcomes.len(), 0, "{what}: recorded once");
        assert_eq!(fixture.apply(&[delete(ada)]).await, [Some(Outcome::Behind)], "{what}: in a later batch");
        let letter = find(&mut fixture.database.conn, None, Some(foreign.id.into())).await.expect(what).expect(what);
        assert_eq!((letter.payload, letter.behind), (bytes, 2), "{what}: the bytes as they came");
        let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect(what);
        assert!(matches!(steps[0].verdict, Verdict::Failed(None, _)), "{what}: {steps:?}");
        assert_eq!(steps[1..].iter().filter(|step| step.verdict == Verdict::Waits).count(), 2, "{what}");
        assert!(status(&mut fixture, &foreign).await.contains("parked not-understood"), "{what}");
    }
    assert_eq!(fixture.letters().await.len(), 24);
    fixture.stop().await;
}

#[tokio::test]
async fn letters_come_in_the_order_of_arrival_also_beside_a_statement_that_fails() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    let unknown = |envelope: &Envelope| message(&body(envelope, |json| json["command"]["type"] = "users.merge".into()));
    fixture.apply(&[create(ada, "ada@example.org", "Ada"), create(bob, "bob@example.org", "Bob")]).await;
    let commands = [
        update(ada, None, Some("Poison")),
        suspend(ada),
        suspend(bob),
        update(bob, None, Some("Poison")),
        update(ada, None, Some("Last")),
    ];
    let mut batch: Vec<_> = commands.iter().map(|envelope| message(&envelope.encode())).collect();
    batch[1] = unknown(&commands[1]);
    batch[2] = unknown(&commands[2]);
    let outcomes = fixture.applier().apply(&batch).await.expect("outcomes").outcomes;
    let expected = [poisoned(), Outcome::Behind, not_understood(), Outcome::Behind, Outcome::Behind];
    assert_eq!(commands.each_ref().map(|c| outcomes[&c.id].clone()), expected);
    let letters: Vec<_> = fixture.letters().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(letters, commands.iter().map(|c| Some(c.id.into())).collect::<Vec<_>>());
    fixture.stop().await;
}

#[tokio::test]
async fn notes_of_a_later_release_are_ignored_and_kept_in_the_letter() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    let (creating, guilty) = (create(ada, "ada@example.org", "Ada"), update(ada, None, Some("Poison")));
    let noted = |envelope: &Envelope| body(envelope, |json| json["note"] = json!({"of": "a later release"}));
    let batch = [&creating, &guilty].map(|envelope| message(&noted(envelope)));
    let outcomes = fixture.applier().apply(&batch).await.expect("outcomes").outcomes;
    assert_eq!([&outcomes[&creating.id], &outcomes[&guilty.id]], [&done(1), &poisoned()]);
    let follower = suspend(ada);
    fixture.applier().apply(&[message(&noted(&follower))]).await.expect("outcomes");
    for envelope in [guilty, follower] {
        let letter = find(&mut fixture.database.conn, None, Some(envelope.id.into())).await.expect("an answer");
        assert_eq!(letter.expect("a letter").payload, noted(&envelope));
    }
    assert_eq!(fixture.letters().await.len(), 2);
    fixture.stop().await;
}

#[tokio::test]
async fn a_message_with_an_id_and_no_user_has_a_status_and_blocks_nobody() {
    let mut fixture = Fixture::start().await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    let (lost, discarded) = (create(ada, "ada@example.org", "Ada"), create(bob, "bob@example.org", "Bob"));
    let named = |envelope: &Envelope| {
        let (name, bytes) = (envelope.id.to_string(), envelope.encode());
        let cut = &bytes[..bytes.len() - 1];
        let properties = MessageProperties { message_id: Some(&name), kind: Some("users.create") };
        IncomingMessage::read(cut.to_vec(), properties, TraceHeaders::default(), None)
    };
    let batch = [named(&lost), named(&discarded)];
    let outcomes = fixture.applier().apply(&batch).await.expect("outcomes").outcomes;
    assert_eq!([&outcomes[&lost.id], &outcomes[&discarded.id]], [&not_understood(), &not_understood()]);
    assert_eq!(status(&mut fixture, &lost).await, "users.create unknown parked not-understood");
    assert_eq!(fixture.apply(&[create(ada, "eve@example.org", "Eve")]).await, [Some(done(1))]);

    let letters = list(&mut fixture.database.conn, &Filter::default(), 10).await.expect("letters");
    assert_eq!(letters.len(), 2);
    let conn = &mut fixture.database.conn;
    let still = replay_raw(conn, &letters[0], TERMS).await.expect_err("no command");
    assert!(matches!(still, ReplayError::Undecodable(_)), "{still:?}");
    discard_raw(conn, letters[1].id).await.expect("an end");
    assert_eq!(status(&mut fixture, &discarded).await, "users.create unknown parked discarded");
    // As a build that understands it: the letter is its user's now, and is replayed.
    let repaired = format!("UPDATE dead_letters SET payload = payload || '}}' WHERE id = {}", letters[0].id);
    fixture.database.execute(&repaired).await;
    let letter =
        find(&mut fixture.database.conn, Some(letters[0].id), None).await.expect("an answer").expect("a letter");
    fixture.apply(&[delete(ada)]).await;
    let steps = replay_raw(&mut fixture.database.conn, &letter, TERMS).await.expect("steps");
    assert!(matches!(steps[..], [ref step] if step.verdict == Verdict::Decided(done(3))), "{steps:?}");
    assert_eq!(status(&mut fixture, &lost).await, "users.create anonymous succeeded - v3");
    assert!(fixture.letters().await.is_empty());
    let Command::CreateUser(_) = lost.command else { panic!("it creates") };
    fixture.stop().await;
}
