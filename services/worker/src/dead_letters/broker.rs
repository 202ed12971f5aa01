//! Why the broker dead-lettered a message: its own word in the headers, as a code and as a text for the operator.
//!
//! The words are those of RabbitMQ 3.10 to 4.x: `x-first-death-reason`, or `reason` of the first entry in `x-death`.

use std::fmt;

use lapin::types::{AMQPValue, FieldTable};

/// A message's way into the queue of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerCause {
    reason: BrokerReason,
    /// The queue that it was in.
    queue: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BrokerReason {
    /// A message TTL, which our queues do not have.
    Expired,
    /// Returned to the queue too often; our own limit is out of reach.
    DeliveryLimit,
    /// A length limit that drops instead of refusing.
    QueueFull,
    /// A consumer refused it: a worker, if it is no command and one of too many.
    Refused,
    /// No word of the broker, or one that is not known.
    Other,
}

impl BrokerReason {
    /// `commands.reason`, and the label of the metric.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::DeliveryLimit => "delivery-limit",
            Self::QueueFull => "queue-full",
            Self::Refused => "broker-refused",
            Self::Other => "broker",
        }
    }

    /// What an operator has to look for.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Expired => {
                "a policy sets message-ttl on the queues of commands; remove it (`rabbitmqctl list_policies`)"
            }
            Self::DeliveryLimit => {
                "a policy sets a delivery-limit below that of the queues' arguments; remove it \
                 (`rabbitmqctl list_policies`), because later commands can overtake"
            }
            Self::QueueFull => {
                "a policy sets overflow=drop-head on the queues of commands; remove it (`rabbitmqctl list_policies`)"
            }
            Self::Refused => {
                "of what is no command the workers refuse most when there is much: find out what publishes it; a command \
                 was refused by a program other than the worker, which consumes the queues of commands: stop it"
            }
            Self::Other => "something other than the broker published it, or a release of the broker that is not known",
        }
    }
}

impl BrokerCause {
    /// Reads the headers of a message in the queue of dead letters.
    pub fn of(headers: Option<&FieldTable>) -> Self {
        let inner = headers.map(FieldTable::inner);
        let header = |name: &str| inner.and_then(|headers| headers.get(name)).and_then(text);
        let death = inner.and_then(|headers| headers.get("x-death")).and_then(|deaths| match deaths {
            AMQPValue::FieldArray(deaths) => deaths.as_slice().last(),
            _ => None,
        });
        let first = |name: &str| match death {
            Some(AMQPValue::FieldTable(death)) => death.inner().get(name).and_then(text),
            _ => None,
        };
        let reason = match header("x-first-death-reason").or_else(|| first("reason")).as_deref() {
            Some("expired") => BrokerReason::Expired,
            Some("delivery_limit") => BrokerReason::DeliveryLimit,
            Some("maxlen") => BrokerReason::QueueFull,
            Some("rejected") => BrokerReason::Refused,
            _ => BrokerReason::Other,
        };
        Self { reason, queue: header("x-first-death-queue").or_else(|| first("queue")) }
    }

    /// `commands.reason` of a command.
    pub fn code(&self) -> &'static str {
        self.reason.code()
    }

    pub(super) fn reason(&self) -> BrokerReason {
        self.reason
    }
}

impl fmt::Display for BrokerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            BrokerReason::Expired => "expired",
            BrokerReason::DeliveryLimit => "was returned more often than the delivery limit allows",
            BrokerReason::QueueFull => "was dropped for the length of the queue",
            BrokerReason::Refused => "was refused by a consumer",
            BrokerReason::Other => "was found among the dead letters of the broker",
        };
        write!(f, "given up by the broker: it {what}")?;
        if let Some(queue) = &self.queue {
            write!(f, " in the queue {queue}")?;
        }
        write!(f, "; {}", self.reason.advice())
    }
}

/// A word of the broker or the name of a queue. Anybody who may publish can have written the headers: what has another form
/// is left out, because it is shown in lists.
fn text(value: &AMQPValue) -> Option<String> {
    let AMQPValue::LongString(text) = value else { return None };
    let text = text.to_string();
    let fits = text.len() <= 200 && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn word(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    #[test]
    fn the_first_death_says_why() {
        let table = [
            ("expired", "expired"),
            ("delivery_limit", "delivery-limit"),
            ("maxlen", "queue-full"),
            ("rejected", "broker-refused"),
            ("something new", "broker"),
        ];
        for (reason, code) in table {
            let mut death = FieldTable::default();
            death.insert("reason".into(), word(reason));
            death.insert("queue".into(), word("commands.7"));
            let mut newer = FieldTable::default();
            newer.insert("reason".into(), word("another"));
            let deaths = FieldArray::from(vec![AMQPValue::FieldTable(newer), AMQPValue::FieldTable(death)]);
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), AMQPValue::FieldArray(deaths));
            let cause = BrokerCause::of(Some(&headers));
            assert_eq!(cause.code(), code);
            assert!(cause.to_string().contains("commands.7"), "{cause}");
            headers.insert("x-first-death-queue".into(), word("marker@example.org"));
            let cause = BrokerCause::of(Some(&headers));
            assert!(!cause.to_string().contains("marker"), "{cause}");
            headers.insert("x-first-death-reason".into(), word("expired"));
            assert_eq!(BrokerCause::of(Some(&headers)).code(), "expired");
        }
        assert_eq!(BrokerCause::of(None).code(), "broker");
    }
}
