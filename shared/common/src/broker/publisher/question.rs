//! What a refusal means: the broker is asked whether messages wait in the queue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::Request;
use crate::broker::LinkReports;
use crate::broker::reports::Cause;

/// For all queues that refused in one batch.
const DEADLINE: Duration = Duration::from_millis(500);

/// The partitions that messages were published to.
pub(super) fn partitions<'r>(reports: &LinkReports, requests: impl Iterator<Item = &'r Request>) -> BTreeSet<u16> {
    let of =
        |request: &Request| reports.topology().partition_of(&request.message.exchange, &request.message.routing_key);
    requests.filter_map(of).collect()
}

/// Asks the broker how many messages wait in the queues that refused; without an answer they are not taken for full.
pub(super) async fn ask(channel: &Channel, reports: &LinkReports, refused: &BTreeSet<u16>) -> BTreeMap<u16, Cause> {
    let mut causes: BTreeMap<u16, Cause> = refused.iter().map(|partition| (*partition, Cause::Refused)).collect();
    let asking = async {
        for partition in refused {
            let cause = if let Some(known) = reports.refused_lately(*partition) {
                known
            } else {
                // Passive: only asks.
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let queue = reports.topology().partition_queue(*partition);
                let asked = channel.queue_declare(queue.into(), options, FieldTable::default()).await;
                if asked.is_ok_and(|queue| queue.message_count() > 0) { Cause::Full } else { Cause::Refused }
            };
            causes.insert(*partition, cause);
        }
    };
    let _ = tokio::time::timeout(DEADLINE, asking).await;
    causes
}
