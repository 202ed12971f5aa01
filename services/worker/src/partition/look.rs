//! Questions to the queue beside its deliveries.

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::{Interrupted, OPEN_DEADLINE, Partition};
use crate::progress::{Depth, QueueWatch, Tick};

impl Partition {
    /// Looks at the queue after a tick; gives the delivery that had arrived by then, if there was one.
    pub(super) async fn look(
        &mut self,
        channel: &Channel,
        consumer: &mut Consumer,
        queue: &mut QueueWatch,
        tick: Tick,
    ) -> Result<Option<Delivery>, Interrupted> {
        let depth = match self.depth(channel).await {
            // A broker that is busy: no reason to stop consuming.
            Err(Interrupted::OpenDeadline) => Depth::UNKNOWN,
            depth => depth?,
        };
        let ended = self.progress.latest().unwrap_or(tick);
        let delivery = match consumer.next().now_or_never() {
            Some(delivery) => Some(delivery.ok_or(Interrupted::ConsumerEnded)??),
            None => None,
        };
        if let Some(at) = queue.looked((tick, ended), depth, delivery.is_some()) {
            self.applier.published_after(at);
        }
        Ok(delivery)
    }

    /// Asks the queue, after a while without a delivery, whether there really is nothing.
    pub(super) async fn look_for_waiting(&self, channel: &Channel) -> Result<(), Interrupted> {
        match self.depth(channel).await?.ready {
            0 => Ok(()),
            waiting => Err(Interrupted::Stalled(waiting)),
        }
    }

    /// Counts what is ready, and not what was delivered to a consumer.
    async fn depth(&self, channel: &Channel) -> Result<Depth, Interrupted> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.topology.partition_queue(self.number);
        let asking = channel.queue_declare(queue.into(), options, FieldTable::default());
        let asked = tokio::time::timeout(OPEN_DEADLINE, asking).await.map_err(|_| Interrupted::OpenDeadline)??;
        Ok(Depth::from(&asked))
    }
}
