//! A command that no statement takes: it is parked, and its neighbours are not.

use common::command::{Envelope, Rejection, UserId};
use common::telemetry::TraceHeaders;
use rollcall_worker::dead_letters::{RawMessage, find, record_raw};
use rollcall_worker::users::Outcome;

use crate::support::{Fixture, MEND, TRIGGER, create, done, in_order, messages, poisoned, suspend, update};

#[tokio::test]
async fn a_command_that_raises_is_parked_while_its_neighbours_are_applied() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let batch: Vec<_> = (0..200)
        .map(|number| {
            let name = if number == 77 { "Poison" } else { "User" };
            create(UserId::mint(), &format!("u{number}@example.org"), name)
        })
        .collect();
    let mut outcomes = fixture.applier().apply(&messages(&batch)).await.expect("outcomes").outcomes;
    for (number, outcome) in in_order(&batch, &mut outcomes).into_iter().enumerate() {
        let expected = if number == 77 { poisoned() } else { done(1) };
        assert_eq!(outcome, Some(expected), "{number}");
    }
    assert_eq!(fixture.database.count("users").await, 199);
    let row = fixture.database.command(batch[77].id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous parked 22023"));
    assert_eq!(fixture.database.count("commands WHERE status = 'succeeded'").await, 199);

    assert_eq!(fixture.letters().await, [(Some(batch[77].id.into()), "22023 1".to_owned())]);
    let letter = find(&mut fixture.database.conn, None, Some(batch[77].id.into())).await;
    let letter = letter.expect("an answer").expect("a letter");
    assert_eq!(Envelope::decode(&letter.payload).expect("a command"), batch[77]);
    assert!(letter.reason.contains("22023") && !letter.reason.contains("this name"), "{}", letter.reason);
    fixture.stop().await;
}

#[tokio::test]
async fn a_parked_command_that_comes_again_is_not_tried_again() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let mut applier = fixture.applier();
    let batch = [create(UserId::mint(), "ada@example.org", "Poison")];
    let mut outcomes = applier.apply(&messages(&batch)).await.expect("outcomes").outcomes;
    assert_eq!(in_order(&batch, &mut outcomes), [Some(poisoned())]);

    fixture.database.execute(MEND).await;
    assert!(applier.apply(&messages(&batch)).await.expect("outcomes").outcomes.is_empty());
    assert_eq!(fixture.database.count("users").await, 0);
    assert_eq!(fixture.letters().await, [(Some(batch[0].id.into()), "22023 1".to_owned())]);
    fixture.stop().await;
}

#[tokio::test]
async fn order_holds_when_a_batch_is_applied_one_by_one() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (ada, bob, eve) = (UserId::mint(), UserId::mint(), UserId::mint());
    let batch = [
        create(ada, "ada@example.org", "Ada"),
        create(bob, "bob@example.org", "Bob"),
        update(ada, None, Some("Poison")),
        update(ada, Some("king@example.org"), None),
        create(eve, "ada@example.org", "Eve"),
        suspend(ada),
    ];
    let mut outcomes = fixture.applier().apply(&messages(&batch)).await.expect("outcomes").outcomes;
    let taken = Outcome::Rejected(Rejection::EmailTaken);
    let expected = [done(1), done(1), poisoned(), Outcome::Behind, taken, Outcome::Behind];
    assert_eq!(in_order(&batch, &mut outcomes), expected.map(Some));
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
    let row = fixture.database.command(batch[3].id).await;
    assert_eq!(row.as_deref(), Some("users.update anonymous parked behind-another"));
    let expected = [(&batch[2], "22023 1"), (&batch[3], "- 0"), (&batch[5], "- 0")];
    assert_eq!(fixture.letters().await, expected.map(|(c, line)| (Some(c.id.into()), line.to_owned())));
    fixture.stop().await;
}

#[tokio::test]
async fn a_long_reason_is_cut() {
    let mut fixture = Fixture::start().await;
    let none = TraceHeaders::default();
    let raw = RawMessage { payload: b"no command", reason: &"é".repeat(5000), trace: &none, defect: None };
    record_raw(&mut fixture.database.conn, raw).await.expect("a letter");
    assert_eq!(fixture.letters().await.len(), 1);
    assert_eq!(fixture.database.count("dead_letters WHERE length(reason) = 1000").await, 1);
    fixture.stop().await;
}
