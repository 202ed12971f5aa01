//! Replaying and discarding: in order, as far as it goes, and never across a batch.

use common::command::{Envelope, Rejection, UserId};
use common::db;
use common::telemetry::TraceHeaders;
use rollcall_worker::dead_letters::{
    Discarded, Filter, RawMessage, ReplayError, Step, Verdict, discard, discard_raw, list, record_raw,
    record_undelivered, replay, replay_raw,
};
use rollcall_worker::users::Outcome;
use tokio::sync::oneshot::error::TryRecvError;
use uuid::Uuid;

use crate::support::{
    AT_THE_LOCK, DRY_RUN, Fixture, GONE, MEND, TERMS, TRIGGER, again, create, delete, done, keyed, message, messages,
    reactivate, soon, suspend, update,
};

/// Who waits for a row that another transaction has locked.
const AT_A_ROW: &str = "pg_stat_activity WHERE wait_event = 'transactionid' AND datname = current_database()";

/// A user with a guilty command and its retry behind it.
async fn with_a_parked_retry() -> (Fixture, UserId, Envelope) {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    let guilty = keyed("rename", update(ada, None, Some("Poison")));
    fixture.apply(&[create(ada, "ada@example.org", "Ada"), guilty.clone(), again(&guilty)]).await;
    (fixture, ada, guilty)
}

/// What is kept of the trigger's message, which could quote the row.
const REFUSED: &str = "the database refused it (SQLSTATE 22023; the message can quote data, see the server's log)";

fn these<const N: usize>(letters: [i64; N]) -> Discarded {
    Discarded::These(letters.into())
}

fn verdicts(steps: Vec<Step>) -> Vec<Verdict> {
    steps.into_iter().map(|step| step.verdict).collect()
}

fn failed() -> Verdict {
    Verdict::Failed(Some("22023".to_owned()), REFUSED.to_owned())
}

async fn head(fixture: &mut Fixture) -> i64 {
    list(&mut fixture.database.conn, &Filter::default(), 10).await.expect("letters")[0].id
}

#[tokio::test]
async fn a_replay_after_the_mend_applies_everything_in_order() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    let batch = [create(ada, "ada@example.org", "Poison"), suspend(ada), suspend(ada), update(ada, None, Some("Ada"))];
    fixture.apply(&batch).await;

    let again = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    assert_eq!(verdicts(again), [failed(), Verdict::Waits, Verdict::Waits, Verdict::Waits]);
    assert_eq!(fixture.letters().await[0].1, "22023 2", "the attempt is counted");
    let row = fixture.database.command(batch[0].id).await;
    assert_eq!(row.as_deref(), Some("users.create anonymous parked 22023"));

    fixture.database.execute(MEND).await;
    let expected = [
        Verdict::Decided(done(1)),
        Verdict::Decided(done(2)),
        Verdict::Decided(Outcome::Rejected(Rejection::AlreadySuspended)),
        Verdict::Decided(done(3)),
    ];
    let tried = replay(&mut fixture.database.conn, ada, DRY_RUN).await.expect("steps");
    assert_eq!(verdicts(tried), expected);
    assert_eq!(fixture.database.user(ada).await, None, "a dry run changes nothing");
    assert_eq!(fixture.letters().await.len(), 4);

    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    assert_eq!(steps.iter().map(|s| s.command_id).collect::<Vec<_>>(), batch.each_ref().map(|c| Uuid::from(c.id)));
    assert_eq!(verdicts(steps), expected);
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada suspended v3 t"));
    let rows = [
        "users.create anonymous succeeded - v1",
        "users.suspend anonymous succeeded - v2",
        "users.suspend anonymous rejected already-suspended",
        "users.update anonymous succeeded - v3",
    ];
    for (command, row) in batch.iter().zip(rows) {
        assert_eq!(fixture.database.command(command.id).await.as_deref(), Some(row));
    }
    assert!(fixture.letters().await.is_empty());
    assert_eq!(fixture.apply(&[delete(ada)]).await, [Some(GONE)], "no longer held");
    assert_eq!(replay(&mut fixture.database.conn, ada, TERMS).await.expect("nothing"), []);
    fixture.stop().await;
}

#[tokio::test]
async fn a_replay_stops_at_the_next_one_that_fails_and_the_rest_stay_in_order() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    fixture.apply(&[create(ada, "ada@example.org", "Ada")]).await;
    let batch = [update(ada, None, Some("Poison")), suspend(ada), update(ada, None, Some("Ada King")), delete(ada)];
    fixture.apply(&batch).await;
    // Raises for the second of its kind only.
    fixture.database.execute("UPDATE users SET version = 7").await;
    let once = "
        DROP TRIGGER refuse ON users;
        CREATE TRIGGER refuse BEFORE UPDATE ON users
            FOR EACH ROW WHEN (NEW.version = 10) EXECUTE FUNCTION refuse();
    ";
    fixture.database.execute(once).await;
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    let expected = [Verdict::Decided(done(8)), Verdict::Decided(done(9)), failed(), Verdict::Waits];
    assert_eq!(verdicts(steps), expected);
    let letters = fixture.letters().await;
    let left = [(&batch[2], "22023 1"), (&batch[3], "- 0")];
    assert_eq!(letters, left.map(|(c, line)| (Some(c.id.into()), line.to_owned())));
    let row = fixture.database.command(batch[2].id).await;
    assert_eq!(row.as_deref(), Some("users.update anonymous parked 22023"), "the first now, with its own reason");
    let held = format!("held_users WHERE command_id = '{}'", batch[2].id);
    assert_eq!(fixture.database.count(&held).await, 1);
    assert_eq!(fixture.apply(&[suspend(ada)]).await, [Some(Outcome::Behind)], "still held");
    fixture.stop().await;
}

#[tokio::test]
async fn a_discarded_letter_stays_parked_and_what_waited_follows() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    fixture.apply(&[create(ada, "ada@example.org", "Ada")]).await;
    let batch = [update(ada, None, Some("Poison")), suspend(ada), update(ada, None, Some("Poison")), delete(ada)];
    fixture.apply(&batch).await;
    let letter = head(&mut fixture).await;
    let conn = &mut fixture.database.conn;
    let early = discard(conn, ada, &these([letter + 1]), TERMS).await.expect_err("not the first");
    assert!(matches!(early, ReplayError::NotFirst(id) if id == Uuid::from(batch[0].id)), "{early:?}");
    let expected = [Verdict::Discarded, Verdict::Decided(done(2)), failed(), Verdict::Waits];
    assert_eq!(verdicts(discard(conn, ada, &these([letter]), DRY_RUN).await.expect("steps")), expected);
    assert_eq!(verdicts(discard(conn, ada, &these([letter]), TERMS).await.expect("steps")), expected);
    let twice = discard(conn, ada, &these([letter]), TERMS).await.expect_err("closed");
    assert!(matches!(twice, ReplayError::NotOpen), "{twice:?}");
    let row = fixture.database.command(batch[0].id).await;
    assert_eq!(row.as_deref(), Some("users.update anonymous parked discarded"));
    let letter = head(&mut fixture).await;
    let steps = discard(&mut fixture.database.conn, ada, &these([letter]), TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Discarded, Verdict::Decided(GONE)]);
    assert!(fixture.letters().await.is_empty());
    assert_eq!(fixture.database.user(ada).await, None);
    fixture.stop().await;
}

#[tokio::test]
async fn followers_that_are_discarded_too_are_not_applied() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    fixture.apply(&[create(ada, "ada@example.org", "Ada"), create(bob, "bob@example.org", "Bob")]).await;
    let of = |user| [update(user, None, Some("Poison")), delete(user), suspend(user)];
    fixture.apply(&of(ada)).await;
    fixture.apply(&of(bob)).await;
    let letter = head(&mut fixture).await;
    let conn = &mut fixture.database.conn;
    let steps = discard(conn, ada, &these([letter, letter + 1]), TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Discarded, Verdict::Discarded, Verdict::Decided(done(2))]);
    let steps = discard(conn, bob, &Discarded::All, TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Discarded, Verdict::Discarded, Verdict::Discarded]);
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada suspended v2 t"));
    assert_eq!(fixture.database.user(bob).await.as_deref(), Some("bob@example.org Bob active v1 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn many_letters_of_one_user_are_replayed_in_order_in_several_transactions() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    fixture.apply(&[create(ada, "ada@example.org", "Ada"), update(ada, None, Some("Poison"))]).await;
    let names: Vec<_> = (0..250).map(|n| update(ada, None, Some(&format!("Ada {n}")))).collect();
    fixture.apply(&names).await;
    fixture.database.execute(MEND).await;
    let tried = replay(&mut fixture.database.conn, ada, DRY_RUN).await.expect("steps");
    assert!(!tried.is_empty() && tried.len() <= 100, "{}", tried.len());
    let steps = verdicts(replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps"));
    assert_eq!(steps, (2..=252).map(|version| Verdict::Decided(done(version))).collect::<Vec<_>>());
    let transactions = "(SELECT DISTINCT closed_at FROM dead_letters) AS t";
    assert!(fixture.database.count(transactions).await >= 3, "nobody waits for all of them");
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada 249 active v252 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_letter_that_outlived_its_day_has_an_outcome_and_its_retry_the_same() {
    let (mut fixture, ada, guilty) = with_a_parked_retry().await;
    fixture.database.execute("DELETE FROM commands; DELETE FROM idempotency_keys").await;
    fixture.database.execute(MEND).await;
    let steps = replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Decided(done(2)), Verdict::Decided(done(2))]);
    let row = fixture.database.command(guilty.id).await;
    assert_eq!(row.as_deref(), Some("users.update anonymous succeeded - v2"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_of_a_discarded_command_is_discarded_with_it() {
    let (mut fixture, ada, guilty) = with_a_parked_retry().await;
    let letter = head(&mut fixture).await;
    let steps = discard(&mut fixture.database.conn, ada, &these([letter]), TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Discarded, Verdict::Discarded]);
    for _ in 0..150 {
        let retry = fixture.apply(&[again(&guilty)]).await;
        assert_eq!(retry, [Some(Outcome::Parked("discarded".to_owned()))], "and it is no flood");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_retry_of_a_command_with_an_unknown_outcome_is_kept() {
    let (mut fixture, ada, guilty) = with_a_parked_retry().await;
    // A newer version has replayed the first and rejected it for a reason of its own.
    let rejected = |reason: &str| {
        format!("UPDATE commands SET status = 'rejected', reason = '{reason}' WHERE id = '{}'", guilty.id)
    };
    fixture.database.execute(&rejected("name-reserved")).await;
    let close = format!(
        "UPDATE dead_letters SET state = 'replayed', closed_at = now() WHERE command_id = '{}';
         UPDATE held_users SET command_id = (SELECT command_id FROM dead_letters WHERE state = 'open')",
        guilty.id
    );
    fixture.database.execute(&close).await;
    let steps = verdicts(replay(&mut fixture.database.conn, ada, TERMS).await.expect("steps"));
    assert!(matches!(&steps[..], [Verdict::Failed(None, reason)] if reason.contains("does not know")), "{steps:?}");
    assert_eq!(fixture.letters().await.len(), 1, "the letter stays open");

    // The same in a batch: a letter, and not a parked command that no operator can find.
    let bob = UserId::mint();
    let first = keyed("suspend", suspend(bob));
    fixture.apply(std::slice::from_ref(&first)).await;
    let unknown = format!("UPDATE commands SET reason = 'name-reserved' WHERE id = '{}'", first.id);
    fixture.database.execute(&unknown).await;
    let retry = again(&first);
    assert_eq!(fixture.apply(std::slice::from_ref(&retry)).await, [Some(Outcome::Parked("not-understood".to_owned()))]);
    assert_eq!(fixture.letters().await[1].0, Some(retry.id.into()));

    // The version that knows the reason gives the retry its outcome.
    let known = format!("UPDATE commands SET reason = 'user-not-found' WHERE id = '{}'", first.id);
    fixture.database.execute(&known).await;
    let steps = verdicts(replay(&mut fixture.database.conn, bob, TERMS).await.expect("steps"));
    assert_eq!(steps, [Verdict::Decided(Outcome::Rejected(Rejection::NotFound))]);
    fixture.stop().await;
}

#[tokio::test]
async fn a_user_that_two_hold_at_once_stays_held_until_both_letters_are_dealt_with() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    fixture.apply(&[create(ada, "ada@example.org", "Ada")]).await;
    let (undelivered, guilty) = (suspend(ada), update(ada, None, Some("Poison")));
    // The batch has seen that nobody holds the user, and then waits, with its guilty command, for this transaction.
    let mut other = db::connect(&fixture.database.settings(1), "other").await.expect("a connection");
    let hold = format!("BEGIN; INSERT INTO held_users VALUES ('{ada}', '{}')", undelivered.id);
    sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut other).await.expect("a lock");
    let mut applier = fixture.applier();
    let batch = messages(std::slice::from_ref(&guilty));
    let applying = tokio::spawn(async move { applier.apply(&batch).await });
    soon("the batch waits", async { while fixture.database.count(AT_A_ROW).await == 0 {} }).await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("an end");
    soon("the batch", applying).await.expect("no panic").expect("outcomes");
    let undelivered = message(&undelivered.encode());
    record_undelivered(&mut other, &undelivered, "delivery-limit", "given up").await.expect("a letter");
    assert_eq!(fixture.letters().await.len(), 2);
    assert_eq!(fixture.apply(&[reactivate(ada)]).await, [Some(Outcome::Behind)]);
    fixture.database.execute(MEND).await;
    replay(&mut other, ada, TERMS).await.expect("steps");
    assert!(fixture.letters().await.is_empty());
    fixture.stop().await;
}

#[tokio::test]
async fn a_raw_message_is_read_again_or_discarded() {
    let mut fixture = Fixture::start().await;
    let (ada, none) = (UserId::mint(), TraceHeaders::default());
    // As a newer version's command is to an older worker.
    let payload = create(ada, "ada@example.org", "Ada").encode();
    for payload in [payload.as_slice(), b"no command"] {
        let message = RawMessage { payload, reason: "undecodable", trace: &none, defect: None };
        record_raw(&mut fixture.database.conn, message).await.expect("a letter");
    }
    let conn = &mut fixture.database.conn;
    let letters = list(conn, &Filter::default(), 10).await.expect("letters");
    let steps = replay_raw(conn, &letters[0], TERMS).await.expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Decided(done(1))]);
    let still = replay_raw(conn, &letters[1], TERMS).await.expect_err("no command");
    assert!(matches!(still, ReplayError::Undecodable(_)), "{still:?}");
    discard_raw(conn, letters[1].id).await.expect("an end");
    assert!(matches!(discard_raw(conn, letters[1].id).await, Err(ReplayError::NotOpen)));
    assert!(fixture.letters().await.is_empty());
    assert_eq!(fixture.database.user(ada).await.as_deref(), Some("ada@example.org Ada active v1 f"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_batch_waits_for_a_replay_of_its_user_and_comes_after_it() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    fixture.apply(&[create(ada, "ada@example.org", "Poison"), suspend(ada)]).await;
    fixture.database.execute(MEND).await;
    // The replay comes to a stand in its middle, at a lock that the test holds.
    fixture.database.execute("BEGIN; LOCK TABLE users IN SHARE MODE").await;
    let mut operator = db::connect(&fixture.database.settings(1), "operator").await.expect("a connection");
    let replaying = tokio::spawn(async move { replay(&mut operator, ada, TERMS).await });
    while fixture.database.count(AT_THE_LOCK).await == 0 {
        tokio::task::yield_now().await;
    }
    let next = [suspend(ada), update(ada, None, Some("Last")), create(bob, "bob@example.org", "Bob")];
    let mut applier = fixture.applier();
    let batch = messages(&next);
    let applying = tokio::spawn(async move { applier.apply(&batch).await });
    soon("the batch waits for the operator", async { while fixture.database.count(AT_A_ROW).await == 0 {} }).await;
    fixture.database.execute("COMMIT").await;
    let steps = soon("the replay", replaying).await.expect("no panic").expect("steps");
    assert_eq!(verdicts(steps), [Verdict::Decided(done(1)), Verdict::Decided(done(2))]);
    let outcomes = soon("the batch", applying).await.expect("no panic").expect("outcomes").outcomes;
    let expected = [Outcome::Rejected(Rejection::AlreadySuspended), done(3), done(1)];
    assert_eq!(next.each_ref().map(|c| outcomes[&c.id].clone()), expected, "applied, after what was parked");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_replays_and_batches_keep_one_users_order() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    fixture.apply(&[create(ada, "ada@example.org", "Start")]).await;
    let mut operator = db::connect(&fixture.database.settings(1), "operator").await.expect("a connection");
    fixture.database.execute("CREATE TABLE seen (position serial, name text)").await;
    let log = "
        CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO seen (name) VALUES (NEW.name); RETURN NULL; END $$;
        CREATE TRIGGER log AFTER UPDATE ON users FOR EACH ROW EXECUTE FUNCTION log();
    ";
    fixture.database.execute(log).await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let replaying = tokio::spawn(async move {
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            // Contention is tried again by whoever calls.
            let _ = replay(&mut operator, ada, TERMS).await;
        }
        operator
    });
    for round in 0..60 {
        if round % 10 == 3 {
            fixture.database.execute("ALTER TABLE users ENABLE TRIGGER refuse").await;
            assert_eq!(fixture.apply(&[update(ada, None, Some("Poison"))]).await.len(), 1);
        }
        let batch =
            [update(ada, None, Some(&format!("{round:03}a"))), update(ada, None, Some(&format!("{round:03}b")))];
        fixture.apply(&batch).await;
        if round % 10 == 6 {
            fixture.database.execute("ALTER TABLE users DISABLE TRIGGER refuse").await;
        }
    }
    stop.send(()).expect("a replaying task");
    let mut operator = soon("the last replay", replaying).await.expect("no panic");
    replay(&mut operator, ada, TERMS).await.expect("the rest");
    assert!(fixture.letters().await.is_empty());
    let names = "SELECT name FROM seen WHERE name <> 'Poison' ORDER BY position";
    let names: Vec<String> = sqlx::query_scalar(names).fetch_all(&mut fixture.database.conn).await.expect("names");
    let expected: Vec<String> = (0..60).flat_map(|round| [format!("{round:03}a"), format!("{round:03}b")]).collect();
    assert_eq!(names, expected, "each once, in order");
    fixture.stop().await;
}
