//! The SQL functions with sessions of their own: what only shows when one is gone, or holds a lock.

use std::time::Duration;

use local_stack::testing::TestDatabase;
use rollcall_common::db;
use sqlx::{Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{instance_of, shared_settings};
use crate::support::{connect, database, eventually, settings};

const PARTITIONS: i32 = 4;
/// Far less than the time to live of a member.
const PROMPT: Duration = Duration::from_secs(3);

const JOIN: &str = "SELECT joined FROM join_as_worker($1, 'test', $2, NULL, 1, $3, 50, NULL, true)";

struct Instance {
    secret: [u8; 32],
    /// Its id.
    name: Uuid,
    epoch: i64,
    control: PgConnection,
    /// What it asks for.
    grace: Duration,
}

async fn control(database: &TestDatabase, name: Uuid) -> PgConnection {
    let name = format!("rollcall-control/{name}");
    db::connect(&settings(database.url(), 1), &name).await.expect("a control connection")
}

async fn join(control: &mut PgConnection, secret: [u8; 32], floor: i32, budget: i32) -> Option<i64> {
    sqlx::query_scalar(JOIN)
        .bind(secret)
        .bind(shared_settings(PARTITIONS, budget))
        .bind(floor)
        .fetch_one(control)
        .await
        .expect("an answer")
}

impl Instance {
    async fn start(database: &TestDatabase, budget: i32) -> Self {
        let secret: [u8; 32] = rand::random();
        let name = instance_of(&secret);
        let mut control = control(database, name).await;
        let epoch = join(&mut control, secret, 1, budget).await.expect("room");
        let grown = "UPDATE members SET joined_at = '-infinity' WHERE instance = $1";
        sqlx::query(grown).bind(name).execute(&mut control).await.expect("of age");
        let mut instance = Self { secret, name, epoch, control, grace: Duration::from_millis(1) };
        instance.beat().await;
        instance
    }

    /// Beats as if nothing were open; gives what it may open and what the server shows.
    async fn beat(&mut self) -> (i32, i32) {
        let beat = "SELECT granted, sessions FROM beat_membership($1, $2, 0, 0, 0, 0, 50, $3) WHERE alive";
        let beating = sqlx::query_as(beat).bind(self.secret).bind(self.epoch).bind(self.grace);
        let beating = beating.fetch_one(&mut self.control);
        tokio::time::timeout(PROMPT, beating).await.expect("an answer in time").expect("a member")
    }

    async fn reaches_broker(&mut self, reaches: bool) {
        let say = sqlx::query("SELECT set_consumes($1, $2)").bind(self.secret).bind(reaches);
        say.execute(&mut self.control).await.expect("said");
    }

    async fn session(&self, database: &TestDatabase) -> PgConnection {
        db::connect(&settings(database.url(), 1), &format!("rollcall/{}", self.name)).await.expect("a session")
    }
}

async fn owners(conn: &mut PgConnection) -> Vec<(Option<Uuid>, i64)> {
    let query = "SELECT owner, epoch FROM partitions ORDER BY number";
    sqlx::query_as(query).fetch_all(conn).await.expect("partitions")
}

/// Waits until the server shows no session of this name any more, which is later than the client's farewell.
async fn until_gone(witness: &mut PgConnection, name: &str) {
    let shown = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1";
    eventually("no session", async || {
        let count: i64 = sqlx::query_scalar(shown).bind(name).fetch_one(&mut *witness).await.expect("a count");
        count == 0
    })
    .await;
}

/// Beats until another one is none any more.
async fn reaped(beating: &mut Instance, witness: &mut PgConnection, gone: Uuid) {
    eventually("reaped", async || {
        beating.beat().await;
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT FROM members WHERE instance = $1)").bind(gone);
        let known: bool = known.fetch_one(&mut *witness).await.expect("an answer");
        !known
    })
    .await;
}

#[tokio::test]
async fn nobody_gets_the_share_of_one_whose_control_connection_ended_before_that_one_must_have_noticed() {
    let database = database().await;
    let (mut gone, mut stays) = (Instance::start(&database, 30).await, Instance::start(&database, 30).await);
    // As long as the test needs, on any machine.
    gone.grace = Duration::from_hours(1);
    gone.beat().await;
    let (before, _) = stays.beat().await;
    let mut witness = connect(database.url()).await;
    gone.control.close().await.expect("the end");
    until_gone(&mut witness, &format!("rollcall-control/{}", gone.name)).await;
    for _ in 0..3 {
        assert_eq!(stays.beat().await.0, before);
    }
    let soon = "SELECT soon FROM beat_membership($1, $2, 0, 0, 0, 0, 50, $3)";
    let soon = sqlx::query_scalar(soon).bind(stays.secret).bind(stays.epoch).bind(stays.grace);
    let soon: bool = soon.fetch_one(&mut stays.control).await.expect("a beat");
    assert!(soon, "the next heartbeat shall not wait");
    witness.execute("UPDATE members SET grace = '0' WHERE control_lost_at IS NOT NULL").await.expect("set");
    reaped(&mut stays, &mut witness, gone.name).await;
    stays.beat().await;
    assert!(stays.beat().await.0 > before);
}

#[tokio::test]
async fn a_worker_that_does_not_reach_the_broker_keeps_partitions_only_while_no_other_does() {
    let database = database().await;
    let (mut one, mut other) = (Instance::start(&database, 30).await, Instance::start(&database, 30).await);
    let mut witness = connect(database.url()).await;
    let one_and_other = (one.name, other.name);
    let mut shares = async |beating: &mut Instance, pass_a_minute: bool| -> (i64, i64) {
        if pass_a_minute {
            let pass = "UPDATE members SET consumes_since = consumes_since - interval '1 minute'";
            witness.execute(pass).await.expect("set");
        }
        beating.beat().await;
        let query = "SELECT count(*) FILTER (WHERE coalesce(heir, owner) = $1), count(*) FILTER (WHERE coalesce(heir, owner) = $2)
                     FROM partitions";
        sqlx::query_as(query).bind(one_and_other.0).bind(one_and_other.1).fetch_one(&mut witness).await.expect("shares")
    };
    let all = i64::from(PARTITIONS);
    let half = (all / 2, all / 2);
    assert_eq!(shares(&mut other, true).await, half);
    one.reaches_broker(false).await;
    assert_eq!(shares(&mut other, false).await, half, "it may be back in a moment");
    assert_eq!(shares(&mut other, true).await, (0, all));
    // Now the broker is away for both, and back for one a little earlier.
    other.reaches_broker(false).await;
    assert_eq!(shares(&mut other, true).await, (0, all));
    one.reaches_broker(true).await;
    assert_eq!(shares(&mut other, false).await, half);
    other.reaches_broker(true).await;
    assert_eq!(shares(&mut one, true).await, half);
}

#[tokio::test]
async fn whoever_was_missed_and_comes_back_in_time_stays_a_member() {
    let database = database().await;
    let (mut instance, mut other) = (Instance::start(&database, 30).await, Instance::start(&database, 30).await);
    instance.grace = Duration::from_hours(1);
    let (before, _) = instance.beat().await;
    instance.control.close().await.expect("the end");
    let mut witness = connect(database.url()).await;
    until_gone(&mut witness, &format!("rollcall-control/{}", instance.name)).await;
    other.beat().await;
    let missed = "SELECT control_lost_at IS NOT NULL FROM members WHERE instance = $1";
    let missed = sqlx::query_scalar(missed).bind(instance.name);
    let missed: bool = missed.fetch_one(&mut witness).await.expect("a member");
    assert!(missed, "the other one noticed");

    instance.control = control(&database, instance.name).await;
    let back = sqlx::query_scalar(JOIN).bind(instance.secret).bind(shared_settings(PARTITIONS, 30)).bind(1);
    instance.epoch = back.fetch_one(&mut instance.control).await.expect("room");
    instance.grace = Duration::ZERO;
    for _ in 0..3 {
        other.beat().await;
        assert_eq!(instance.beat().await.0, before);
    }
}

#[tokio::test]
async fn whoever_comes_for_one_that_just_ended_is_told_to_wait_for_its_place() {
    let database = database().await;
    // An instance has a control connection and one more; two places are kept, and two for a service that is not here.
    let budget = 8;
    let (mut gone, _stays) = (Instance::start(&database, budget).await, Instance::start(&database, budget).await);
    gone.grace = Duration::from_hours(1);
    gone.beat().await;
    gone.control.close().await.expect("the end");
    let mut witness = connect(database.url()).await;
    until_gone(&mut witness, &format!("rollcall-control/{}", gone.name)).await;
    let secret: [u8; 32] = rand::random();
    let mut control = control(&database, instance_of(&secret)).await;
    let join = "SELECT joined, reason, extract(epoch FROM away)::float8 FROM join_as_worker($1, 'test', $2, NULL, 1, 1, 50, NULL, true)";
    let joining = sqlx::query_as(join).bind(secret).bind(shared_settings(PARTITIONS, budget)).fetch_one(&mut control);
    let (joined, reason, away): (Option<i64>, String, f64) = joining.await.expect("an answer");
    assert!(joined.is_none() && reason.contains("just ended") && away < 1.0, "{joined:?} {reason} {away}");
}

#[tokio::test]
async fn whoever_comes_back_over_another_control_connection_keeps_what_it_has() {
    let database = database().await;
    let mut instance = Instance::start(&database, 30).await;
    let mut session = instance.session(&database).await;
    let (granted, _) = instance.beat().await;
    assert!(granted > 1);
    let before = owners(&mut session).await;

    let end = "SELECT pg_terminate_backend(control_pid) FROM members WHERE instance = $1";
    sqlx::query(end).bind(instance.name).execute(&mut session).await.expect("the end of the control connection");
    instance.control = control(&database, instance.name).await;
    instance.epoch = join(&mut instance.control, instance.secret, 1, 30).await.expect("room");
    assert_eq!(owners(&mut session).await, before, "its session goes on, and its partitions under the same epochs");
    assert_eq!(instance.beat().await, (granted, 1));
}

#[tokio::test]
async fn a_transaction_that_holds_the_partition_of_one_who_is_gone_holds_up_nobody_else() {
    let database = database().await;
    let (gone, mut stays) = (Instance::start(&database, 30).await, Instance::start(&database, 30).await);
    let mut stuck = connect(database.url()).await;
    // As a pooler's session does, which no other instance knows as that of the one who is gone.
    let mut tx = stuck.begin().await.expect("a transaction");
    let locking = "SELECT number FROM partitions WHERE owner = $1 LIMIT 1 FOR KEY SHARE";
    let held: i32 = sqlx::query_scalar(locking).bind(gone.name).fetch_one(&mut *tx).await.expect("a partition");
    gone.control.close().await.expect("the end");
    let mut witness = connect(database.url()).await;
    until_gone(&mut witness, &format!("rollcall-control/{}", gone.name)).await;
    reaped(&mut stays, &mut witness, gone.name).await;
    let index = usize::try_from(held).expect("a partition");
    for (number, (owner, _)) in owners(&mut witness).await.into_iter().enumerate() {
        assert_eq!(owner == Some(stays.name), number != index, "partition {number}, and {held} is held");
    }
    tx.rollback().await.expect("an end");
    stays.beat().await;
    assert!(owners(&mut witness).await.iter().all(|(owner, _)| *owner == Some(stays.name)));
}

#[tokio::test]
async fn the_helpers_of_a_parallel_query_are_no_sessions() {
    let database = database().await;
    let mut instance = Instance::start(&database, 30).await;
    let mut session = instance.session(&database).await;
    // The second name since PostgreSQL 16.
    let always = "SELECT set_config(name, 'on', false) FROM pg_settings WHERE name IN ('force_parallel_mode', 'debug_parallel_query')";
    session.execute(always).await.expect("set");
    let mut witness = connect(database.url()).await;
    let mut query = JoinSet::new();
    query.spawn(async move { session.execute("SELECT pg_sleep(30)").await.map(|_| session) });
    let helpers =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker' AND application_name = $1";
    let name = format!("rollcall/{}", instance.name);
    eventually("a helper", async || {
        let count: i64 = sqlx::query_scalar(helpers).bind(&name).fetch_one(&mut witness).await.expect("a count");
        count > 0
    })
    .await;
    assert_eq!(instance.beat().await.1, 1);
}

#[tokio::test]
async fn a_heartbeat_tells_how_many_sessions_the_server_shows() {
    let database = database().await;
    let mut instance = Instance::start(&database, 30).await;
    assert_eq!(instance.beat().await.1, 0);
    let sessions = [instance.session(&database).await, instance.session(&database).await];
    assert_eq!(instance.beat().await.1, 2);
    drop(sessions);
}
