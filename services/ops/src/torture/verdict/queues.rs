//! What the broker holds in the end.

use common::command::DEFAULT_PARTITIONS;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use super::{Broken, Verdict};

/// The partitions' queues.
pub(super) struct Queues {
    // The channel lives as long as its connection.
    _broker: Connection,
    channel: Channel,
}

/// One of them.
pub(super) struct Queue {
    partition: u16,
    consumers: u32,
    /// Messages that no consumer was given yet.
    pub(super) waiting: u32,
}

impl Queues {
    pub(super) async fn open(url: &str) -> lapin::Result<Self> {
        let broker = Connection::connect(url, ConnectionProperties::default()).await?;
        Ok(Self { channel: broker.create_channel().await?, _broker: broker })
    }

    pub(super) async fn read(&self) -> lapin::Result<Vec<Queue>> {
        let mut queues = Vec::with_capacity(DEFAULT_PARTITIONS.into());
        for partition in 0..DEFAULT_PARTITIONS {
            // Passive: only asks.
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let name = format!("commands.{partition}");
            let asked = self.channel.queue_declare(name.into(), options, FieldTable::default()).await?;
            queues.push(Queue { partition, consumers: asked.consumer_count(), waiting: asked.message_count() });
        }
        Ok(queues)
    }
}

/// Every partition is consumed, and nothing waits in any.
pub(super) fn judge(verdict: &mut Verdict, queues: &[Queue]) {
    for Queue { partition, consumers, waiting } in queues {
        if *consumers == 0 {
            verdict.found(Broken::Stuck, format!("partition {partition} is not consumed"));
        }
        if *waiting > 0 {
            verdict.found(Broken::Stuck, format!("{waiting} messages wait in partition {partition}"));
            verdict.waiting.insert(*partition);
        }
    }
}
