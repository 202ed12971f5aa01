//! One batch in one transaction: each command once, in order.

use std::collections::HashMap;
use std::time::Duration;

use common::command::{CommandId, Envelope, Rejection, UserId};
use rollcall_worker::apply::Applier;
use rollcall_worker::blame::ApplyError;
use rollcall_worker::commands::{drop_days, prepare_tomorrow};
use rollcall_worker::dead_letters::{Verdict, replay};
use rollcall_worker::users::Outcome;
use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

use crate::support::{
    Fixture, GONE, RETENTION, TERMS, create, delete, done, in_order, messages, reactivate, soon, suspend, update,
};

async fn apply(applier: &mut Applier, batch: &[Envelope]) -> Vec<Option<Outcome>> {
    let mut outcomes = soon("a commit", applier.apply(&messages(batch))).await.expect("outcomes").outcomes;
    in_order(batch, &mut outcomes)
}

/// A command id that was minted at another time, such as another publisher's.
fn minted_at(at: OffsetDateTime) -> CommandId {
    let seconds = u64::try_from(at.unix_timestamp()).expect("a time since 1970");
    CommandId::try_from(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0))).expect("an id")
}

#[tokio::test]
async fn a_command_that_comes_twice_is_applied_once() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let creating = create(ada, "ada@example.org", "Ada");
    let renaming = update(ada, None, Some("Ada King"));

    let batch = [creating.clone(), renaming.clone(), creating.clone(), renaming.clone()];
    let mut outcomes = applier.apply(&messages(&batch)).await.expect("outcomes").outcomes;
    assert_eq!(in_order(&batch[..2], &mut outcomes), [Some(done(1)), Some(done(2))]);

    assert_eq!(apply(&mut applier, &[renaming.clone(), creating.clone()]).await, [None, None], "in a later batch");
    let mut another = fixture.applier();
    assert_eq!(apply(&mut another, &[creating.clone(), suspend(ada)]).await, [None, Some(done(3))]);

    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada King suspended v3 t"));
    assert_eq!(fixture.database.count("commands").await, 3);
    let row = fixture.database.command(creating.id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous succeeded - v1"), "the first outcome stays");
    fixture.stop().await;
}

#[tokio::test]
async fn a_rejected_command_that_comes_again_stays_rejected() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let early = suspend(ada);
    assert_eq!(apply(&mut applier, std::slice::from_ref(&early)).await, [Some(Outcome::Rejected(Rejection::NotFound))]);
    let batch = [create(ada, "ada@example.org", "Ada"), early.clone()];
    assert_eq!(apply(&mut applier, &batch).await, [Some(done(1)), None]);
    let row = fixture.database.command(early.id).await;
    assert_eq!(row.as_deref(), Some("users.suspend anonymous rejected user-not-found"));
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_users_whole_life_in_one_batch_keeps_its_order() {
    let mut fixture = Fixture::start().await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    let batch = [
        create(ada, "ada@example.org", "Ada"),
        create(bob, "bob@example.org", "Bob"),
        update(ada, Some("king@example.org"), None),
        suspend(ada),
        suspend(ada),
        update(bob, None, Some("Robert")),
        reactivate(ada),
        delete(ada),
        reactivate(ada),
    ];
    let outcomes = apply(&mut fixture.applier(), &batch).await;
    let expected = [
        done(1),
        done(1),
        done(2),
        done(3),
        Outcome::Rejected(Rejection::AlreadySuspended),
        done(2),
        done(4),
        GONE,
        Outcome::Rejected(Rejection::NotFound),
    ];
    assert_eq!(outcomes, expected.map(Some));
    assert_eq!(fixture.database.user(ada).await, None);
    assert_eq!(fixture.database.user(bob).await.as_deref(), Some("bob@example.org Robert active v2 f"));
    let row = fixture.database.command(batch[7].id).await;
    assert_eq!(row.as_deref(), Some("users.delete anonymous succeeded -"), "no version without a user");
    fixture.stop().await;
}

#[tokio::test]
async fn an_address_claimed_twice_in_one_batch_goes_to_the_first() {
    let mut fixture = Fixture::start().await;
    let users: [UserId; 3] = std::array::from_fn(|_| UserId::mint());
    let batch = [
        create(users[2], "other@example.org", "Third"),
        create(users[0], "ada@example.org", "First"),
        create(users[1], "ADA@example.org", "Second"),
        update(users[2], Some("Ada@example.org"), None),
    ];
    let taken = || Some(Outcome::Rejected(Rejection::EmailTaken));
    assert_eq!(apply(&mut fixture.applier(), &batch).await, [Some(done(1)), Some(done(1)), taken(), taken()]);
    assert_eq!(fixture.database.user(users[0]).await.as_deref(), Some("ada@example.org First active v1 f"));
    assert_eq!(fixture.database.count("users").await, 2);
    fixture.stop().await;
}

#[tokio::test]
async fn an_empty_batch_is_nothing() {
    let fixture = Fixture::start().await;
    assert!(fixture.applier().apply(&[]).await.expect("outcomes").outcomes.is_empty());
    fixture.stop().await;
}

/// Applies a batch as a partition does: again when another transaction was in the way.
async fn insist(mut applier: Applier, batch: Vec<Envelope>) -> HashMap<CommandId, Outcome> {
    loop {
        match applier.apply(&messages(&batch)).await {
            Ok(committed) => return committed.outcomes,
            Err(ApplyError::Contention(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_appliers_with_overlapping_batches_apply_each_command_exactly_once() {
    let mut fixture = Fixture::start().await;
    let users: Vec<UserId> = (0..40).map(|_| UserId::mint()).collect();
    let creates: Vec<_> = (0..)
        .zip(&users)
        .map(|(number, user): (u32, _)| create(*user, &format!("u{number}@example.org"), "User"))
        .collect();
    apply(&mut fixture.applier(), &creates).await;
    for round in 0..5_i64 {
        let changes: Vec<_> = users.iter().map(|user| update(*user, None, Some(&format!("Round {round}")))).collect();
        // Both hold the middle; the second comes upon it from the other end.
        let (first, mut second) = (changes[..30].to_vec(), changes[10..].to_vec());
        second.reverse();
        let both = async { tokio::join!(insist(fixture.applier(), first), insist(fixture.applier(), second)) };
        let (one, two) = soon("both batches", Box::pin(both)).await;
        for change in &changes {
            match (one.get(&change.id), two.get(&change.id)) {
                (Some(outcome), None) | (None, Some(outcome)) => assert_eq!(*outcome, done(round + 2)),
                other => panic!("not exactly once: {other:?}"),
            }
        }
    }
    assert_eq!(fixture.database.count("users WHERE version = 6 AND name = 'Round 4'").await, 40);
    assert_eq!(fixture.database.count("commands WHERE status = 'succeeded'").await, 240);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_claimed_by_two_appliers_at_once_goes_to_one_of_them() {
    let mut fixture = Fixture::start().await;
    for round in 0..10 {
        let claims: Vec<Vec<_>> = (0..2)
            .map(|_| {
                let own = (0..5).map(|_| create(UserId::mint(), &format!("{}@example.org", UserId::mint()), "Own"));
                let shared = (0..5).map(|n| create(UserId::mint(), &format!("{round}-{n}@example.org"), "Shared"));
                own.chain(shared).collect()
            })
            .collect();
        let both = async {
            let (one, two) = (claims[0].clone(), claims[1].clone());
            tokio::join!(insist(fixture.applier(), one), insist(fixture.applier(), two))
        };
        let (one, two) = soon("both batches", Box::pin(both)).await;
        let all = [in_order(&claims[0], &mut one.clone()), in_order(&claims[1], &mut two.clone())];
        for (first, second) in all[0].iter().zip(&all[1]).skip(5) {
            let mut pair = [first.clone().expect("an outcome"), second.clone().expect("an outcome")];
            pair.sort_by_key(|outcome| *outcome == Outcome::Rejected(Rejection::EmailTaken));
            assert_eq!(pair, [done(1), Outcome::Rejected(Rejection::EmailTaken)]);
        }
    }
    assert_eq!(fixture.database.count("users").await, 150);
    fixture.stop().await;
}

#[tokio::test]
async fn commands_of_another_day_get_their_table() {
    let mut fixture = Fixture::start().await;
    let mut applier = fixture.applier();
    let today = OffsetDateTime::now_utc();
    let days = [0, 1, 5, 29].map(|days| today - time::Duration::days(days));
    let batch: Vec<_> = (0..)
        .zip(days)
        .map(|(number, day): (u32, _)| Envelope {
            id: minted_at(day),
            ..create(UserId::mint(), &format!("u{number}@example.org"), "User")
        })
        .collect();
    assert_eq!(apply(&mut applier, &batch).await, vec![Some(done(1)); 4]);
    for (day, command) in days.iter().zip(&batch) {
        let table = format!("commands_{:04}{:02}{:02}", day.year(), u8::from(day.month()), day.day());
        let row = format!("{table} WHERE id = '{}' AND status = 'succeeded'", command.id);
        assert_eq!(fixture.database.count(&row).await, 1, "{table}");
    }
    assert_eq!(apply(&mut fixture.applier(), &batch).await, vec![None; 4], "once across days too");
    fixture.stop().await;
}

#[tokio::test]
async fn the_edges_of_a_day_belong_to_that_day() {
    let mut fixture = Fixture::start().await;
    let midnight = (OffsetDateTime::now_utc() - time::Duration::days(2)).replace_time(time::Time::MIDNIGHT);
    let first = u128::try_from(midnight.unix_timestamp() * 1000).expect("a time since 1970");
    let last = first + 86_400_000 - 1;
    // The lowest and the highest version 7 ids of the day's first and last millisecond.
    let lowest = (first << 80) | (7 << 76) | (2 << 62);
    let highest = (last << 80) | (7 << 76) | (0xfff << 64) | (2 << 62) | ((1 << 62) - 1);
    let table = format!("commands_{:04}{:02}{:02}", midnight.year(), u8::from(midnight.month()), midnight.day());
    let batch = [lowest, highest].map(|bits| Envelope {
        id: CommandId::try_from(Uuid::from_u128(bits)).expect("an id"),
        ..create(UserId::mint(), &format!("{bits}@example.org"), "User")
    });
    assert_eq!(apply(&mut fixture.applier(), &batch).await, [Some(done(1)), Some(done(1))]);
    assert_eq!(fixture.database.count(&table).await, 2);
    fixture.stop().await;
}

#[tokio::test]
async fn appliers_that_need_a_new_days_table_at_once_share_one() {
    let mut fixture = Fixture::start().await;
    let day = OffsetDateTime::now_utc() - time::Duration::days(3);
    let batches: [Vec<Envelope>; 3] = std::array::from_fn(|_| {
        let creating = create(UserId::mint(), &format!("{}@example.org", UserId::mint()), "User");
        vec![Envelope { id: minted_at(day), ..creating }]
    });
    let appliers: Vec<_> = batches.into_iter().map(|batch| insist(fixture.applier(), batch)).collect();
    soon("all batches", futures_util::future::join_all(appliers)).await;
    assert_eq!(fixture.database.count("commands").await, 3);
    fixture.stop().await;
}

#[tokio::test]
async fn tomorrows_table_is_made_a_day_ahead_and_no_later_one() {
    let mut fixture = Fixture::start().await;
    prepare_tomorrow(&mut fixture.database.conn).await.expect("a table");
    let tomorrow = "pg_class WHERE relname = 'commands_' || to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')";
    assert_eq!(fixture.database.count(tomorrow).await, 1);
    for day in ["'20000-01-01'", "'0044-03-15 BC'", "(now() AT TIME ZONE 'UTC')::date + 2"] {
        let refused = sqlx::AssertSqlSafe(format!("SELECT ensure_command_day({day}) IS NULL"));
        let refused: bool = sqlx::query_scalar(refused).fetch_one(&mut fixture.database.conn).await.expect("an answer");
        assert!(refused, "{day}");
    }
    assert_eq!(fixture.database.count("pg_inherits WHERE inhparent = 'commands'::regclass").await, 1);
    fixture.stop().await;
}

/// Makes the server believe that the table of a day was not used since.
async fn unused(fixture: &mut Fixture, day: OffsetDateTime) {
    let used_at = format!("UPDATE command_days SET used_at = day WHERE day = '{}'", day.date());
    fixture.database.execute(&used_at).await;
}

#[tokio::test]
async fn a_command_is_applied_however_long_it_waited() {
    let mut fixture = Fixture::start().await;
    let (old, ada) = (OffsetDateTime::now_utc() - time::Duration::days(400), UserId::mint());
    let batch = [Envelope { id: minted_at(old), ..create(ada, "ada@example.org", "Ada") }];
    assert_eq!(apply(&mut fixture.applier(), &batch).await, [Some(done(1))]);
    // Retention comes while others of that day still wait: what was just used is kept.
    assert_eq!(drop_days(&mut fixture.database.conn, RETENTION).await.expect("a drop"), 0);
    let next = [Envelope { id: minted_at(old), ..suspend(ada) }, batch[0].clone()];
    assert_eq!(apply(&mut fixture.applier(), &next).await, [Some(done(2)), None]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_command_of_a_day_that_was_dropped_is_parked_and_blocks_its_user() {
    let mut fixture = Fixture::start().await;
    let (old, ada) = (OffsetDateTime::now_utc() - time::Duration::days(400), UserId::mint());
    let batch = [Envelope { id: minted_at(old), ..create(ada, "ada@example.org", "Ada") }];
    assert_eq!(apply(&mut fixture.applier(), &batch).await, [Some(done(1))]);
    unused(&mut fixture, old).await;
    assert_eq!(drop_days(&mut fixture.database.conn, RETENTION).await.expect("a drop"), 1);

    // The same message once more, and one that may or may not have been there.
    let again =
        [batch[0].clone(), Envelope { id: minted_at(old), ..suspend(ada) }, update(ada, None, Some("Ada King"))];
    let parked = Outcome::Parked("record-dropped".to_owned());
    let expected = [Some(parked), Some(Outcome::Behind), Some(Outcome::Behind)];
    assert_eq!(apply(&mut fixture.applier(), &again).await, expected);
    let row = fixture.database.command(again[0].id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous parked record-dropped"));
    assert_eq!(fixture.letters().await.len(), 3);
    // An operator decides: nothing is refused for its age.
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    let exists = Outcome::Rejected(Rejection::UserExists);
    let verdicts: Vec<_> = steps.into_iter().map(|step| step.verdict).collect();
    assert_eq!(verdicts, [exists, done(2), done(3)].map(Verdict::Decided));
    fixture.stop().await;
}

#[tokio::test]
async fn a_command_of_the_future_is_parked_and_blocks_its_user() {
    let mut fixture = Fixture::start().await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    apply(&mut fixture.applier(), &[create(ada, "ada@example.org", "Ada")]).await;
    let now = OffsetDateTime::now_utc();
    let at = |at, envelope| Envelope { id: minted_at(at), ..envelope };
    let batch = [
        at(now + time::Duration::hours(23), create(bob, "bob@example.org", "Bob")),
        suspend(ada),
        at(now + time::Duration::hours(25), reactivate(ada)),
        update(ada, None, Some("Ada King")),
        at(time::macros::datetime!(9999-12-31 23:59 UTC), suspend(bob)),
    ];
    let ahead = || Some(Outcome::Parked("id-ahead".to_owned()));
    let expected = [Some(done(1)), Some(done(2)), ahead(), Some(Outcome::Behind), ahead()];
    assert_eq!(apply(&mut fixture.applier(), &batch).await, expected);
    assert_eq!(apply(&mut fixture.applier(), &batch).await, [None, None, None, None, None]);
    assert_eq!(fixture.letters().await.len(), 3);
    // Nobody but an operator makes the table of a day that is no day of this deployment.
    assert_eq!(fixture.database.command(batch[4].id).await, None);
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    assert_eq!(steps.len(), 2);
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada King active v4 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_command_in_the_partition_of_another_user_is_parked() {
    let mut fixture = Fixture::start().await;
    fixture.partitions = 16;
    let of =
        |own: bool| std::iter::repeat_with(UserId::mint).find(|user| (user.partition(16) == 0) == own).expect("one");
    let (here, elsewhere) = (of(true), of(false));
    let batch = [create(here, "ada@example.org", "Ada"), create(elsewhere, "bob@example.org", "Bob")];
    let expected = [Some(done(1)), Some(Outcome::Parked("wrong-partition".to_owned()))];
    assert_eq!(apply(&mut fixture.applier(), &batch).await, expected);
    assert_eq!(fixture.database.user(elsewhere).await, None);
    assert_eq!(fixture.letters().await.len(), 1);
    // What tries the whole of a transaction uses a user of the partition.
    fixture.applier().probe().await.expect("it goes through");
    fixture.stop().await;
}

#[tokio::test]
async fn a_table_that_vanished_under_a_running_worker_is_made_again() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada")]).await;
    let table = "SELECT relname::text FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'commands'::regclass";
    let table: String = sqlx::query_scalar(table).fetch_one(&mut fixture.database.conn).await.expect("a table");
    for gone in
        [format!("DROP TABLE {table}"), format!("ALTER TABLE commands DETACH PARTITION {table}; DROP TABLE {table}")]
    {
        fixture.database.execute(&gone).await;
        let outcomes = apply(&mut applier, &[update(ada, None, Some(&gone[..20]))]).await;
        assert!(matches!(outcomes[..], [Some(Outcome::Succeeded(_))]), "{gone}: {outcomes:?}");
    }
    assert_eq!(fixture.letters().await, []);
    fixture.stop().await;
}

#[tokio::test]
async fn positions_follow_the_effects_and_not_the_clocks_of_the_apis() {
    let mut fixture = Fixture::start().await;
    let ada = UserId::mint();
    let now = OffsetDateTime::now_utc();
    let batch: Vec<_> = [0, 300, 100, 200]
        .into_iter()
        .zip([create(ada, "ada@example.org", "Ada"), suspend(ada), reactivate(ada), delete(ada)])
        .map(|(behind, envelope)| Envelope { id: minted_at(now - time::Duration::seconds(behind)), ..envelope })
        .collect();
    apply(&mut fixture.applier(), &batch[..1]).await;
    apply(&mut fixture.applier(), &batch[1..]).await;
    let order = "SELECT id FROM commands ORDER BY position";
    let order: Vec<Uuid> = sqlx::query_scalar(order).fetch_all(&mut fixture.database.conn).await.expect("rows");
    assert_eq!(order, batch.iter().map(|envelope| Uuid::from(envelope.id)).collect::<Vec<_>>());
    fixture.stop().await;
}

#[tokio::test]
async fn a_missing_table_is_the_deployments_fault_and_nothing_is_decided() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute("ALTER TABLE users RENAME TO people").await;
    let (mut applier, creating) = (fixture.applier(), create(UserId::mint(), "ada@example.org", "Ada"));
    let batch = [creating.clone()];
    let end = applier.apply(&messages(&batch)).await.expect_err("no table");
    assert!(matches!(end, ApplyError::Deployment(_)), "{end:?}");
    assert_eq!(fixture.database.command(creating.id).await, None);
    fixture.database.execute("ALTER TABLE people RENAME TO users").await;
    assert_eq!(apply(&mut applier, &batch).await, [Some(done(1))]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_batch_that_was_given_up_at_a_lock_is_not_half_applied() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada")]).await;
    fixture.database.execute("BEGIN; SELECT id FROM users FOR UPDATE").await;
    let (bob, suspending) = (create(UserId::mint(), "bob@example.org", "Bob"), suspend(ada));
    let batch = [bob.clone(), suspending.clone()];
    {
        let messages = messages(&batch);
        let waiting = tokio::time::timeout(Duration::from_millis(100), applier.apply(&messages));
        assert!(waiting.await.is_err(), "it waits for the lock");
    }
    fixture.database.execute("COMMIT").await;
    // The abandoned session may still be waiting on the server; its transaction ends without a commit.
    assert_eq!(apply(&mut applier, &batch).await, [Some(done(1)), Some(done(2))]);
    fixture.stop().await;
}

#[tokio::test]
async fn an_applier_whose_epoch_has_passed_applies_nothing() {
    let mut fixture = Fixture::start().await;
    let user = UserId::mint();
    let batch = [create(user, "fenced@example.org", "Fenced")];
    for takeover in [
        "UPDATE partitions SET epoch = epoch + 1",
        "UPDATE partitions SET epoch = epoch - 1, owner = gen_random_uuid()",
        "UPDATE partitions SET owner = NULL",
    ] {
        let mut applier = fixture.applier();
        fixture.database.execute(takeover).await;
        let end = applier.apply(&messages(&batch)).await;
        assert!(matches!(end, Err(ApplyError::Fenced)), "{takeover}: {end:?}");
    }
    assert_eq!(fixture.database.count("commands").await + fixture.database.count("users").await, 0);
    fixture.stop().await;
}
