//! Gaps of the topology that cost a part of the work only, and so leave the connection up: the queue of a partition, and the
//! exchange of replies. They are looked for on each new connection, and again until they are there.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ExchangeKind};

use super::{BrokerUser, LinkReports, missing};

const INTERVAL: Duration = Duration::from_secs(1);
/// For one answer: a broker that has just started can leave a request unanswered for good.
const DEADLINE: Duration = Duration::from_secs(2);
/// The name in the readiness report.
const REPLIES: &str = "replies";

/// Notes that something does not exist, if it is one of these.
pub(super) fn note(reports: &LinkReports, name: &str) {
    let topology = reports.topology();
    if name == topology.replies_exchange() {
        let line =
            format!("the exchange {name:?} does not exist, so there are no replies; run `rollcall broker apply`");
        reports.auxiliary(REPLIES, Some(line.into()));
    } else if let Some(partition) = topology.partition_of_queue(name) {
        reports.unroutable(partition);
    }
}

/// Looks for gaps until the connection ends. A worker finds the queues that it lacks when it consumes them.
pub(super) async fn watch(connection: &Connection, reports: &LinkReports, user: BrokerUser) {
    let topology = reports.topology();
    let mut queues: Vec<u16> = if user == BrokerUser::Api { (0..topology.partitions()).collect() } else { Vec::new() };
    let mut replies = true;
    loop {
        let mut look = Look { connection, channel: None };
        if replies {
            let exchange = topology.replies_exchange();
            match look.exchange(&exchange).await {
                Some(true) => drop(reports.auxiliary(REPLIES, None)),
                Some(false) => note(reports, &exchange),
                None => {}
            }
        }
        for partition in queues {
            match look.queue(&topology.partition_queue(partition)).await {
                Some(true) => reports.queue_exists(partition),
                Some(false) => reports.unroutable(partition),
                None => {}
            }
        }
        look.end().await;
        tokio::time::sleep(INTERVAL).await;
        queues = reports.unroutable_partitions();
        replies = reports.shows(REPLIES);
    }
}

/// Questions whether something exists; without an answer it is not known.
struct Look<'a> {
    connection: &'a Connection,
    /// Ends with the question for something that does not exist.
    channel: Option<Channel>,
}

impl Look<'_> {
    async fn exchange(&mut self, name: &str) -> Option<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let asking = async {
            let channel = self.channel().await?;
            channel.exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default()).await
        };
        exists(tokio::time::timeout(DEADLINE, asking).await.ok()?)
    }

    async fn queue(&mut self, name: &str) -> Option<bool> {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asking =
            async { self.channel().await?.queue_declare(name.into(), options, FieldTable::default()).await.map(drop) };
        exists(tokio::time::timeout(DEADLINE, asking).await.ok()?)
    }

    async fn channel(&mut self) -> lapin::Result<Channel> {
        match self.channel.take().filter(|open| open.status().connected()) {
            Some(open) => Ok(self.channel.insert(open).clone()),
            None => Ok(self.channel.insert(self.connection.create_channel().await?).clone()),
        }
    }

    /// Best effort: the channel ends with the connection at the latest.
    async fn end(self) {
        if let Some(open) = self.channel.filter(|open| open.status().connected()) {
            let _ = tokio::time::timeout(DEADLINE, open.close(200, "looked".into())).await;
        }
    }
}

fn exists(answer: lapin::Result<()>) -> Option<bool> {
    match answer {
        Ok(()) => Some(true),
        Err(error) => missing(&error).map(|_| false),
    }
}
