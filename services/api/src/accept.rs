//! How a command is accepted: publish, wait for the confirm, and if the client asked for it, for the outcome.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use common::broker::{Message, PublisherPool, Topology};
use common::command::{
    Command, CommandId, CommandIdKey, CommandKeys, CommandOutcome, Digest, Envelope, IdOrigin, Idempotency, Principal,
    SIGNATURE_HEADER, UserId,
};
use common::db::DatabaseClock;
use common::shutdown::{Phase, Shutdown};
use common::telemetry::{TRACE_TARGET, inject_amqp};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{Instrument, Span, field, info_span};

use crate::backlog::Backlog;
use crate::commands::{CommandResource, CommandStatus, Decided, Decision};
use crate::headers;
use crate::loader::Loader;
use crate::problem::{Problem, ProblemKind};
use crate::waiting::{Waiter, Waiting};

/// First and longest pause before a waiting request reads the row without a reply: thousands wait at once while a
/// worker is away.
const FIRST_LOOK: Duration = Duration::from_millis(250);
const LAST_LOOK: Duration = Duration::from_secs(2);
const PERSISTENT: u8 = 2;

/// Publishes commands and waits for their outcomes.
#[derive(Debug)]
pub(crate) struct Acceptor {
    publishers: PublisherPool,
    topology: Topology,
    keys: CommandKeys,
    waiting: Waiting,
    decisions: Loader<Decided>,
    backlog: Backlog,
    clock: DatabaseClock,
    command_ids: watch::Receiver<Option<CommandIdKey>>,
    shutdown: Shutdown,
}

/// What a client asked for besides the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How long to wait for the outcome.
    wait: Option<Duration>,
    /// The versions of `If-Match`, ascending; empty without a condition.
    versions: Vec<i64>,
    /// The one of them that the command carries.
    if_match: Option<i64>,
    /// The hash of the client's idempotency key.
    key: Option<Digest>,
}

/// What became of a command within its terms.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// The broker has it; its outcome is not known yet, the client did not want to wait, or it waits behind a dead letter.
    Pending(CommandResource),
    /// It succeeded; with the worker's reply, if that came.
    Succeeded(CommandResource, Option<Arc<CommandOutcome>>),
}

/// The end of a wait: a decided command, and the reply that said so, if it was one.
struct Awaited {
    decided: Decided,
    reply: Option<Arc<CommandOutcome>>,
}

impl Terms {
    /// Reads `Prefer`, `If-Match` and `Idempotency-Key`, which counts for this principal alone.
    pub(crate) fn read(
        principal: &Principal,
        prefer: Option<&str>,
        if_match: Option<&str>,
        idempotency_key: Option<&str>,
    ) -> Result<Self, Problem> {
        let key = headers::idempotency_key(idempotency_key)?;
        let key = key.map(|key| Digest::of_key(principal, &key));
        let versions = headers::if_match(if_match)?;
        Ok(Self { wait: headers::wait(prefer), if_match: versions.first().copied(), versions, key })
    }

    /// True if the client named several versions, of which the current one counts.
    pub(crate) fn several_versions(&self) -> bool {
        self.versions.len() > 1
    }

    /// Makes the current version the condition if it is one of them. Otherwise the first stays, for the worker to refuse: it
    /// knows whether the same request took effect before.
    pub(crate) fn settle(&mut self, current: i64) {
        if self.versions.contains(&current) {
            self.if_match = Some(current);
        }
    }

    /// The id of a user to create: with a key the same one whenever and through whichever instance it is asked for.
    pub(crate) fn user_id(&self) -> UserId {
        self.key.map_or_else(UserId::mint, |key| UserId::derive(&key))
    }

    fn fingerprint(&self, command: &Command) -> Digest {
        match self.versions.as_slice() {
            several @ [_, _, ..] => Digest::of_request_for_any(command, several),
            _ => Digest::of_request(command, self.if_match),
        }
    }

    /// `Preference-Applied`, when there was a preference.
    pub(crate) fn applied(&self) -> Option<String> {
        self.wait.map(|wait| format!("wait={}", wait.as_secs()))
    }
}

impl Acceptor {
    #[expect(clippy::too_many_arguments, reason = "each is a part that it works with")]
    pub(crate) fn new(
        publishers: PublisherPool,
        topology: Topology,
        waiting: Waiting,
        decisions: Loader<Decided>,
        backlog: Backlog,
        clock: DatabaseClock,
        command_ids: watch::Receiver<Option<CommandIdKey>>,
        shutdown: Shutdown,
    ) -> Self {
        let keys = CommandKeys::default();
        Self { publishers, topology, keys, waiting, decisions, backlog, clock, command_ids, shutdown }
    }

    /// Signs commands from now on and believes signed replies only, if there are keys.
    pub(crate) fn sign_with(&mut self, keys: CommandKeys) {
        self.waiting.verify_with(keys.clone());
        self.keys = keys;
    }

    /// Publishes a command of this principal and waits as its terms say, unless too many wait: then the terms say so. A
    /// rejection that was waited for is the problem that it names.
    pub(crate) async fn accept(
        &self,
        principal: Principal,
        command: Command,
        terms: &mut Terms,
    ) -> Result<Accepted, Problem> {
        // The command's id and its time come from this process's clock.
        self.clock.check().map_err(|reason| Problem::new(ProblemKind::NotReady).detail(reason))?;
        let envelope = Envelope {
            id: self.mint(&principal)?,
            // As the row keeps it, whichever of the two an answer is made from.
            accepted_at: OffsetDateTime::now_utc().truncate_to_microsecond(),
            principal,
            if_match: terms.if_match,
            idempotency: terms.key.map(|key| Idempotency { key, fingerprint: terms.fingerprint(&command) }),
            command,
        };
        Span::current().record("command.id", field::display(envelope.id));
        let waiter = self.enter(envelope.id, &envelope.principal, terms);
        let partition = envelope.command.user_id().partition(self.topology.partitions());
        self.backlog.admit(partition)?;
        self.publish(&envelope, partition, waiter.is_some()).await?;
        self.backlog.note(partition, envelope.id);
        let pending = || CommandResource::accepted(&envelope);
        let Some((waiter, deadline)) = waiter else { return Ok(Accepted::Pending(pending())) };
        match self.decision(&waiter, envelope.id, Some(&envelope), deadline).await {
            None => Ok(Accepted::Pending(pending())),
            Some(Awaited { decided, reply }) => match decided.decision {
                Decision::Succeeded => Ok(Accepted::Succeeded(decided.into(), reply)),
                Decision::Rejected(rejection) => Err(Problem::from(rejection).of_command(envelope.id)),
                // It will be applied after the one that it waits behind.
                Decision::Parked if decided.waits() => Ok(Accepted::Pending(decided.into())),
                Decision::Unknown => {
                    Ok(Accepted::Pending(CommandResource { status: CommandStatus::Unknown, ..pending() }))
                }
                Decision::Parked => Err(Problem::new(ProblemKind::CommandParked).of_command(envelope.id)),
            },
        }
    }

    /// Begins to wait, if the client wants to, not too many do already and the instance does not drain.
    fn enter(&self, id: CommandId, principal: &Principal, terms: &mut Terms) -> Option<(Waiter, Instant)> {
        let wanted = terms.wait.filter(|_| self.shutdown.phase() < Phase::Draining);
        let waiter = wanted.and_then(|wait| Some((self.waiting.enter(id, principal)?, Instant::now() + wait)));
        if waiter.is_none() {
            terms.wait = None;
        }
        waiter
    }

    /// The origin of an id, as this principal may learn it; unknown before the first join.
    pub(crate) fn origin(&self, id: CommandId, principal: &Principal) -> Result<IdOrigin, Problem> {
        let key = self.command_ids.borrow().clone().ok_or_else(|| Problem::new(ProblemKind::DatabaseUnavailable))?;
        Ok(id.origin(&key, principal))
    }

    /// A fresh id; before the first join there is no connection to the broker, either.
    fn mint(&self, principal: &Principal) -> Result<CommandId, Problem> {
        let key = self.command_ids.borrow().clone().ok_or_else(|| Problem::new(ProblemKind::BrokerUnavailable))?;
        Ok(CommandId::mint_for(&key, principal))
    }

    /// Looks at a command, and while it is undecided waits for this principal as long as it may.
    pub(crate) async fn look(
        &self,
        id: CommandId,
        principal: &Principal,
        terms: &mut Terms,
    ) -> Result<Option<Decided>, Problem> {
        let found = self.decisions.load(id.into()).await?;
        if found.is_some() {
            return Ok(found);
        }
        match self.enter(id, principal, terms) {
            Some((waiter, deadline)) => {
                Ok(self.decision(&waiter, id, None, deadline).await.map(|awaited| awaited.decided))
            }
            None => Ok(None),
        }
    }

    /// Waits for the outcome: until a reply carries it or a look at the row finds it, the deadline passes or the
    /// instance drains. A reply says nothing of what was asked for, so without the envelope it is a reason to look.
    async fn decision(
        &self,
        waiter: &Waiter,
        id: CommandId,
        envelope: Option<&Envelope>,
        deadline: Instant,
    ) -> Option<Awaited> {
        let answered = async {
            let Some(envelope) = envelope else { return pending().await };
            let outcome = waiter.outcome().await;
            Awaited { decided: Decided::replied(envelope, &outcome), reply: Some(outcome) }
        };
        let mut replies = waiter.replies();
        let looking = async {
            let mut pause = FIRST_LOOK;
            loop {
                tokio::select! {
                    Ok(()) = replies.changed() => {}
                    () = sleep(pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => pause = (pause * 2).min(LAST_LOOK),
                }
                // A database that is away does not make the command less accepted.
                if let Ok(Some(decided)) = self.decisions.load(id.into()).await {
                    return decided;
                }
            }
        };
        let looking = async {
            match timeout_at(deadline, looking).await {
                Ok(decided) => Some(decided),
                // The last look may be long ago.
                Err(_) => timeout(FIRST_LOOK, self.decisions.load(id.into())).await.ok()?.ok()?,
            }
        };
        tokio::select! {
            // A reply that carries the outcome spares the look, which it wakes as well.
            biased;
            awaited = answered => Some(awaited),
            decided = looking => decided.map(|decided| Awaited { decided, reply: None }),
            () = self.shutdown.reached(Phase::Draining) => None,
        }
    }

    async fn publish(&self, envelope: &Envelope, partition: u16, waited: bool) -> Result<(), Problem> {
        let exchange = self.topology.commands_exchange();
        let span = info_span!(
            target: TRACE_TARGET,
            "send command",
            otel.kind = "producer",
            otel.name = %format_args!("send {exchange}"),
            otel.status_code = field::Empty,
            messaging.system = "rabbitmq",
            messaging.operation.name = "send",
            messaging.operation.r#type = "send",
            messaging.destination.name = %format_args!("{exchange}:{partition}"),
            messaging.rabbitmq.destination.routing_key = partition,
            messaging.message.id = %envelope.id,
            command.id = %envelope.id,
            command.r#type = envelope.command.wire_name(),
            user.id = %envelope.command.user_id(),
        );
        let mut headers = FieldTable::default();
        inject_amqp(&span, &mut headers);
        let (id, body) = (envelope.id.to_string(), envelope.encode());
        if let Some(signature) = self.keys.sign(&id, envelope.command.wire_name(), &body) {
            headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(signature.into()));
        }
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_type(envelope.command.wire_name().into())
            .with_app_id("rollcall-api".into())
            .with_timestamp(u64::try_from(envelope.accepted_at.unix_timestamp()).unwrap_or_default())
            .with_headers(headers);
        if waited && let Some(queue) = self.waiting.reply_to() {
            properties = properties.with_reply_to(queue);
        }
        let message = Message {
            exchange,
            routing_key: partition.to_string(),
            id,
            properties,
            body,
            // What no queue takes would be promised and never applied.
            mandatory: true,
        };
        let published = self.publishers.of(partition).publish(message).instrument(span.clone()).await;
        published.map_err(|error| {
            span.record("otel.status_code", "error");
            // The check of the broker is logged when it turns, and refusals are counted.
            tracing::debug!(command.id = %envelope.id, %error, "a command was not accepted");
            Problem::not_accepted(&error, envelope.id)
        })
    }
}
