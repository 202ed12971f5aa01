//! Reception of the workers' replies: the queue of this instance, and what is believed of what comes from it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use common::broker::{ChannelError, Link, LinkState, open_channel};
use common::command::{CommandKeys, CommandReply, REPLY_TYPE, SIGNATURE_HEADER};
use common::health::CheckFailure;
use common::redaction;
use common::shutdown::{Phase, Shutdown, TaskResult, chain};
use common::telemetry::meter;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Connection, Consumer};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Counter;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use super::Waiters;
use crate::commands::BEHIND;

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The name in the readiness report.
const HINTS: &str = "reply hints";
/// A broker that has just started can leave a request unanswered for good.
const OPEN_DEADLINE: Duration = Duration::from_secs(2);
/// Between two lines about replies that are not believed.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The replies of all workers, over one connection of the link after the other.
pub(super) struct ReplyReceiver {
    pub(super) link: Link,
    pub(super) waiters: Waiters,
    /// The keys that replies must be signed with.
    pub(super) keys: Arc<OnceLock<CommandKeys>>,
    /// The queue, while there is one.
    pub(super) reply_to: watch::Sender<Option<ShortString>>,
    pub(super) shutdown: Shutdown,
}

impl ReplyReceiver {
    /// Receives until the process closes.
    pub(super) async fn run(mut self) -> TaskResult {
        let mut reader = ReplyReader::new(Arc::clone(&self.keys));
        let closing = self.shutdown.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            let opened = tokio::select! {
                () = closing.reached(Phase::Closing) => return Ok(()),
                opened = self.receive(&mut reader) => opened,
            };
            if opened {
                pause = FIRST_PAUSE;
            }
            let jittered = pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
            tokio::select! {
                () = closing.reached(Phase::Closing) => return Ok(()),
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Receives over the next connection until it ends; false if no queue could be opened on it.
    async fn receive(&mut self, reader: &mut ReplyReader) -> bool {
        // The sender lives as long as the process: the wait cannot fail.
        let state = self.link.wait_for(|state| matches!(state, LinkState::Up { .. })).await.map(|state| state.clone());
        let Ok(LinkState::Up { connection, reports, .. }) = state else { return false };
        let exchange = reports.topology().replies_exchange();
        // Exclusive to this connection and gone with it; another name each time, because the broker may take a while to
        // notice the end of the last connection.
        let queue = ShortString::from(format!("{exchange}.{}", Uuid::now_v7()));
        let opening = open(&connection, exchange.as_str().into(), queue.clone());
        let problem = match tokio::time::timeout(OPEN_DEADLINE, opening).await {
            Ok(Ok(mut consumer)) => {
                reports.auxiliary(HINTS, None);
                self.reply_to.send_replace(Some(queue.clone()));
                while let Some(Ok(delivery)) = consumer.next().await {
                    self.waiters.reply(reader.read(&queue, &delivery));
                }
                self.reply_to.send_replace(None);
                return true;
            }
            Ok(Err(error)) => CheckFailure::logged(
                "the broker opens no queue for them",
                chain(&error).replace(queue.as_str(), &exchange),
            ),
            Err(_) => format!("the broker opened no queue within {OPEN_DEADLINE:?}").into(),
        };
        // One line for each problem, and not for each attempt.
        if reports.auxiliary(HINTS, Some(problem.clone())) {
            warn!(reason = %problem, "no reply hints: clients that wait for an outcome learn it later");
        }
        false
    }
}

/// Opens the queue of this instance. Its name, and that of the exchange in front of it, begin as all names of the deployment
/// do, so that rights which are limited to these are enough.
async fn open(connection: &Connection, exchange: ShortString, queue: ShortString) -> Result<Consumer, ChannelError> {
    let channel = open_channel(connection).await?;
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.clone(), options, FieldTable::default()).await?;
    let (key, binding) = (queue.clone(), QueueBindOptions::default());
    channel.queue_bind(queue.clone(), exchange, key, binding, FieldTable::default()).await?;
    // Replies need no acknowledgement: the row is the truth.
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    Ok(channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?)
}

/// Reads messages, and leaves of a reply that cannot be believed only the hint.
struct ReplyReader {
    keys: Arc<OnceLock<CommandKeys>>,
    replies: Counter<u64>,
    logged: Option<Instant>,
}

impl ReplyReader {
    fn new(keys: Arc<OnceLock<CommandKeys>>) -> Self {
        let replies = meter()
            .u64_counter("rollcall.api.replies")
            .with_description(
                "Replies of workers: an outcome, a hint to read it, an outcome without a valid signature (unsigned), \
                 or a message that cannot be read (unreadable)",
            )
            .build();
        Self { keys, replies, logged: None }
    }

    fn read(&mut self, queue: &ShortString, delivery: &Delivery) -> Vec<CommandReply> {
        let mut replies = match CommandReply::decode_all(&delivery.data) {
            Ok(replies) => replies,
            Err(error) => {
                self.replies.add(1, &[KeyValue::new("kind", "unreadable")]);
                self.log(&redaction::json(&error));
                return Vec::new();
            }
        };
        let verified = match self.keys.get() {
            Some(keys) => keys.verify(signature(delivery), queue.as_str(), REPLY_TYPE, &delivery.data).is_ok(),
            None => true,
        };
        let (mut outcomes, mut unsigned) = (0, 0);
        for reply in &mut replies {
            // The row names the command that another one waits behind.
            reply.outcome.take_if(|outcome| outcome.reason.as_deref() == Some(BEHIND));
            if verified {
                outcomes += u64::from(reply.outcome.is_some());
            } else {
                unsigned += u64::from(reply.outcome.take().is_some());
            }
        }
        let hints = replies.len() as u64 - outcomes - unsigned;
        for (kind, count) in [("outcome", outcomes), ("hint", hints), ("unsigned", unsigned)] {
            if count > 0 {
                self.replies.add(count, &[KeyValue::new("kind", kind)]);
            }
        }
        if unsigned > 0 {
            self.log("it is not signed with the deployment's COMMAND_KEY");
        }
        replies
    }

    /// Any number can come; a line a minute says enough.
    fn log(&mut self, reason: &str) {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            self.logged = Some(Instant::now());
            warn!(reason, "a reply is not believed; the clients that wait for it are answered from the database");
        }
    }
}

fn signature(delivery: &Delivery) -> Option<&str> {
    match delivery.properties.headers().as_ref()?.inner().get(SIGNATURE_HEADER)? {
        AMQPValue::LongString(value) => std::str::from_utf8(value.as_bytes()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use common::command::{CommandId, CommandOutcome, OutcomeStatus};
    use lapin::BasicProperties;
    use time::OffsetDateTime;

    use super::*;

    const QUEUE: &str = "replies.1";

    fn key(digit: &str) -> CommandKeys {
        CommandKeys::parse(&digit.repeat(64)).expect("a key")
    }

    fn body(reason: Option<&str>) -> Vec<u8> {
        let outcome = CommandOutcome {
            status: OutcomeStatus::Parked,
            reason: reason.map(str::to_owned),
            applied_at: OffsetDateTime::UNIX_EPOCH,
            user_version: None,
            user: None,
        };
        CommandReply::encode_all(&[CommandReply { id: CommandId::mint(), outcome: Some(outcome) }]).remove(0)
    }

    /// A message to this queue, signed for another or for it.
    fn delivery(body: &[u8], signature: Option<(&CommandKeys, &str)>) -> Delivery {
        let mut headers = FieldTable::default();
        if let Some(signature) = signature.and_then(|(keys, queue)| keys.sign(queue, REPLY_TYPE, body)) {
            headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(signature.into()));
        }
        let mut delivery = Delivery::mock(1, "replies".into(), QUEUE.into(), false, body.to_vec());
        delivery.properties = BasicProperties::default().with_headers(headers);
        delivery
    }

    /// For each reply, true if it still carries its outcome.
    fn read(keys: Option<&CommandKeys>, delivery: &Delivery) -> Vec<bool> {
        let known = Arc::new(keys.map_or_else(OnceLock::new, |keys| OnceLock::from(keys.clone())));
        let replies = ReplyReader::new(known).read(&QUEUE.into(), delivery);
        replies.iter().map(|reply| reply.outcome.is_some()).collect()
    }

    #[test]
    fn with_a_key_only_a_signed_reply_is_more_than_a_hint() {
        let (ours, others, body) = (key("a"), key("b"), body(Some("22P05")));
        for (reason, signature, believed) in [
            ("unsigned", None, false),
            ("another key", Some((&others, QUEUE)), false),
            ("signed for another instance", Some((&ours, "replies.2")), false),
            ("signed", Some((&ours, QUEUE)), true),
        ] {
            assert_eq!(read(Some(&ours), &delivery(&body, signature)), [believed], "{reason}");
        }
        let unsigned = delivery(&body, None);
        assert_eq!(read(None, &unsigned), [true]);
        assert_eq!(read(Some(&CommandKeys::default()), &unsigned), [true]);
    }

    #[test]
    fn what_only_the_database_knows_is_read_there() {
        assert_eq!(read(None, &delivery(&body(Some(BEHIND)), None)), [false]);
        assert_eq!(read(None, &delivery(b"{}", None)), [false; 0]);
    }
}
