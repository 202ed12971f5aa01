//! Reply hints: "this command is decided, look now". The row is the truth, so a hint may be lost.

use std::time::Duration;

use common::broker::{Link, LinkState};
use common::command::CommandId;
use common::shutdown::{Phase, Shutdown, TaskResult, Tier};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Hints that wait for the channel; more are dropped, and the waiting client finds the row by itself.
const QUEUE_LENGTH: usize = 10_000;
/// A broker that has just started, or that blocks the connection, can leave a request unanswered.
const DEADLINE: Duration = Duration::from_secs(2);
/// How often a channel is opened at most: where the broker refuses the hints, every one of them closes it.
const OPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Hands hints to the task that owns their channel. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Replies {
    hints: mpsc::Sender<Hint>,
}

#[derive(Debug)]
struct Hint {
    reply_to: ShortString,
    id: CommandId,
}

impl Replies {
    /// Starts the owning task; it ends when the process closes.
    pub(crate) fn start(shutdown: &Shutdown, link: Link) -> Self {
        let (hints, receiver) = mpsc::channel(QUEUE_LENGTH);
        shutdown.supervise("replies", Tier::Back, send_hints(shutdown.clone(), link, receiver));
        Self { hints }
    }

    /// Tells whoever waits on `reply_to` that a command is decided.
    pub(crate) fn hint(&self, reply_to: &ShortString, id: CommandId) {
        let _ = self.hints.try_send(Hint { reply_to: reply_to.clone(), id });
    }
}

async fn send_hints(shutdown: Shutdown, link: Link, mut hints: mpsc::Receiver<Hint>) -> TaskResult {
    let mut channel: Option<(Channel, ShortString)> = None;
    let mut opened: Option<Instant> = None;
    loop {
        let hint = tokio::select! {
            // Those of the last batch still leave.
            biased;
            Some(hint) = hints.recv() => hint,
            () = shutdown.reached(Phase::Closing) => return Ok(()),
        };
        if !channel.as_ref().is_some_and(|(open, _)| open.status().connected()) {
            if opened.is_some_and(|at| at.elapsed() < OPEN_INTERVAL) {
                continue;
            }
            opened = Some(Instant::now());
            channel = open(&link).await;
        }
        if let Some((open, exchange)) = &channel {
            let properties = BasicProperties::default().with_correlation_id(hint.id.to_string().into());
            // Neither mandatory nor confirmed, because the instance that waited may be gone.
            let options = BasicPublishOptions::default();
            let sent = open.basic_publish(exchange.clone(), hint.reply_to, options, &[], properties);
            if !matches!(tokio::time::timeout(DEADLINE, sent).await, Ok(Ok(_))) {
                channel = None;
            }
        }
    }
}

/// A channel, and the exchange that routes hints to the instance that waits.
async fn open(link: &Link) -> Option<(Channel, ShortString)> {
    let LinkState::Up { connection, reports, .. } = link.borrow().clone() else { return None };
    let channel = tokio::time::timeout(DEADLINE, connection.create_channel()).await.ok()?.ok()?;
    Some((channel, reports.topology().replies_exchange().into()))
}
