//! The flood guard: a fault that most commands meet is not theirs.

use common::command::{Envelope, UserId};
use rollcall_worker::blame::ApplyError;

use crate::support::{Fixture, MEND, TRIGGER, create, done, message, messages, poisoned};

fn creates(count: usize, name: &str) -> Vec<Envelope> {
    (0..count).map(|_| create(UserId::mint(), &format!("{}@example.org", UserId::mint()), name)).collect()
}

#[tokio::test]
async fn a_flood_of_dead_letters_is_refused_and_goes_through_once_its_cause_is_mended() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let first = creates(100, "Poison");
    assert_eq!(fixture.apply(&first).await, vec![Some(poisoned()); 100], "up to the limit they are recorded");
    let flood = creates(50, "Poison");
    for batch in [&flood[..], &flood[..1]] {
        let refused = fixture.applier().apply(&messages(batch)).await.expect_err("a flood");
        assert!(matches!(refused, ApplyError::Flood(dead) if dead == 100 + batch.len()), "{refused:?}");
    }
    assert_eq!(fixture.database.count("commands").await, 100, "nothing was decided");
    assert_eq!(fixture.letters().await.len(), 100);
    assert_eq!(fixture.apply(&creates(10, "User")).await, vec![Some(done(1)); 10], "others go on");

    fixture.database.execute(MEND).await;
    assert_eq!(fixture.apply(&flood[..1]).await, [Some(done(1))]);
    assert_eq!(fixture.apply(&flood[1..]).await, vec![Some(done(1)); 49]);
    fixture.stop().await;
}

#[tokio::test]
async fn dead_letters_among_many_good_commands_are_no_flood() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    for _ in 0..5 {
        fixture.apply(&creates(60, "User")).await;
        assert_eq!(fixture.apply(&creates(40, "Poison")).await, vec![Some(poisoned()); 40]);
    }
    assert_eq!(fixture.letters().await.len(), 200);
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_not_understood_is_a_flood_too_and_what_is_no_command_pauses_nothing() {
    let mut fixture = Fixture::start().await;
    let unknown = |number: usize| {
        let creating = create(UserId::mint(), &format!("u{number}@example.org"), "User");
        let body = String::from_utf8(creating.encode()).expect("text").replace("users.create", "users.invite");
        message(body.as_bytes())
    };
    let garbage: Vec<_> = (0..150).map(|number| message(format!("garbage {number}").as_bytes())).collect();
    fixture.applier().apply(&garbage).await.expect("no flood");
    assert_eq!(fixture.apply(&creates(1, "User")).await, [Some(done(1))]);
    let unknowns: Vec<_> = (0..100).map(unknown).collect();
    fixture.applier().apply(&unknowns).await.expect("up to the limit they are recorded");
    let refused = fixture.applier().apply(&[unknown(100)]).await.expect_err("a flood");
    assert!(matches!(refused, ApplyError::Flood(101)), "{refused:?}");
    assert_eq!(fixture.letters().await.len(), 250);
    fixture.stop().await;
}
