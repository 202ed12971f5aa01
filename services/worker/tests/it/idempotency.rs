//! Retried requests: the first command under a key takes effect, the others get its outcome.

use std::time::Duration;

use common::command::{Envelope, Rejection, UserId};
use common::db;
use rollcall_worker::apply::{Applier, Fence};
use rollcall_worker::dead_letters::{Verdict, replay};
use rollcall_worker::idempotency::{BACKLOG, prune};
use rollcall_worker::users::Outcome;
use sqlx::Connection;
use time::OffsetDateTime;

use crate::support::{
    Fixture, GONE, MEND, TERMS, TRIGGER, WINDOW, again, create, delete, done, if_match, in_order, keyed, messages,
    poisoned, reactivate, soon, suspend, update,
};

const REUSED: Outcome = Outcome::Rejected(Rejection::KeyReused);
const MINUTE: time::Duration = time::Duration::minutes(1);

fn accepted(ago: time::Duration, envelope: Envelope) -> Envelope {
    Envelope { accepted_at: OffsetDateTime::now_utc() - ago, ..envelope }
}

fn window() -> time::Duration {
    WINDOW.0.try_into().expect("a span of time")
}

async fn apply(applier: &mut Applier, batch: &[Envelope]) -> Vec<Outcome> {
    let mut outcomes = soon("a commit", applier.apply(&messages(batch))).await.expect("outcomes").outcomes;
    let outcomes = in_order(batch, &mut outcomes);
    outcomes.into_iter().map(|outcome| outcome.expect("an outcome for every command")).collect()
}

#[tokio::test]
async fn the_same_request_several_times_in_one_batch_takes_effect_once() {
    let mut fixture = Fixture::start().await;
    let ada = UserId::mint();
    let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
    let renaming = keyed("rename", update(ada, None, Some("Ada King")));
    let deleting = keyed("delete", delete(ada));
    let batch = [
        creating.clone(),
        again(&creating),
        renaming.clone(),
        update(ada, None, Some("Augusta")),
        again(&renaming),
        again(&creating),
        suspend(ada),
        deleting.clone(),
        again(&deleting),
    ];
    let outcomes = apply(&mut fixture.applier(), &batch).await;
    assert_eq!(outcomes, [done(1), done(1), done(2), done(3), done(2), done(1), done(4), GONE, GONE]);
    assert_eq!(fixture.database.count("commands WHERE status = 'succeeded'").await, 9);
    let row = fixture.database.command(batch[4].id).await;
    assert_eq!(row.as_deref(), Some("users.update anonymous succeeded - v2"));
    assert_eq!(fixture.database.count("idempotency_keys").await, 3);
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_in_a_later_batch_gets_the_first_outcome_whatever_happened_since() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
    let suspending = keyed("suspend", suspend(ada));
    assert_eq!(apply(&mut applier, &[creating.clone(), suspending.clone()]).await, [done(1), done(2)]);
    assert_eq!(apply(&mut applier, &[reactivate(ada), again(&suspending)]).await, [done(3), done(2)]);
    // Another worker, after a hand-over.
    assert_eq!(apply(&mut fixture.applier(), &[again(&creating), again(&suspending)]).await, [done(1), done(2)]);
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v3 f"));

    assert_eq!(apply(&mut applier, &[delete(ada), again(&creating)]).await, [GONE, done(1)]);
    assert_eq!(fixture.database.user(ada).await, None, "a retry brings nobody back");
    fixture.stop().await;
}

#[tokio::test]
async fn a_message_that_is_delivered_again_is_still_a_duplicate() {
    let fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
    let retry = again(&creating);
    assert_eq!(apply(&mut applier, &[creating.clone(), retry.clone()]).await, [done(1), done(1)]);
    assert!(applier.apply(&messages(&[retry, creating])).await.expect("outcomes").outcomes.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn a_rejected_outcome_is_repeated_although_it_would_succeed_by_now() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let early = keyed("suspend", suspend(ada));
    let not_found = || Outcome::Rejected(Rejection::NotFound);
    assert_eq!(apply(&mut applier, &[early.clone(), again(&early)]).await, [not_found(), not_found()]);
    let retry = again(&early);
    let batch = [create(ada, "ada@example.org", "Ada"), retry.clone()];
    assert_eq!(apply(&mut applier, &batch).await, [done(1), not_found()]);
    let row = fixture.database.command(retry.id).await;
    assert_eq!(row.as_deref(), Some("users.suspend anonymous rejected user-not-found"));
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn another_request_under_the_same_key_is_rejected() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada, bob) = (fixture.applier(), UserId::mint(), UserId::mint());
    let creating = keyed("key", create(ada, "ada@example.org", "Ada"));
    let others = || {
        [
            keyed("key", create(ada, "eve@example.org", "Ada")),
            keyed("key", suspend(ada)),
            keyed("key", suspend(bob)),
            keyed("key", if_match(1, suspend(ada))),
            keyed("key", update(ada, None, Some("Eve"))),
        ]
    };
    let mut batch = vec![creating.clone()];
    batch.extend(others());
    batch.push(again(&creating));
    let outcomes = apply(&mut applier, &batch).await;
    assert_eq!(outcomes, [done(1), REUSED, REUSED, REUSED, REUSED, REUSED, done(1)]);
    let later = others();
    assert_eq!(apply(&mut applier, &later).await, vec![REUSED; 5], "in a later batch");
    let row = fixture.database.command(later[1].id).await;
    assert_eq!(row.as_deref(), Some("users.suspend anonymous rejected idempotency-key-reused"));
    assert_eq!(apply(&mut applier, &[again(&creating)]).await, [done(1)], "the key is still the first one's");
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn of_two_partitions_that_race_for_a_key_one_applies_and_the_other_is_refused() {
    let mut fixture = Fixture::start().await;
    fixture.partitions = 2;
    fixture.database.execute("INSERT INTO partitions VALUES (1, 1, '00000000-0000-0000-0000-000000000000')").await;
    let (mut here, mut there) = (fixture.applier(), fixture.applier());
    there.fence(Fence { partition: 1, ..fixture.fence });
    let users: [Vec<UserId>; 2] = [0, 1].map(|partition| {
        std::iter::repeat_with(UserId::mint).filter(|user| user.partition(2) == partition).take(10).collect()
    });
    for (applier, users) in [&mut here, &mut there].into_iter().zip(&users) {
        let creates: Vec<_> = users.iter().map(|user| create(*user, &format!("{user}@example.org"), "User")).collect();
        apply(applier, &creates).await;
    }
    for round in 0..3 {
        // The same keys at both, at the second in the opposite order.
        let key = |number: usize| format!("{round} {number}");
        let change = |(number, user): (usize, &UserId)| keyed(&key(number), update(*user, None, Some(&key(number))));
        let first: Vec<_> = users[0].iter().enumerate().map(change).collect();
        let mut second: Vec<_> = users[1].iter().enumerate().map(change).collect();
        second.reverse();

        // Somebody holds the key in the middle until both wait; then neither may be in the way of the other.
        let mut holder = fixture.pool.acquire(Duration::from_secs(5)).await.expect("a connection");
        let mut holding = holder.begin().await.expect("a transaction");
        let held = first[5].idempotency.expect("a key").key;
        let claim = "INSERT INTO idempotency_keys VALUES ($1, '', gen_random_uuid(), now())";
        sqlx::query(claim).bind(held.as_bytes().as_slice()).execute(&mut *holding).await.expect("a claim");
        let letting_go = async {
            let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            while fixture.database.count(waiting).await < 2 {}
            holding.rollback().await.expect("a rollback");
        };
        let batches = [messages(&first), messages(&second)];
        let all = async { tokio::join!(here.apply(&batches[0]), there.apply(&batches[1]), letting_go) };
        let (one, two, ()) = soon("both batches", Box::pin(all)).await;
        holder.release().await.expect("released");
        let (one, two) = (one.expect("outcomes").outcomes, two.expect("outcomes").outcomes);
        for (ours, theirs) in first.iter().zip(second.iter().rev()) {
            let refused = [&one[&ours.id], &two[&theirs.id]].map(|outcome| *outcome == REUSED);
            assert!(refused[0] != refused[1], "{one:?} {two:?}");
        }
    }
    // Ten keys in each of three rounds.
    assert_eq!(fixture.database.count("users, generate_series(2, version)").await, 30);
    fixture.stop().await;
}

#[tokio::test]
async fn a_key_is_free_again_when_the_transaction_that_claimed_it_is_rolled_back() {
    let mut fixture = Fixture::start().await;
    let ada = UserId::mint();
    let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
    fixture.database.execute("BEGIN; LOCK TABLE users").await;
    {
        let mut applier = fixture.applier();
        let batch = messages(std::slice::from_ref(&creating));
        let given_up = tokio::time::timeout(Duration::from_millis(100), applier.apply(&batch));
        assert!(given_up.await.is_err(), "it waits for the lock");
    }
    fixture.database.execute("COMMIT").await;
    assert_eq!(apply(&mut fixture.applier(), &[again(&creating)]).await, [done(1)]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_of_a_parked_command_waits_with_it_and_ends_as_it_does() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
    let poison = keyed("poison", update(ada, None, Some("Poison")));
    let renaming = keyed("rename", update(ada, None, Some("Ada King")));
    let batch = [
        creating.clone(),
        poison.clone(),
        renaming.clone(),
        again(&poison),
        again(&renaming),
        again(&creating),
        keyed("rename", suspend(ada)),
    ];
    let parked = || Outcome::Parked("22023".to_owned());
    let outcomes = apply(&mut applier, &batch).await;
    let behind = || Outcome::Behind;
    assert_eq!(outcomes, [done(1), parked(), behind(), behind(), behind(), done(1), REUSED]);
    let later = [again(&poison), again(&creating)];
    assert_eq!(apply(&mut applier, &later).await, [behind(), behind()], "in a later batch");
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));

    fixture.database.execute(MEND).await;
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    let versions = [2, 3, 2, 3, 2, 1].map(|version| Verdict::Decided(done(version)));
    assert_eq!(steps.into_iter().map(|step| step.verdict).collect::<Vec<_>>(), versions);
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada King active v3 f"));
    assert_eq!(apply(&mut applier, &[again(&poison)]).await, [done(2)], "after the replay");
    fixture.stop().await;
}

#[tokio::test]
async fn a_key_counts_for_the_window_and_is_then_the_next_commands() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada")]).await;
    let renaming = || keyed("rename", update(ada, None, Some("Ada King")));
    assert_eq!(apply(&mut applier, &[accepted(window() - MINUTE, renaming())]).await, [done(2)]);
    assert_eq!(apply(&mut applier, &[renaming()]).await, [done(2)], "a minute before the end");

    fixture.database.execute("UPDATE idempotency_keys SET accepted_at = accepted_at - interval '2 minutes'").await;
    assert_eq!(apply(&mut applier, &[update(ada, None, Some("Between"))]).await, [done(3)]);
    assert_eq!(apply(&mut applier, &[renaming()]).await, [done(4)], "a minute after it");
    assert_eq!(apply(&mut applier, &[renaming(), renaming()]).await, [done(4), done(4)], "a window of its own");
    let other = keyed("rename", suspend(ada));
    assert_eq!(apply(&mut applier, &[other]).await, [REUSED]);
    assert_eq!(fixture.database.count("idempotency_keys").await, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_that_had_to_wait_in_its_queue_is_still_one() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada")]).await;
    let renaming = || keyed("rename", update(ada, None, Some("Ada King")));
    let hour = time::Duration::hours(1);
    assert_eq!(apply(&mut applier, &[accepted(window() + hour * 6, renaming())]).await, [done(2)]);
    assert_eq!(prune(&mut fixture.database.conn, WINDOW).await.expect("a deletion"), 0);
    assert_eq!(apply(&mut applier, &[accepted(hour * 7, renaming())]).await, [done(2)]);
    fixture.stop().await;
}

#[tokio::test]
async fn two_requests_a_window_apart_take_effect_twice_in_whatever_batches_they_come() {
    for size in [1, 2, 4] {
        let fixture = Fixture::start().await;
        let (mut applier, ada) = (fixture.applier(), UserId::mint());
        let renaming = |name| keyed("rename", update(ada, None, Some(name)));
        let past = window() + MINUTE;
        let commands = [
            accepted(past, create(ada, "ada@example.org", "Ada")),
            accepted(past, renaming("First")),
            accepted(past, renaming("First")),
            update(ada, None, Some("Between")),
            renaming("First"),
            renaming("First"),
            suspend(ada),
        ];
        let mut outcomes = Vec::new();
        for batch in commands.chunks(size) {
            outcomes.extend(apply(&mut applier, batch).await);
        }
        assert_eq!(outcomes, [1, 2, 2, 3, 4, 4, 5].map(done), "batches of {size}");
        // Another request than the first one's, a window later, is no misuse of the key.
        let later = accepted(-window() - MINUTE, renaming("Second"));
        assert_eq!(apply(&mut applier, &[later]).await, [REUSED], "the clock of an API cannot end a window");
        fixture.stop().await;
    }
}

#[tokio::test]
async fn a_retry_finds_a_first_command_of_its_batch_across_another_window() {
    let fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let (renaming, suspending) = (keyed("rename", update(ada, None, Some("Ada"))), keyed("suspend", suspend(ada)));
    let tenth = window() / 10;
    let batch = [
        accepted(tenth * 12, create(ada, "ada@example.org", "Eve")),
        accepted(tenth * 11, renaming.clone()),
        accepted(tenth * 2, suspending.clone()),
        // The key's next window; nothing is left to change.
        again(&renaming),
        again(&suspending),
    ];
    assert_eq!(apply(&mut applier, &batch).await, [1, 2, 3, 3, 3].map(done));
    fixture.stop().await;
}

#[tokio::test]
async fn the_latest_window_of_a_key_is_kept() {
    let fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    let renaming = keyed("rename", update(ada, None, Some("First")));
    let at = |tenths| accepted(window() * tenths / 10, again(&renaming));
    let between = || update(ada, None, Some("Between"));
    assert_eq!(apply(&mut applier, &[create(ada, "ada@example.org", "Ada"), at(15)]).await, [1, 2].map(done));
    assert_eq!(apply(&mut applier, &[between()]).await, [done(3)]);
    // A retry, and the first of the next window, of which neither is a window after the other.
    assert_eq!(apply(&mut applier, &[at(10), at(1), between()]).await, [2, 4, 5].map(done));
    assert_eq!(apply(&mut applier, &[at(0)]).await, [done(4)]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_through_an_api_whose_clock_is_wrong_takes_effect_once() {
    let wrong = [window() + MINUTE, -window() - MINUTE];
    for (one, other) in
        wrong.into_iter().flat_map(|wrong| [(wrong, time::Duration::ZERO), (time::Duration::ZERO, wrong)])
    {
        let mut fixture = Fixture::start().await;
        let (mut applier, ada) = (fixture.applier(), UserId::mint());
        let at = |ago, batch: &[Envelope]| batch.iter().map(|c| accepted(ago, again(c))).collect::<Vec<_>>();
        // As the partition knows from its looks at the queue.
        applier.published_after(OffsetDateTime::now_utc());
        let creating = keyed("create", create(ada, "ada@example.org", "Ada"));
        let renaming = keyed("rename", update(ada, None, Some("First")));
        let first = at(one, &[creating.clone(), renaming.clone()]);
        assert_eq!(apply(&mut applier, &first).await, [done(1), done(2)]);
        assert_eq!(apply(&mut applier, &[update(ada, None, Some("Second"))]).await, [done(3)]);
        assert_eq!(apply(&mut applier, &at(other, &[renaming])).await, [done(2)], "{one} and {other}");
        assert_eq!(apply(&mut applier, &[delete(ada)]).await, [GONE]);
        assert_eq!(prune(&mut fixture.database.conn, WINDOW).await.expect("a deletion"), 0);
        assert_eq!(apply(&mut applier, &at(other, &[creating])).await, [done(1)]);
        assert_eq!(fixture.database.user(ada).await, None, "a retry brings nobody back: {one} and {other}");
        fixture.stop().await;
    }
}

#[tokio::test]
async fn a_first_command_that_comes_after_that_of_the_next_window_is_applied_once() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (mut applier, ada, bob) = (fixture.applier(), UserId::mint(), UserId::mint());
    let past = window() + MINUTE * 5;
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada"), create(bob, "bob@example.org", "Bob")]).await;
    // Parked with the key in its hands; in the next window the key is another request's.
    let parked = accepted(past, keyed("key", update(ada, None, Some("Poison"))));
    assert_eq!(apply(&mut applier, &[parked]).await, [poisoned()]);
    let later = keyed("key", update(bob, None, Some("Robert")));
    assert_eq!(apply(&mut applier, std::slice::from_ref(&later)).await, [done(2)]);
    fixture.database.execute(MEND).await;
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    assert_eq!(steps[0].verdict, Verdict::Decided(done(2)));

    // One that never held it, because its partition was paused; and its own retry.
    let paused = accepted(past, keyed("other", suspend(ada)));
    let later_too = keyed("other", suspend(bob));
    assert_eq!(apply(&mut applier, std::slice::from_ref(&later_too)).await, [done(3)]);
    let retry = accepted(past - MINUTE, again(&paused));
    assert_eq!(apply(&mut applier, &[paused, retry.clone()]).await, [done(3), done(3)]);
    assert_eq!(apply(&mut applier, &[accepted(past - MINUTE, again(&retry))]).await, [done(3)], "in a later batch");
    // The later window's retries still find their own.
    assert_eq!(apply(&mut applier, &[again(&later), again(&later_too)]).await, [done(2), done(3)]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_command_whose_first_outcome_is_no_longer_kept_is_applied() {
    let mut fixture = Fixture::start().await;
    let (mut applier, ada) = (fixture.applier(), UserId::mint());
    apply(&mut applier, &[create(ada, "ada@example.org", "Ada")]).await;
    let renaming = || keyed("rename", update(ada, None, Some("Ada King")));
    assert_eq!(apply(&mut applier, &[renaming()]).await, [done(2)]);
    fixture.database.execute("DELETE FROM commands").await;
    assert_eq!(apply(&mut applier, &[update(ada, None, Some("Between"))]).await, [done(3)]);
    assert_eq!(apply(&mut applier, &[renaming()]).await, [done(4)]);
    fixture.stop().await;
}

#[tokio::test]
async fn old_keys_are_pruned_in_small_batches_and_nobody_waits() {
    let mut fixture = Fixture::start().await;
    let oldest = window() + time::Duration::try_from(BACKLOG).expect("a span of time");
    let fill = |number: u32, age: time::Duration| {
        format!(
            "INSERT INTO idempotency_keys (key, fingerprint, command_id, claimed_at, accepted_at)
             SELECT sha256(gen_random_uuid()::text::bytea), '', gen_random_uuid(), now() - interval '{} seconds', now()
             FROM generate_series(1, {number})",
            age.whole_seconds(),
        )
    };
    for sql in [fill(1500, oldest + MINUTE), fill(7, oldest - MINUTE), fill(3, time::Duration::ZERO)] {
        fixture.database.execute(&sql).await;
    }
    // A claim that is under way holds some of them.
    let mut other = db::connect(&fixture.database.settings(1), "other").await.expect("a connection");
    let held = "BEGIN; SELECT FROM idempotency_keys ORDER BY claimed_at LIMIT 10 FOR UPDATE";
    fixture.database.execute(held).await;
    let mut pruned = Vec::new();
    for _ in 0..3 {
        pruned.push(soon("a deletion", prune(&mut other, WINDOW)).await.expect("a deletion"));
    }
    assert_eq!(pruned, [1000, 490, 0]);
    fixture.database.execute("COMMIT").await;
    assert_eq!(prune(&mut other, WINDOW).await.expect("a deletion"), 10);
    assert_eq!(fixture.database.count("idempotency_keys").await, 10);
    fixture.stop().await;
}
