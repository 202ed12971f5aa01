//! Transactions over several partitions.

use common::command::{Envelope, UserId};
use rollcall_worker::apply::{Fence, Share, Transactions};
use rollcall_worker::blame::ApplyError;
use rollcall_worker::incoming::IncomingMessage;
use sqlx::Connection;

use crate::support::{Fixture, TRIGGER, WINDOW, create, done, messages, soon, update};

const PARTITIONS: u16 = 4;

struct Lane {
    fixture: Fixture,
    transactions: Transactions,
}

impl Lane {
    /// A worker that owns four partitions.
    async fn start() -> Self {
        let mut fixture = Fixture::start().await;
        fixture.partitions = PARTITIONS;
        let others = "INSERT INTO partitions SELECT n, 1, '00000000-0000-0000-0000-000000000000' FROM generate_series(1, 3) AS n";
        fixture.database.execute(others).await;
        let transactions = Transactions::new(fixture.pool.clone(), fixture.guard.clone(), WINDOW, PARTITIONS);
        Self { fixture, transactions }
    }

    fn fence(&self, partition: u16) -> Fence {
        Fence { partition, ..self.fixture.fence }
    }
}

/// A user of the partition, with the command that creates it.
fn user_of(partition: u16) -> (UserId, Envelope) {
    let user =
        std::iter::repeat_with(UserId::mint).find(|user| user.partition(PARTITIONS) == partition).expect("a user");
    (user, create(user, &format!("{user}@example.org"), "User"))
}

fn share(fence: Fence, messages: &[IncomingMessage]) -> Share<'_> {
    Share { fence, published_after: None, messages }
}

#[tokio::test]
async fn one_transaction_applies_the_commands_of_several_partitions() {
    let mut lane = Lane::start().await;
    let users: Vec<(UserId, Envelope)> = (0..PARTITIONS).map(user_of).collect();
    let batches: Vec<Vec<IncomingMessage>> =
        users.iter().map(|(user, create)| messages(&[create.clone(), update(*user, None, Some("Renamed"))])).collect();
    let shares: Vec<Share<'_>> =
        (0..PARTITIONS).zip(&batches).map(|(number, batch)| share(lane.fence(number), batch)).collect();
    let committed = soon("a commit", lane.transactions.together(&shares)).await.expect("a commit");
    assert_eq!(committed.outcomes.len(), 2 * users.len());
    assert_eq!(committed.partitions.len(), users.len());
    for (user, create) in &users {
        assert_eq!(committed.outcomes[&create.id], done(1));
        let row = lane.fixture.database.user(*user).await.expect("a user");
        assert!(row.ends_with("Renamed active v2 f"), "{row}");
    }
    let own = format!("events WHERE partition = {}", users[3].0.partition(PARTITIONS));
    assert_eq!(lane.fixture.database.count(&own).await, 2, "each event belongs to the partition of its command");
    let transactions = "(SELECT DISTINCT xmin FROM commands) AS transactions";
    assert_eq!(lane.fixture.database.count(transactions).await, 1);
    lane.fixture.stop().await;
}

#[tokio::test]
async fn a_partition_that_is_lost_leaves_the_transaction_and_the_others_go_on() {
    let mut lane = Lane::start().await;
    let ((kept, of_kept), (lost, of_lost)) = (user_of(0), user_of(1));
    let (first, second) = (messages(std::slice::from_ref(&of_kept)), messages(std::slice::from_ref(&of_lost)));
    lane.fixture.database.execute("UPDATE partitions SET epoch = 2 WHERE number = 1").await;
    let shares = [share(lane.fence(0), &first), share(lane.fence(1), &second)];
    let committed = soon("a commit", lane.transactions.together(&shares)).await.expect("a commit");
    assert_eq!(committed.partitions.iter().collect::<Vec<_>>(), [&0]);
    assert_eq!(committed.outcomes.keys().collect::<Vec<_>>(), [&of_kept.id]);
    assert!(lane.fixture.database.user(kept).await.is_some());
    assert_eq!(lane.fixture.database.user(lost).await, None);
    assert_eq!(lane.fixture.database.command(of_lost.id).await, None);
    let fenced = lane.transactions.together(&shares[1..]).await.expect_err("no partition is owned");
    assert!(matches!(fenced, ApplyError::Fenced), "{fenced:?}");
    lane.fixture.stop().await;
}

#[tokio::test]
async fn a_transaction_that_fails_applies_nothing_of_any_partition() {
    let mut lane = Lane::start().await;
    lane.fixture.database.execute(TRIGGER).await;
    let ((innocent, of_innocent), (guilty, of_guilty)) = (user_of(0), user_of(1));
    let first = messages(&[of_innocent]);
    let second = messages(&[of_guilty, update(guilty, None, Some("Poison"))]);
    let shares = [share(lane.fence(0), &first), share(lane.fence(1), &second)];
    let failure = soon("a failure", lane.transactions.together(&shares)).await.expect_err("a poisoned name");
    assert!(matches!(failure, ApplyError::Command { .. }), "{failure:?}");
    assert_eq!(lane.fixture.database.user(innocent).await, None);
    assert_eq!(lane.fixture.database.count("commands").await, 0);
    lane.fixture.stop().await;
}

#[tokio::test]
async fn a_row_that_is_locked_holds_a_shared_transaction_up_for_a_moment_only() {
    let mut lane = Lane::start().await;
    let ((ada, of_ada), (_, of_bob)) = (user_of(0), user_of(1));
    let mut locking = common::db::connect(&lane.fixture.database.settings(1), "operator").await.expect("a connection");
    let created = messages(&[of_ada]);
    let alone = [share(lane.fence(0), &created)];
    soon("a commit", lane.transactions.together(&alone)).await.expect("a commit");
    let mut tx = locking.begin().await.expect("a transaction");
    let lock = sqlx::query("SELECT FROM users WHERE id = $1 FOR UPDATE").bind(uuid::Uuid::from(ada));
    lock.execute(&mut *tx).await.expect("a lock");
    let (first, second) = (messages(&[update(ada, None, Some("Ada"))]), messages(&[of_bob]));
    let shares = [share(lane.fence(0), &first), share(lane.fence(1), &second)];
    let contention = soon("the lock's timeout", lane.transactions.together(&shares)).await.expect_err("a lock");
    assert!(matches!(contention, ApplyError::Contention(_)), "{contention:?}");
    // The others go on beside the lock.
    soon("a commit", lane.transactions.together(&shares[1..])).await.expect("a commit");
    tx.rollback().await.expect("an end");
    lane.fixture.stop().await;
}
