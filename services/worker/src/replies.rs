//! Replies to the API instances whose clients wait: sent after the commit, those of one instance together. The row is
//! the truth, so a reply may be lost: the client's instance then reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::broker::{Link, LinkState};
use common::command::{
    CommandId, CommandKeys, CommandOutcome, CommandReply, OutcomeStatus, REPLY_TYPE, SIGNATURE_HEADER,
};
use common::shutdown::{Phase, Shutdown, TaskResult, Tier};
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::apply::Committed;
use crate::incoming::IncomingMessage;
use crate::users::Outcome;

/// Replies that wait for the channel; more are dropped, and the waiting client's instance finds the row by itself.
const QUEUE_LENGTH: usize = 10_000;
/// Replies that are taken from there at once.
const MOST_AT_ONCE: usize = 1_000;
/// A broker that has just started, or that blocks the connection, can leave a request unanswered.
const DEADLINE: Duration = Duration::from_secs(2);
/// How often a channel is opened at most: where the broker refuses the replies, every one of them closes it.
const OPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Hands replies to the task that owns their channel. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Replies {
    queue: mpsc::Sender<QueuedReply>,
}

/// What a transaction made of a command.
#[derive(Debug)]
struct AppliedOutcome {
    outcome: Outcome,
    /// The time of the transaction.
    applied_at: OffsetDateTime,
    /// The user after a change, as the API represents it.
    user: Option<Arc<str>>,
}

#[derive(Debug)]
struct QueuedReply {
    reply_to: ShortString,
    id: CommandId,
    applied: Option<AppliedOutcome>,
}

impl Replies {
    /// Starts the owning task; it ends when the process closes. With keys it signs the replies.
    pub(crate) fn start(shutdown: &Shutdown, link: Link, keys: CommandKeys) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_LENGTH);
        let sender = ReplySender { link, keys, channel: None, opened: None };
        shutdown.supervise("replies", Tier::Back, send_replies(shutdown.clone(), sender, receiver));
        Self { queue }
    }

    /// Replies what became of these commands; after the commit only. The row of one that was decided before says how.
    pub(crate) fn send(&self, messages: &[IncomingMessage], committed: &Committed) {
        for message in messages {
            let (Some(reply_to), Some(id)) = (message.reply_to.clone(), message.id()) else { continue };
            let applied = committed.outcomes.get(&id).map(|outcome| AppliedOutcome {
                outcome: outcome.clone(),
                applied_at: committed.applied_at,
                user: committed.users.get(&id).cloned(),
            });
            let _ = self.queue.try_send(QueuedReply { reply_to, id, applied });
        }
    }
}

impl AppliedOutcome {
    /// The outcome as its row has it; none of a command that waits behind another, which only the database can name.
    fn reply(self) -> Option<CommandOutcome> {
        let (status, reason, user_version) = match self.outcome {
            Outcome::Succeeded(version) => (OutcomeStatus::Succeeded, None, version),
            Outcome::Rejected(rejection) => (OutcomeStatus::Rejected, Some(rejection.as_str().to_owned()), None),
            Outcome::Parked(code) => (OutcomeStatus::Parked, Some(code), None),
            Outcome::Behind => return None,
        };
        let user = self.user.and_then(|user| RawValue::from_string(String::from(&*user)).ok());
        Some(CommandOutcome { status, reason, applied_at: self.applied_at, user_version, user })
    }
}

/// The channel, and what it takes to open it again.
struct ReplySender {
    link: Link,
    keys: CommandKeys,
    /// With the exchange that routes replies to the instance that waits.
    channel: Option<(Channel, ShortString)>,
    opened: Option<Instant>,
}

async fn send_replies(
    shutdown: Shutdown,
    mut sender: ReplySender,
    mut queue: mpsc::Receiver<QueuedReply>,
) -> TaskResult {
    loop {
        let mut waiting = Vec::new();
        tokio::select! {
            // Those of the last batch still leave.
            biased;
            1.. = queue.recv_many(&mut waiting, MOST_AT_ONCE) => {}
            () = shutdown.reached(Phase::Closing) => return Ok(()),
        }
        for (reply_to, replies) in by_instance(waiting) {
            for body in CommandReply::encode_all(&replies) {
                sender.send(&reply_to, &body).await;
            }
        }
    }
}

fn by_instance(queued: Vec<QueuedReply>) -> HashMap<ShortString, Vec<CommandReply>> {
    let mut groups: HashMap<_, Vec<_>> = HashMap::new();
    for QueuedReply { reply_to, id, applied } in queued {
        let outcome = applied.and_then(AppliedOutcome::reply);
        groups.entry(reply_to).or_default().push(CommandReply { id, outcome });
    }
    groups
}

impl ReplySender {
    async fn send(&mut self, reply_to: &ShortString, body: &[u8]) {
        if !self.channel.as_ref().is_some_and(|(channel, _)| channel.status().connected()) {
            if self.opened.is_some_and(|at| at.elapsed() < OPEN_INTERVAL) {
                return;
            }
            self.opened = Some(Instant::now());
            self.channel = open(&self.link).await;
        }
        let Some((channel, exchange)) = &self.channel else { return };
        let mut properties =
            BasicProperties::default().with_content_type("application/json".into()).with_type(REPLY_TYPE.into());
        if let Some(signature) = self.keys.sign(reply_to.as_str(), REPLY_TYPE, body) {
            let mut headers = FieldTable::default();
            headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(signature.into()));
            properties = properties.with_headers(headers);
        }
        // Neither mandatory nor confirmed, because the instance that waited may be gone.
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange.clone(), reply_to.clone(), options, body, properties);
        if !matches!(tokio::time::timeout(DEADLINE, sent).await, Ok(Ok(_))) {
            self.channel = None;
        }
    }
}

async fn open(link: &Link) -> Option<(Channel, ShortString)> {
    let LinkState::Up { connection, reports, .. } = link.borrow().clone() else { return None };
    let channel = tokio::time::timeout(DEADLINE, connection.create_channel()).await.ok()?.ok()?;
    Some((channel, reports.topology().replies_exchange().into()))
}

#[cfg(test)]
mod tests {
    use common::command::Rejection;
    use time::macros::datetime;

    use super::*;

    fn queued(reply_to: &str, outcome: Outcome, user: Option<&str>) -> QueuedReply {
        let applied_at = datetime!(2026-11-05 12:34:56.789 UTC);
        let applied = AppliedOutcome { outcome, applied_at, user: user.map(Arc::from) };
        QueuedReply { reply_to: reply_to.into(), id: CommandId::mint(), applied: Some(applied) }
    }

    #[test]
    fn replies_of_one_instance_go_together_in_order() {
        let queue = vec![
            queued("one", Outcome::Succeeded(Some(1)), Some(r#"{"version":1}"#)),
            queued("two", Outcome::Succeeded(None), None),
            queued("one", Outcome::Rejected(Rejection::EmailTaken), None),
            queued("one", Outcome::Parked("22P05".to_owned()), None),
            queued("one", Outcome::Behind, None),
            queued("one", Outcome::Succeeded(Some(2)), Some("no JSON")),
        ];
        let ids: Vec<CommandId> =
            queue.iter().filter(|reply| reply.reply_to.as_str() == "one").map(|reply| reply.id).collect();
        let groups = by_instance(queue);
        let one = &groups[&ShortString::from("one")];
        assert_eq!(one.iter().map(|reply| reply.id).collect::<Vec<_>>(), ids);
        let said: Vec<_> = one
            .iter()
            .map(|reply| {
                let outcome = reply.outcome.as_ref()?;
                let user = outcome.user.as_ref().map(|user| user.get());
                Some((outcome.status, outcome.reason.as_deref(), outcome.user_version, user))
            })
            .collect();
        let expected = [
            Some((OutcomeStatus::Succeeded, None, Some(1), Some(r#"{"version":1}"#))),
            Some((OutcomeStatus::Rejected, Some("email-taken"), None, None)),
            Some((OutcomeStatus::Parked, Some("22P05"), None, None)),
            None,
            Some((OutcomeStatus::Succeeded, None, Some(2), None)),
        ];
        assert_eq!(said, expected);
        assert_eq!(groups.len(), 2);
    }
}
