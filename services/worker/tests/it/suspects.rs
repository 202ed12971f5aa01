//! Commands that came again: tried alone, and given up after so many workers.

use common::command::UserId;
use rollcall_worker::suspects::{MOST_ATTEMPTS, Suspects};
use rollcall_worker::users::Outcome;

use crate::support::{AT_THE_LOCK, Fixture, create, done, in_order, message, soon, suspend};

#[tokio::test]
async fn a_command_that_ends_its_worker_again_and_again_becomes_a_dead_letter() {
    let mut fixture = Fixture::start().await;
    let user = UserId::mint();
    let lethal = create(user, "ada@example.org", "Ada");
    let lethal_message = message(&lethal.encode());
    fixture.database.execute("BEGIN; LOCK TABLE users").await;
    for end in 1..=MOST_ATTEMPTS {
        // A worker of its own each time; it comes to an end in the middle of the try.
        let (suspects, mut applier) = (Suspects::new(fixture.pool.clone()), fixture.applier());
        let attempt = suspects.apply(&mut applier, &lethal_message);
        let hangs = async { while fixture.database.count(AT_THE_LOCK).await == 0 {} };
        tokio::select! {
            _ = attempt => panic!("end {end}"),
            () = soon("the try hangs", hangs) => {}
        }
        // As the others do with the sessions of a worker that is gone.
        let hang = format!("SELECT pg_terminate_backend(pid) FROM {AT_THE_LOCK}");
        fixture.database.execute(&hang).await;
        soon("its session ends", async { while fixture.database.count(AT_THE_LOCK).await > 0 {} }).await;
    }
    let (suspects, mut applier) = (Suspects::new(fixture.pool.clone()), fixture.applier());
    let given_up = suspects.apply(&mut applier, &lethal_message);
    let mut outcomes = soon("no try", given_up).await.expect("outcomes").outcomes;
    let batch = [lethal.clone()];
    assert_eq!(in_order(&batch, &mut outcomes), [Some(Outcome::Parked("worker-ended".to_owned()))]);
    fixture.database.execute("COMMIT").await;
    assert_eq!(fixture.apply(&[suspend(user)]).await, [Some(Outcome::Behind)]);
    assert_eq!(fixture.letters().await[0], (Some(lethal.id.into()), format!("- {MOST_ATTEMPTS}")));
    fixture.stop().await;
}

#[tokio::test]
async fn a_try_that_is_dropped_in_good_order_is_not_counted() {
    let mut fixture = Fixture::start().await;
    let innocent = create(UserId::mint(), "ada@example.org", "Ada");
    // One end of a worker that counts.
    let earlier = format!("INSERT INTO suspects (command_id, attempts) VALUES ('{}', 1)", innocent.id);
    fixture.database.execute(&earlier).await;
    fixture.database.execute("BEGIN; LOCK TABLE users").await;
    for stop in 0..=MOST_ATTEMPTS {
        let (suspects, mut applier) = (Suspects::new(fixture.pool.clone()), fixture.applier());
        let innocent_message = message(&innocent.encode());
        let attempt = suspects.apply(&mut applier, &innocent_message);
        let hangs = async { while fixture.database.count(AT_THE_LOCK).await == 0 {} };
        tokio::select! {
            _ = attempt => panic!("stop {stop}"),
            () = soon("the try hangs", hangs) => {}
        }
        assert_eq!(fixture.database.count("suspects WHERE attempts = 2").await, 1);
        suspects.withdraw().await.expect("the try is taken off");
        assert_eq!(fixture.database.count("suspects WHERE attempts = 1").await, 1);
        let hang = format!("SELECT pg_terminate_backend(pid) FROM {AT_THE_LOCK}");
        fixture.database.execute(&hang).await;
        soon("its session ends", async { while fixture.database.count(AT_THE_LOCK).await > 0 {} }).await;
    }
    fixture.database.execute("COMMIT").await;
    let suspects = Suspects::new(fixture.pool.clone());
    let mut outcomes =
        suspects.apply(&mut fixture.applier(), &message(&innocent.encode())).await.expect("outcomes").outcomes;
    assert_eq!(in_order(std::slice::from_ref(&innocent), &mut outcomes), [Some(done(1))]);
    assert_eq!(fixture.database.count("suspects").await, 0);
    fixture.stop().await;
}

#[tokio::test]
async fn a_try_that_comes_back_is_not_counted() {
    let mut fixture = Fixture::start().await;
    let suspects = Suspects::new(fixture.pool.clone());
    let innocent = create(UserId::mint(), "ada@example.org", "Ada");
    let innocent_message = message(&innocent.encode());
    fixture.database.execute("ALTER TABLE users RENAME TO people").await;
    for _ in 0..=MOST_ATTEMPTS {
        let mut applier = fixture.applier();
        suspects.apply(&mut applier, &innocent_message).await.expect_err("no table");
        suspects.withdraw().await.expect("taken off");
        assert_eq!(fixture.database.count("suspects").await, 0);
    }
    // What vanished workers left still counts.
    let vanished = format!("INSERT INTO suspects (command_id, attempts) VALUES ('{}', 3)", innocent.id);
    fixture.database.execute(&vanished).await;
    suspects.apply(&mut fixture.applier(), &innocent_message).await.expect_err("no table");
    suspects.withdraw().await.expect("taken off");
    assert_eq!(fixture.database.count("suspects WHERE attempts = 3").await, 1);
    fixture.database.execute("ALTER TABLE people RENAME TO users").await;
    for outcome in [Some(done(1)), None] {
        let mut outcomes = suspects.apply(&mut fixture.applier(), &innocent_message).await.expect("outcomes").outcomes;
        assert_eq!(in_order(std::slice::from_ref(&innocent), &mut outcomes), [outcome]);
    }
    fixture.stop().await;
}
