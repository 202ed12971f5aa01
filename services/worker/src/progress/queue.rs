//! What one partition sees of its queue over one channel, and what follows from it. The rules are in [`super`].

use lapin::Queue;
use time::OffsetDateTime;

use super::{Progress, Tick};

/// The looks at one queue since its channel was opened.
#[derive(Debug)]
pub(crate) struct QueueWatch {
    progress: Progress,
    partition: u16,
    prefetch: u64,
    /// Deliveries of this channel that were settled.
    settled: u64,
    pending: Option<Look>,
}

/// A look whose time may become the partition's mark.
#[derive(Debug)]
struct Look {
    tick: Tick,
    /// The latest tick when all had left the queue that was in it before `tick`; what the broker dead-lettered of it is in
    /// the queue of dead letters since.
    left_at: Option<Tick>,
    /// How many deliveries must be settled until all is decided that was in the queue.
    settled: u64,
    /// Nothing was ready at this look or a later one.
    emptied: bool,
}

/// What the broker said of the queue after a tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Depth {
    pub(crate) ready: u32,
    pub(crate) consumers: u32,
}

impl Depth {
    /// What a look without an answer shows.
    pub(crate) const UNKNOWN: Self = Self { ready: 0, consumers: 0 };
}

impl From<&Queue> for Depth {
    fn from(queue: &Queue) -> Self {
        Self { ready: queue.message_count(), consumers: queue.consumer_count() }
    }
}

impl QueueWatch {
    pub(crate) fn new(progress: Progress, partition: u16, prefetch: u16) -> Self {
        Self { progress, partition, prefetch: prefetch.into(), settled: 0, pending: None }
    }

    /// Counts deliveries that were acknowledged, and so are decided.
    pub(crate) fn settled(&mut self, deliveries: usize) {
        self.settled += u64::try_from(deliveries).unwrap_or_default();
    }

    /// Takes note of a look: begun after the tick, ended at the other one. `unsettled`: whether a delivery had arrived by its
    /// end that is not settled. Gives the time before which every message entered the queue that has left it by now, when
    /// that is known for the first time.
    pub(crate) fn looked(
        &mut self,
        (tick, ended): (Tick, Tick),
        depth: Depth,
        unsettled: bool,
    ) -> Option<OffsetDateTime> {
        if depth.consumers != 1 {
            self.pending = None;
            return None;
        }
        let mut left_before = None;
        if let Some(look) = &mut self.pending {
            if look.left_at.is_none() && ((look.emptied && !unsettled) || self.settled >= look.settled) {
                look.left_at = Some(ended);
                left_before = Some(look.tick.at);
            }
            look.emptied |= depth.ready == 0;
            if look.left_at.is_some_and(|left_at| self.progress.nothing_collected_since(left_at)) {
                self.progress.decided(self.partition, look.tick.at);
                self.pending = None;
            }
        }
        let settled = self.settled + u64::from(depth.ready) + self.prefetch;
        self.pending.get_or_insert(Look { tick, left_at: None, settled, emptied: depth.ready == 0 });
        left_before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use time::OffsetDateTime;
    use tokio::sync::watch;

    use super::*;

    const PREFETCH: u16 = 10;

    fn tick(number: u64) -> Tick {
        let at = OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(i64::try_from(number).expect("a small number"));
        Tick { number, at }
    }

    struct Looks {
        progress: Progress,
        queue: QueueWatch,
        number: u64,
    }

    impl Looks {
        fn new() -> Self {
            let (_, ticks) = watch::channel(None);
            let progress = Progress { ticks, seen: Arc::default() };
            Self { queue: QueueWatch::new(progress.clone(), 7, PREFETCH), progress, number: 0 }
        }

        /// One more look; gives the tick that became the mark.
        fn look(&mut self, ready: u32, consumers: u32, unsettled: bool) -> Option<u64> {
            self.number += 1;
            self.progress.nothing_collected(tick(self.number));
            self.look_uncollected(ready, consumers, unsettled)
        }

        fn look_uncollected(&mut self, ready: u32, consumers: u32, unsettled: bool) -> Option<u64> {
            let now = tick(self.number);
            self.queue.looked((now, now), Depth { ready, consumers }, unsettled);
            let at = self.progress.take().remove(&7)?;
            Some(u64::try_from(at.unix_timestamp()).expect("after the epoch"))
        }
    }

    #[test]
    fn a_queue_that_stays_empty_is_decided_through_the_look_before() {
        let mut looks = Looks::new();
        assert_eq!([(); 5].map(|()| looks.look(0, 1, false)), [None, None, Some(1), None, Some(3)]);
    }

    #[test]
    fn what_is_unsettled_or_waits_holds_the_mark() {
        let mut looks = Looks::new();
        assert_eq!(looks.look(3, 1, true), None);
        assert_eq!(looks.look(0, 1, true), None, "taken out of the queue, and not settled");
        assert_eq!(looks.look(0, 1, false), None, "the dead letters were looked at before");
        assert_eq!(looks.look(5, 1, false), Some(1), "what is ready now came later");
    }

    #[test]
    fn a_queue_that_is_never_empty_is_decided_by_the_number_of_settled_deliveries() {
        let mut looks = Looks::new();
        assert_eq!(looks.look(100, 1, true), None);
        looks.queue.settled(109);
        assert_eq!(looks.look(100, 1, true), None);
        looks.queue.settled(1);
        assert_eq!([(); 2].map(|()| looks.look(100, 1, true)), [None, Some(1)]);
    }

    #[test]
    fn another_consumer_may_hold_what_no_count_shows() {
        let mut looks = Looks::new();
        assert_eq!([(); 3].map(|()| looks.look(0, 2, false)), [None; 3]);
        assert_eq!(looks.look(0, 1, false), None);
        assert_eq!(looks.look(0, 2, false), None);
        assert_eq!([(); 3].map(|()| looks.look(0, 1, false)), [None, None, Some(6)]);
    }

    #[test]
    fn what_the_broker_dead_lettered_waits_too() {
        let mut looks = Looks::new();
        assert_eq!(looks.look(0, 1, false), None);
        for _ in 0..2 {
            looks.number += 1;
            assert_eq!(looks.look_uncollected(0, 1, false), None);
        }
        assert_eq!(looks.look(0, 1, false), Some(1));
    }

    #[test]
    fn dead_letters_that_were_collected_before_the_queue_was_decided_prove_nothing() {
        let mut looks = Looks::new();
        assert_eq!(looks.look(5_000, 1, false), None);
        assert_eq!(looks.look(5_000, 1, false), None);
        // They expired since.
        assert_eq!([(); 2].map(|()| looks.look(0, 1, false)), [None; 2]);
        looks.number += 1;
        assert_eq!(looks.look_uncollected(0, 1, false), None);
        assert_eq!(looks.look(0, 1, false), Some(1));
    }

    #[test]
    fn what_entered_an_empty_queue_came_after_the_first_of_two_looks() {
        let mut looks = Looks::new();
        let mut left_before = |ready, unsettled| {
            looks.number += 1;
            let (now, depth) = (tick(looks.number), Depth { ready, consumers: 1 });
            looks.queue.looked((now, now), depth, unsettled)
        };
        assert_eq!(left_before(1, false), None);
        assert_eq!(left_before(0, true), None);
        assert_eq!(left_before(0, false), Some(tick(1).at));
        assert_eq!(left_before(0, false), None, "known already");
    }
}
