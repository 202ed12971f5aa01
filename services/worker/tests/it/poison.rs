//! A command that no statement takes: it is parked alone.

use common::command::{Envelope, UserId};
use rollcall_worker::dead_letters::REASON_HEADER;
use rollcall_worker::users::Outcome;

use crate::support::{Fixture, create, done, in_order, suspend, update};

/// Raises for one name, like a constraint that nobody thought of.
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'no user of this name' USING ERRCODE = '22023';
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users
        FOR EACH ROW WHEN (NEW.name = 'Poison') EXECUTE FUNCTION refuse();
";

fn reason(letter: &lapin::message::Delivery) -> String {
    let headers = letter.properties.headers().as_ref().expect("headers");
    let reason = headers.inner().get(REASON_HEADER).and_then(|value| value.as_long_string()).expect("a reason");
    reason.to_string()
}

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
    let mut outcomes = fixture.applier().apply(&batch).await.expect("outcomes");
    for (number, outcome) in in_order(&batch, &mut outcomes).into_iter().enumerate() {
        let expected = if number == 77 { Outcome::Parked("22023".to_owned()) } else { done(1) };
        assert_eq!(outcome, Some(expected), "{number}");
    }
    assert_eq!(fixture.database.count("users").await, 199);
    let row = fixture.database.command(batch[77].id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous parked 22023"));
    assert_eq!(fixture.database.count("commands WHERE status = 'succeeded'").await, 199);

    let letters = fixture.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(Envelope::decode(&letters[0].data).expect("a command"), batch[77]);
    assert!(reason(&letters[0]).contains("no user of this name"), "{}", reason(&letters[0]));
    assert_eq!(*letters[0].properties.delivery_mode(), Some(2), "it outlives a restart of the broker");
    fixture.stop().await;
}

#[tokio::test]
async fn a_parked_command_that_comes_again_is_not_tried_again() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let mut applier = fixture.applier();
    let batch = [create(UserId::mint(), "ada@example.org", "Poison")];
    let mut outcomes = applier.apply(&batch).await.expect("outcomes");
    assert_eq!(in_order(&batch, &mut outcomes), [Some(Outcome::Parked("22023".to_owned()))]);
    assert_eq!(fixture.dead_letters().await.len(), 1);

    fixture.database.execute("DROP TRIGGER refuse ON users").await;
    assert!(applier.apply(&batch).await.expect("outcomes").is_empty());
    assert_eq!(fixture.database.count("users").await, 0);
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
    let mut outcomes = fixture.applier().apply(&batch).await.expect("outcomes");
    let expected = [done(1), done(1), Outcome::Parked("22023".to_owned()), done(2), done(1), done(3)];
    assert_eq!(in_order(&batch, &mut outcomes), expected.map(Some));
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("king@example.org Ada suspended v3 t"));
    assert_eq!(fixture.dead_letters().await.len(), 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_long_reason_is_cut() {
    let mut fixture = Fixture::start().await;
    let long = TRIGGER.replace("'no user of this name'", "'%', repeat('é', 5000)");
    fixture.database.execute(&long).await;
    let batch = [create(UserId::mint(), "ada@example.org", "Poison")];
    fixture.applier().apply(&batch).await.expect("outcomes");
    let letters = fixture.dead_letters().await;
    assert_eq!(reason(&letters[0]).chars().count(), 1000);
    fixture.stop().await;
}
