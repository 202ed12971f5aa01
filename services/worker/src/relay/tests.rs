//! Order and completeness under any interleaving of commits, lost answers, replays, changes of the owner, reads, marks and the
//! broker's answers. The servers here are a model; `services/ops/tests/it/events.rs` has the real ones.

mod world;

use std::time::Duration;

use proptest::prelude::*;

use self::world::{CAPACITY, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_users_events_are_sent_in_order_and_none_is_left(steps in prop::collection::vec(any::<[u8; 4]>(), 0..400)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let mut world = World::new();
            for step in steps {
                let pause = if step[3] < 250 { u64::from(step[3]) / 4 } else { 2000 };
                tokio::time::advance(Duration::from_millis(pause)).await;
                world.step(step)?;
            }
            world.finish().await
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_done_after_its_answer_was_lost_is_published_first() {
    let mut world = World::new();
    world.complete().expect("a read");
    assert!(world.feed.partitions_behind().is_empty());
    world.begin(0, 1, 1);
    let transaction = world.batches[&0].transaction;
    world.answer(0, true);
    world.complete().expect("a read that finds nothing");
    assert_eq!(world.feed.partitions_behind().len(), 1, "it can still commit");
    world.end_transaction(transaction, true);
    world.begin(0, 1, 1);
    world.end_transaction(transaction + 1, true);
    world.answer(0, false);
    world.relay(10).expect("order");
    assert!(world.sent.is_empty());
    world.finish().await.expect("order");
}

#[tokio::test(start_paused = true)]
async fn what_the_memory_does_not_hold_is_read_from_the_table() {
    let mut world = World::new();
    world.complete().expect("a read");
    for times in [1, 2, 3] {
        world.begin(0, u8::MAX, times);
        world.end_transaction(world.next_transaction - 1, true);
        world.answer(0, false);
    }
    assert!(world.rows.len() > CAPACITY);
    assert_eq!(world.feed.partitions_behind().len(), 1);
    world.finish().await.expect("order");
}
