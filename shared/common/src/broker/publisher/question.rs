//! What a refusal means: the broker is asked whether messages wait in the queue.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::Request;
use crate::broker::LinkReports;
use crate::broker::reports::Cause;

/// For all queues that refused in one batch.
const DEADLINE: Duration = Duration::from_millis(500);

/// The partitions that messages were published to, with their queues.
pub(super) fn partitions<'r>(
    reports: &LinkReports,
    requests: impl Iterator<Item = &'r Request>,
) -> BTreeMap<u16, String> {
    let of =
        |request: &Request| reports.topology().partition_of(&request.message.exchange, &request.message.routing_key);
    requests.filter_map(of).collect()
}

/// Asks the broker how many messages wait in the queues that refused; without an answer they are not taken for full.
pub(super) async fn ask(
    channel: &Channel,
    reports: &LinkReports,
    refused: &BTreeMap<u16, String>,
) -> BTreeMap<u16, Cause> {
    let mut causes: BTreeMap<u16, Cause> = refused.keys().map(|partition| (*partition, Cause::Refused)).collect();
    let asking = async {
        for (partition, queue) in refused {
            let cause = if let Some(known) = reports.refused_lately(*partition) {
                known
            } else {
                // Passive: only asks.
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                let asked = channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await;
                if asked.is_ok_and(|queue| queue.message_count() > 0) { Cause::Full } else { Cause::Refused }
            };
            causes.insert(*partition, cause);
        }
    };
    let _ = tokio::time::timeout(DEADLINE, asking).await;
    causes
}
