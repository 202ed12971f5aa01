//! Addresses that several users want at once: one gets it, nothing raises, and the server's log names none.

use common::command::{Envelope, Rejection, UserId};
use common::db::Pool;
use rollcall_worker::apply::Applier;
use rollcall_worker::blame::ApplyError;
use rollcall_worker::users::Outcome;
use uuid::Uuid;

use crate::support::{Fixture, WINDOW, create, done, in_order, messages, soon, stack, update};

const USERS: usize = 40;
const APPLIERS: usize = 8;
const ROUNDS: usize = 6;

/// Whether the log has this text. The server writes an error before the client learns of it.
fn logged(text: &str) -> Option<bool> {
    let log = std::fs::read(stack().postgres.log()?).expect("the server's log");
    Some(log.windows(text.len()).any(|part| part == text.as_bytes()))
}

/// Before, the changes that lost raised, and the server logged the address with each.
#[tokio::test(flavor = "multi_thread")]
async fn many_users_that_change_to_one_address_at_once_leave_it_in_no_log() {
    let mut fixture = Fixture::start().await;
    // As servers are set that nobody told to leave details out.
    let details = [("log_error_verbosity", "default")];
    let pool = Pool::new(&fixture.database.settings(APPLIERS), "worker-under-test", &details).expect("a pool");
    let users: Vec<UserId> = (0..USERS).map(|_| UserId::mint()).collect();
    let creates: Vec<Envelope> =
        users.iter().map(|user| create(*user, &format!("{user}@example.org"), "User")).collect();
    assert!(fixture.apply(&creates).await.iter().all(|outcome| *outcome == Some(done(1))));
    for _ in 0..ROUNDS {
        let wanted = format!("{}@example.net", Uuid::now_v7().simple());
        let batches = users.chunks(USERS / APPLIERS).map(async |users| {
            let batch: Vec<Envelope> = users.iter().map(|user| update(*user, Some(&wanted), None)).collect();
            let mut applier = Applier::new(pool.clone(), fixture.guard.clone(), WINDOW, 1);
            applier.fence(fixture.fence);
            let insisting = async {
                loop {
                    match applier.apply(&messages(&batch)).await {
                        Ok(mut committed) => return in_order(&batch, &mut committed.outcomes),
                        // Appliers that take addresses in another order, or a busy machine.
                        Err(ApplyError::Contention(_) | ApplyError::Outage(_)) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            };
            soon("a commit", insisting).await
        });
        let outcomes: Vec<_> = futures_util::future::join_all(batches).await.into_iter().flatten().collect();
        let taken = Some(Outcome::Rejected(Rejection::EmailTaken));
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == taken).count(), USERS - 1, "{outcomes:?}");
        let of_wanted = format!("users WHERE email = '{wanted}'");
        assert_eq!(fixture.database.count(&of_wanted).await, 1);
        assert_ne!(logged(&wanted), Some(true), "an address in the log");
    }
    assert_eq!(
        fixture.database.count("users").await,
        i64::try_from(USERS).expect("a small number"),
        "no row is left over"
    );

    // The log would have had it.
    let control = format!("{}@example.net", Uuid::now_v7().simple());
    fixture.database.execute("SET log_error_verbosity = 'default'").await;
    let raising = sqlx::query("UPDATE users SET email = $1").bind(&control).execute(&mut fixture.database.conn);
    raising.await.expect_err("a violation");
    assert_ne!(logged(&control), Some(false), "the log is another file");
    fixture.stop().await;
}

#[tokio::test]
async fn users_that_swap_addresses_at_once_keep_theirs() {
    let fixture = Fixture::start().await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    fixture.apply(&[create(ada, "ada@example.org", "Ada"), create(bob, "bob@example.org", "Bob")]).await;
    let swap = [update(ada, Some("bob@example.org"), None), update(bob, Some("ada@example.org"), None)];
    let taken = Some(Outcome::Rejected(Rejection::EmailTaken));
    assert_eq!(fixture.apply(&swap).await, [taken.clone(), taken]);
    let freed = [update(ada, Some("ada@example.net"), None), update(bob, Some("ADA@example.org"), None)];
    let outcomes = fixture.apply(&freed).await;
    assert_eq!(outcomes[0], Some(done(2)), "{outcomes:?}");
    fixture.stop().await;
}
