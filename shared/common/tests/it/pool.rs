//! The pool: its size, its order, and what becomes of a lease that ended badly.

use std::time::Duration;

use local_stack::testing::TestDatabase;
use rollcall_common::db::{DbError, Lease, Pool, PoolStatus, within};
use sqlx::{Connection, PgConnection};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, connect, database, eventually, settings, soon};

const NAME: &str = "pool-under-test";

fn pool(database: &TestDatabase, size: usize) -> Pool {
    Pool::new(&settings(database.url(), size), NAME, &[]).expect("a pool")
}

async fn pid(lease: &mut Lease) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut **lease).await.expect("a pid")
}

/// The pool's sessions, as the server counts them.
async fn sessions(witness: &mut PgConnection) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
    sqlx::query_scalar(count).bind(NAME).fetch_one(witness).await.expect("a count")
}

/// A lease; a server that is busy with many connects may answer one of them too late for the pool's deadline.
async fn lease(pool: &Pool) -> Lease {
    loop {
        match pool.acquire(PATIENCE).await {
            Err(DbError::Deadline(_)) => {}
            end => return end.expect("a connection"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_never_uses_more_connections_than_its_size() {
    const SIZE: usize = 5;
    let database = database().await;
    let pool = pool(&database, SIZE);
    let mut witness = connect(database.url()).await;
    let (done, mut finished) = oneshot::channel::<()>();
    let mut watching = JoinSet::new();
    watching.spawn(async move {
        let mut most = 0;
        while finished.try_recv().is_err() {
            most = most.max(sessions(&mut witness).await);
        }
        most
    });

    let mut users = JoinSet::new();
    for user in 0..50 {
        let pool = pool.clone();
        users.spawn(async move {
            for round in 0..6 {
                let mut lease = lease(&pool).await;
                if (user + round) % 10 == 0 {
                    // Given up in the middle of its statement.
                    let sleep = sqlx::query("SELECT pg_sleep(0.3) AS given_up").execute(&mut *lease);
                    let _ = within(Duration::from_millis(5), sleep).await;
                } else {
                    let sleep = sqlx::query("SELECT pg_sleep(0.01)").execute(&mut *lease);
                    sleep.await.expect("a nap");
                    lease.release().await.expect("released");
                }
            }
        });
    }
    soon("all users served", async { while users.join_next().await.transpose().expect("a user").is_some() {} }).await;
    done.send(()).expect("a watcher");
    let most = watching.join_next().await.expect("a watcher").expect("a number");
    assert!((1..=5).contains(&most), "{most} sessions at once in a pool of {SIZE}");
    let PoolStatus { in_use, idle, .. } = pool.status();
    assert!(in_use == 0 && idle <= SIZE, "{:?}", pool.status());
    let mut witness = connect(database.url()).await;
    let idle = i64::try_from(idle).expect("a small number");
    eventually("abandoned sessions are gone", async || sessions(&mut witness).await == idle).await;
}

#[tokio::test]
async fn a_lease_dropped_inside_a_transaction_leaves_nothing_behind() {
    let database = database().await;
    let pool = pool(&database, 1);
    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    let first = pid(&mut lease).await;
    let mut tx = lease.begin().await.expect("a transaction");
    let create = "CREATE TABLE left_behind (id int)";
    sqlx::query(create).execute(&mut *tx).await.expect("a table");
    // Forgotten, so that not even its own rollback is queued on the connection.
    std::mem::forget(tx);
    drop(lease);

    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    assert_ne!(pid(&mut lease).await, first, "another session");
    sqlx::query(create).execute(&mut *lease).await.expect("the name is free, and this is committed");
    lease.release().await.expect("released");
    let mut witness = connect(database.url()).await;
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('left_behind') IS NOT NULL")
        .fetch_one(&mut witness)
        .await
        .expect("an answer");
    assert!(exists);
}

#[tokio::test]
async fn a_begin_that_is_cancelled_leaves_no_transaction_to_the_next_borrower() {
    let database = database().await;
    let pool = pool(&database, 1);
    let mut witness = connect(database.url()).await;
    sqlx::query("CREATE TABLE notes (id int)").execute(&mut witness).await.expect("a table");
    for note in 0..8 {
        let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
        {
            let mut begin = std::pin::pin!(lease.begin());
            let _ = futures_util::poll!(begin.as_mut());
        }
        drop(lease);
        let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
        let insert = sqlx::query("INSERT INTO notes VALUES ($1)").bind(note);
        insert.execute(&mut *lease).await.expect("a note");
        lease.release().await.expect("released");
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&mut witness).await.expect("a count");
    assert_eq!(count, 8);
}

#[tokio::test]
async fn a_deadline_closes_the_connection_and_frees_its_place() {
    let database = database().await;
    let pool = pool(&database, 1);
    let mut witness = connect(database.url()).await;
    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    let first = pid(&mut lease).await;
    let sleep = sqlx::query("SELECT pg_sleep(1)").execute(&mut *lease);
    let end = within(Duration::from_millis(10), sleep).await;
    assert!(matches!(end, Err(DbError::Deadline(_))), "{end:?}");
    drop(lease);
    // Until the server has noticed, it counts as open.
    assert_eq!(pool.status(), PoolStatus { size: 1, open: 1, connected: 0, in_use: 0, idle: 0, waiting: 0 });
    eventually("the server noticed", async || sessions(&mut witness).await == 0).await;

    let mut lease = pool.acquire(PATIENCE).await.expect("the place is free");
    assert_ne!(pid(&mut lease).await, first);
}

#[tokio::test]
async fn a_statement_that_fails_is_told_apart_from_a_deadline() {
    let database = database().await;
    let pool = pool(&database, 1);
    let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
    let wrong = sqlx::query("SELECT 1 / 0").execute(&mut *lease);
    let end = within(PATIENCE, wrong).await;
    assert!(matches!(end, Err(DbError::Statement(_))), "{end:?}");
}

#[tokio::test]
async fn the_connection_used_last_is_used_next() {
    let database = database().await;
    let pool = pool(&database, 3);
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(pool.acquire(PATIENCE).await.expect("a connection"));
    }
    let mut pids = Vec::new();
    for mut lease in leases {
        pids.push(pid(&mut lease).await);
        lease.release().await.expect("released");
    }
    assert_eq!(pool.status(), PoolStatus { size: 3, open: 3, connected: 3, in_use: 0, idle: 3, waiting: 0 });
    for _ in 0..5 {
        let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
        assert_eq!(pid(&mut lease).await, pids[2]);
        lease.release().await.expect("released");
    }
}

#[tokio::test]
async fn waiters_are_served_in_order() {
    let database = database().await;
    let pool = pool(&database, 1);
    let held = pool.acquire(PATIENCE).await.expect("a connection");
    let (first, second) = (pool.acquire(PATIENCE), pool.acquire(PATIENCE));
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    held.release().await.expect("released");
    assert!(futures_util::poll!(second.as_mut()).is_pending(), "it came second");
    first.await.expect("a connection").release().await.expect("released");
    second.await.expect("a connection").release().await.expect("released");
}

#[tokio::test]
async fn an_exhausted_pool_says_so_in_time() {
    let database = database().await;
    let pool = pool(&database, 1);
    let held = pool.acquire(PATIENCE).await.expect("a connection");
    let patience = Duration::from_millis(30);
    let end = soon("an answer", pool.acquire(patience)).await.expect_err("exhausted");
    assert!(matches!(end, DbError::Exhausted(waited) if waited == patience), "{end}");
    held.release().await.expect("released");
    pool.acquire(PATIENCE).await.expect("the place is free again").release().await.expect("released");
}

#[tokio::test]
async fn a_waiter_that_leaves_takes_no_place() {
    let database = database().await;
    let pool = pool(&database, 1);
    let held = pool.acquire(PATIENCE).await.expect("a connection");
    {
        let mut waiting = std::pin::pin!(pool.acquire(PATIENCE));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    }
    held.release().await.expect("released");
    {
        // Given the place, but gone before it looked.
        let mut served = std::pin::pin!(pool.acquire(PATIENCE));
        let _ = futures_util::poll!(served.as_mut());
    }
    soon("the place", pool.acquire(PATIENCE)).await.expect("a connection").release().await.expect("released");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_takes_no_place() {
    let pool = Pool::new(&settings("postgres://u:p@127.0.0.1:1/d", 1), NAME, &[]).expect("a pool");
    for _ in 0..3 {
        let end = soon("an answer", pool.acquire(PATIENCE)).await.expect_err("nobody there");
        assert!(matches!(end, DbError::Connect { .. }), "{end}");
    }
    let none = PoolStatus { size: 1, open: 0, connected: 0, in_use: 0, idle: 0, waiting: 0 };
    eventually("nothing counts as open", async || pool.status() == none).await;
}

#[tokio::test]
async fn every_connection_has_the_settings_of_its_session() {
    let database = database().await;
    let session = [("default_transaction_read_only", "on"), ("statement_timeout", "1234ms")];
    let pool = Pool::new(&settings(database.url(), 2), NAME, &session).expect("a pool");
    let leases = [pool.acquire(PATIENCE).await, pool.acquire(PATIENCE).await];
    for lease in leases {
        let mut lease = lease.expect("a connection");
        for (name, value) in [("transaction_read_only", "on"), ("statement_timeout", "1234ms")] {
            let shown: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(&mut *lease)
                .await
                .expect("a setting");
            assert_eq!(shown, value);
        }
    }
}

#[tokio::test]
async fn a_closed_pool_lends_nothing_and_keeps_nothing() {
    let database = database().await;
    let pool = pool(&database, 3);
    let mut witness = connect(database.url()).await;
    let out = pool.acquire(PATIENCE).await.expect("a connection");
    let idle = pool.acquire(PATIENCE).await.expect("a connection");
    idle.release().await.expect("released");
    pool.close().await;
    eventually("only the lease is open", async || sessions(&mut witness).await == 1).await;
    let end = soon("an answer", pool.acquire(PATIENCE)).await.expect_err("closed");
    assert!(matches!(end, DbError::Exhausted(_)), "{end}");
    out.release().await.expect("released");
    assert_eq!(pool.status().idle, 0);
    eventually("nothing is open", async || sessions(&mut witness).await == 0).await;
}

#[tokio::test]
async fn waiters_of_a_pool_that_is_closed_are_told_at_once() {
    let database = database().await;
    let pool = pool(&database, 1);
    let held = pool.acquire(PATIENCE).await.expect("a connection");
    let mut waiting = std::pin::pin!(pool.acquire(Duration::from_hours(1)));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    pool.close().await;
    soon("an answer", waiting).await.expect_err("closed");
    drop(held);
}

#[tokio::test]
async fn a_pool_that_shrinks_closes_what_is_idle_and_drains_what_is_busy() {
    let database = database().await;
    let pool = pool(&database, 4);
    let mut witness = connect(database.url()).await;
    let mut leases = Vec::new();
    for _ in 0..4 {
        leases.push(pool.acquire(PATIENCE).await.expect("a connection"));
    }
    let (busy, also_busy) = (leases.remove(0), leases.remove(0));
    for lease in leases {
        lease.release().await.expect("released");
    }
    pool.resize(1);
    eventually("idle connections are closed", async || sessions(&mut witness).await == 2).await;
    let end =
        soon("an answer", pool.acquire(Duration::from_millis(30))).await.expect_err("two are out, and one is allowed");
    assert!(matches!(end, DbError::Exhausted(_)), "{end}");
    busy.release().await.expect("released");
    eventually("one is left", async || sessions(&mut witness).await == 1).await;
    also_busy.release().await.expect("released");
    let again = soon("the place", pool.acquire(PATIENCE)).await.expect("a connection");
    pool.resize(0);
    again.release().await.expect("released");
    eventually("nothing is left", async || sessions(&mut witness).await == 0 && pool.status().open == 0).await;
}

#[tokio::test]
async fn a_pool_that_grows_serves_those_who_wait_in_order() {
    let database = database().await;
    let pool = pool(&database, 3);
    pool.resize(0);
    let (first, second) = (pool.acquire(PATIENCE), pool.acquire(PATIENCE));
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    assert_eq!(pool.status().waiting, 2);
    pool.resize(1);
    assert!(futures_util::poll!(second.as_mut()).is_pending(), "it came second");
    let held = soon("a connection", first).await.expect("a connection");
    assert!(futures_util::poll!(second.as_mut()).is_pending(), "there is one place");
    pool.resize(2);
    soon("a connection", second).await.expect("a connection").release().await.expect("released");
    held.release().await.expect("released");
    assert_eq!(pool.status(), PoolStatus { size: 2, open: 2, connected: 2, in_use: 0, idle: 2, waiting: 0 });
}

/// Polls a future so many times at most, each when it asked for it; true when it ended.
async fn polled(times: usize, future: impl Future<Output = ()>) -> bool {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            std::task::Poll::Ready(()) => std::task::Poll::Ready(true),
            std::task::Poll::Pending if left == 0 => std::task::Poll::Ready(false),
            std::task::Poll::Pending => std::task::Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_use_that_is_cancelled_at_any_poll_leaves_no_transaction_open_and_no_place_taken() {
    let database = database().await;
    let pool = pool(&database, 1);
    let mut witness = connect(database.url()).await;
    sqlx::query("CREATE TABLE notes (id int)").execute(&mut witness).await.expect("a table");
    let mut written = 0_i64;
    for times in 1.. {
        let using = async {
            let mut lease = pool.acquire(PATIENCE).await.expect("a connection");
            let mut tx = lease.begin().await.expect("a transaction");
            sqlx::query("SELECT 1").execute(&mut *tx).await.expect("a statement");
            let mut savepoint = tx.begin().await.expect("a savepoint");
            sqlx::query("SELECT count(*) FROM notes").fetch_one(&mut *savepoint).await.expect("a count");
            savepoint.rollback().await.expect("an end");
            sqlx::query("SELECT pg_sleep(0.001)").execute(&mut *tx).await.expect("a nap");
            tx.rollback().await.expect("an end");
            lease.release().await.expect("released");
        };
        let ended = soon("an end", Box::pin(polled(times, using))).await;
        // Outside a transaction of anybody: a note that is written is there.
        let mut lease = soon("the place", pool.acquire(PATIENCE)).await.expect("the place is free");
        sqlx::query("INSERT INTO notes VALUES (1)").execute(&mut *lease).await.expect("a note");
        lease.release().await.expect("released");
        written += 1;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM notes").fetch_one(&mut witness).await.expect("a count");
        assert_eq!(count, written, "cancelled after {times} polls");
        let PoolStatus { in_use, waiting, .. } = pool.status();
        assert_eq!((in_use, waiting), (0, 0), "cancelled after {times} polls");
        if ended {
            break;
        }
    }
}
