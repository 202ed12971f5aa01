//! What each kind of command does to the users' rows.

use common::command::{Envelope, Rejection, UserId};
use rollcall_worker::users::Outcome;

use crate::support::{Database, GONE, create, delete, done, if_match, reactivate, suspend, update};

fn rejected(rejection: Rejection) -> Outcome {
    Outcome::Rejected(rejection)
}

/// A database with Ada in it.
async fn with_ada() -> (Database, UserId) {
    let (mut database, ada) = (Database::create().await, UserId::mint());
    assert_eq!(database.one(create(ada, "ada@example.org", "Ada")).await, done(1));
    (database, ada)
}

#[tokio::test]
async fn creating_a_user_stores_it_as_it_was_written() {
    let (mut database, ada) = (Database::create().await, UserId::mint());
    assert_eq!(database.one(create(ada, "Ada@Example.org", "Ada Lovelace")).await, done(1));
    assert_eq!(database.user(ada).await.as_deref(), Some("Ada@Example.org Ada Lovelace active v1 f"));
}

#[tokio::test]
async fn an_address_taken_in_another_letter_case_is_rejected() {
    let (mut database, _) = with_ada().await;
    let bob = UserId::mint();
    assert_eq!(database.one(create(bob, "ADA@example.ORG", "Bob")).await, rejected(Rejection::EmailTaken));
    assert_eq!(database.user(bob).await, None);
    assert_eq!(database.count("users").await, 1);
}

#[tokio::test]
async fn creating_a_user_that_exists_is_rejected() {
    let (mut database, ada) = with_ada().await;
    let table = [
        ("another address", create(ada, "ada@example.net", "Eve")),
        ("the same address", create(ada, "ada@example.org", "Eve")),
    ];
    for (reason, command) in table {
        assert_eq!(database.one(command).await, rejected(Rejection::UserExists), "{reason}");
    }
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
}

#[tokio::test]
async fn updating_changes_the_given_members_and_no_others() {
    let (mut database, ada) = with_ada().await;
    let table = [
        (update(ada, Some("ada@example.net"), None), "ada@example.net Ada active v2 f"),
        (update(ada, None, Some("Ada King")), "ada@example.net Ada King active v3 f"),
        (update(ada, Some("king@example.net"), Some("Augusta")), "king@example.net Augusta active v4 f"),
    ];
    for (version, (command, row)) in (2..).zip(table) {
        assert_eq!(database.one(command).await, done(version));
        assert_eq!(database.user(ada).await.as_deref(), Some(row));
    }
}

#[tokio::test]
async fn an_update_that_changes_nothing_makes_no_version_and_no_event() {
    let (mut database, ada) = with_ada().await;
    let same = [
        update(ada, None, None),
        update(ada, Some("ada@example.org"), None),
        update(ada, None, Some("Ada")),
        if_match(1, update(ada, Some("ada@example.org"), Some("Ada"))),
    ];
    let before = "users WHERE updated_at = created_at";
    for command in same {
        assert_eq!(database.one(command).await, done(1));
    }
    assert_eq!((database.count(before).await, database.count("events").await), (1, 1));
    let lost = if_match(2, update(ada, None, Some("Ada")));
    assert_eq!(database.one(lost).await, rejected(Rejection::VersionLost), "the condition is still checked");
    assert_eq!(database.one(update(ada, Some("ADA@example.org"), Some("Ada"))).await, done(2), "one of two");
    assert_eq!(database.count("events").await, 2);
}

#[tokio::test]
async fn a_user_that_is_created_again_goes_on_counting() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(suspend(ada)).await, done(2));
    assert_eq!(database.one(delete(ada)).await, GONE);
    // Another life under the id, as after the window of an idempotency key.
    assert_eq!(database.one(create(ada, "eve@example.org", "Eve")).await, done(4));
    assert_eq!(database.one(if_match(1, suspend(ada))).await, rejected(Rejection::VersionLost));
    assert_eq!(database.user(ada).await.as_deref(), Some("eve@example.org Eve active v4 f"));
    assert_eq!(database.one(delete(ada)).await, GONE);
    assert_eq!(database.one(create(ada, "ada@example.org", "Ada")).await, done(6));
    let versions = "SELECT user_version FROM events ORDER BY position";
    let versions: Vec<i64> = sqlx::query_scalar(versions).fetch_all(&mut database.conn).await.expect("rows");
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_user_may_change_the_letter_case_of_its_own_address() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(update(ada, Some("ADA@example.org"), None)).await, done(2));
    assert_eq!(database.user(ada).await.as_deref(), Some("ADA@example.org Ada active v2 f"));
}

#[tokio::test]
async fn updating_to_an_address_of_another_user_is_rejected_whole() {
    let (mut database, _) = with_ada().await;
    let bob = UserId::mint();
    assert_eq!(database.one(create(bob, "bob@example.org", "Bob")).await, done(1));
    let taken = update(bob, Some("Ada@Example.Org"), Some("Robert"));
    assert_eq!(database.one(taken).await, rejected(Rejection::EmailTaken));
    assert_eq!(database.user(bob).await.as_deref(), Some("bob@example.org Bob active v1 f"));
}

#[tokio::test]
async fn suspending_and_reactivating_each_work_once() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(reactivate(ada)).await, rejected(Rejection::NotSuspended));
    assert_eq!(database.one(suspend(ada)).await, done(2));
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada suspended v2 t"));
    assert_eq!(database.one(suspend(ada)).await, rejected(Rejection::AlreadySuspended));
    assert_eq!(database.one(reactivate(ada)).await, done(3));
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada active v3 f"));
    assert_eq!(database.one(reactivate(ada)).await, rejected(Rejection::NotSuspended));
}

#[tokio::test]
async fn a_suspended_user_can_be_updated_and_deleted() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(suspend(ada)).await, done(2));
    assert_eq!(database.one(update(ada, None, Some("Ada King"))).await, done(3));
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada King suspended v3 t"));
    assert_eq!(database.one(delete(ada)).await, GONE);
}

#[tokio::test]
async fn deleting_removes_the_row_and_frees_the_address() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(delete(ada)).await, GONE);
    assert_eq!(database.user(ada).await, None);
    assert_eq!(database.one(delete(ada)).await, rejected(Rejection::NotFound));
    assert_eq!(database.one(create(UserId::mint(), "ada@example.org", "Another Ada")).await, done(1));
}

#[tokio::test]
async fn an_unknown_user_is_not_found_whatever_is_asked() {
    let (mut database, ada) = with_ada().await;
    let nobody = UserId::mint();
    let table = [
        ("update", update(nobody, Some("nobody@example.org"), None)),
        ("update to a taken address", update(nobody, Some("ada@example.org"), None)),
        ("delete", delete(nobody)),
        ("delete under a condition", if_match(1, delete(nobody))),
        ("suspend", suspend(nobody)),
        ("reactivate", reactivate(nobody)),
    ];
    for (reason, command) in table {
        assert_eq!(database.one(command).await, rejected(Rejection::NotFound), "{reason}");
    }
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
}

#[tokio::test]
async fn a_lost_version_changes_nothing_whatever_is_asked() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(suspend(ada)).await, done(2));
    for version in [1, 3, 0, -1, i64::MAX] {
        let table: [fn(UserId) -> Envelope; 4] =
            [|ada| update(ada, Some("ada@example.net"), Some("Eve")), delete, suspend, reactivate];
        for command in table {
            let command = if_match(version, command(ada));
            let name = command.command.wire_name();
            assert_eq!(database.one(command).await, rejected(Rejection::VersionLost), "{name} of version {version}");
        }
    }
    assert_eq!(database.user(ada).await.as_deref(), Some("ada@example.org Ada suspended v2 t"));
}

#[tokio::test]
async fn the_version_that_was_seen_is_accepted() {
    let (mut database, ada) = with_ada().await;
    assert_eq!(database.one(if_match(1, suspend(ada))).await, done(2));
    assert_eq!(database.one(if_match(2, reactivate(ada))).await, done(3));
    assert_eq!(database.one(if_match(3, update(ada, None, Some("Ada King")))).await, done(4));
    assert_eq!(database.one(if_match(4, delete(ada))).await, GONE);
}

#[tokio::test]
async fn a_wave_of_all_kinds_gives_every_command_its_own_outcome() {
    let mut database = Database::create().await;
    let users: Vec<UserId> = (0..8).map(|_| UserId::mint()).collect();
    let creates: Vec<_> =
        users[..6].iter().enumerate().map(|(n, user)| create(*user, &format!("u{n}@example.org"), "User")).collect();
    assert_eq!(database.wave(&creates).await, vec![done(1); 6]);
    assert_eq!(database.one(suspend(users[3])).await, done(2));

    let wave = [
        create(users[6], "u0@example.org", "Heir"),
        suspend(users[2]),
        update(users[1], Some("other@example.org"), None),
        delete(users[0]),
        reactivate(users[3]),
        update(users[4], Some("u5@example.org"), None),
        create(users[7], "u1@example.org", "Heir"),
        if_match(7, suspend(users[5])),
    ];
    let outcomes = database.wave(&wave).await;
    let expected = [
        // Deletes and updates come first: what they set free can be claimed in the same wave.
        done(1),
        done(2),
        done(2),
        GONE,
        done(3),
        rejected(Rejection::EmailTaken),
        done(1),
        rejected(Rejection::VersionLost),
    ];
    assert_eq!(outcomes, expected);
    assert_eq!(database.user(users[6]).await.as_deref(), Some("u0@example.org Heir active v1 f"));
    assert_eq!(database.count("users").await, 7);
}

#[tokio::test]
async fn a_change_moves_the_time_of_update_and_not_the_time_of_creation() {
    let (mut database, ada) = with_ada().await;
    database.execute("UPDATE users SET created_at = '2020-01-01Z', updated_at = '2020-01-01Z'").await;
    database.one(update(ada, None, Some("Ada King"))).await;
    let fresh = "users WHERE created_at = '2020-01-01Z' AND updated_at > now() - interval '1 minute'";
    assert_eq!(database.count(fresh).await, 1);
}
