//! Refusals of the broker, read from their text and not by their code alone: a 406 is an argument that differs, or a limit
//! of the virtual host.

use lapin::ErrorKind;

use super::{BrokerUser, Permissions, Topology};

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// Why the exchanges and queues are not as they must be.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// It exists with another argument. Waiting does not help.
    #[error(
        "the {kind} {name:?} exists with other arguments: {argument} is {current}, and here it is {expected} ({reason}); {}, \
         or set another BROKER_PREFIX",
        remedy(kind, name, vhost)
    )]
    Mismatch {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The argument that differs.
        argument: String,
        /// What this version declares.
        expected: String,
        /// What the broker has.
        current: String,
        /// The virtual host.
        vhost: String,
        /// What the broker says of it.
        reason: String,
    },
    /// The user lacks a right. An operator can grant it at any time.
    #[error(
        "the broker's user {user:?} may not {right} the {resource} ({reason}); grant it with `rabbitmqctl set_permissions -p \
         {vhost} {user} '{}' '{}' '{}'`",
        needed.configure,
        needed.write,
        needed.read
    )]
    Access {
        /// The user.
        user: String,
        /// The virtual host.
        vhost: String,
        /// `configure`, `write to` or `read from`.
        right: &'static str,
        /// For example `queue 'commands.0'`.
        resource: String,
        /// All that the user needs.
        needed: Permissions,
        /// What the broker says of it.
        reason: String,
    },
    /// It does not exist. Waiting helps once an operator has declared it.
    #[error(
        "the {kind} {name:?} does not exist; run `rollcall broker apply` with the same AMQP_URL, BROKER_PREFIX and PARTITIONS, \
         and a user that may declare"
    )]
    Missing {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The broker did not answer, or refused for another reason, a limit of the virtual host for example.
    #[error("failed to declare the {kind} {name:?}")]
    Broker {
        /// `queue` or `exchange`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the client library says.
        source: lapin::Error,
    },
}

/// What was asked of the broker.
#[derive(Debug, Clone, Copy)]
pub(super) enum Action<'a> {
    /// Declaring: the right to configure; a queue with a dead-letter exchange also needs to read from it and to write to the
    /// exchange.
    Declare,
    /// Binding a queue or exchange to this exchange, or removing a binding: the right to write to the one and to read from
    /// the other.
    Bind(&'a str),
    /// Consuming: the right to read.
    Consume,
}

/// Judges an error of the client library.
pub(super) fn judge(
    topology: &Topology,
    asked_by: BrokerUser,
    kind: &'static str,
    name: &str,
    action: Action<'_>,
    source: lapin::Error,
) -> TopologyError {
    let name = name.to_owned();
    let ErrorKind::ProtocolError(error) = source.kind() else { return TopologyError::Broker { kind, name, source } };
    let reason = error.get_message().to_string();
    match error.get_id() {
        PRECONDITION_FAILED => match inequivalent(&reason) {
            Some((argument, expected, current)) => {
                let vhost = quoted_after(&reason, "in vhost ").unwrap_or("/").to_owned();
                TopologyError::Mismatch { kind, name, argument, expected, current, vhost, reason }
            }
            None => TopologyError::Broker { kind, name, source },
        },
        ACCESS_REFUSED => {
            let Some(resource) = resource(&reason) else { return TopologyError::Broker { kind, name, source } };
            let part = |before| quoted_after(&reason, before).unwrap_or("?").to_owned();
            let (vhost, user) = (part("in vhost "), part("for user "));
            let (resource, right) = (resource.to_owned(), right(&reason, resource, kind, &name, action));
            let needed = asked_by.permissions(topology.prefix());
            TopologyError::Access { user, vhost, right, resource, needed, reason }
        }
        // A binding names two.
        NOT_FOUND => match missing(&source) {
            Some(missing) if missing == name => TopologyError::Missing { kind, name },
            Some(missing) => TopologyError::Missing { kind: "exchange", name: missing },
            None => TopologyError::Broker { kind, name, source },
        },
        _ => TopologyError::Broker { kind, name, source },
    }
}

/// Whether the broker refuses access to the exchange of this name.
pub(super) fn refuses(error: &lapin::Error, exchange: &str) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    let resource = format!("exchange '{exchange}'");
    error.get_id() == ACCESS_REFUSED && self::resource(error.get_message().as_str()) == Some(resource.as_str())
}

/// The name of what does not exist, if that is what an error of a channel says.
pub(super) fn missing(error: &lapin::Error) -> Option<String> {
    match error.kind() {
        // For example: NOT_FOUND - no exchange 'commands' in vhost '/'
        ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND => {
            error.get_message().as_str().split('\'').nth(1).map(str::to_owned)
        }
        _ => None,
    }
}

/// The argument, and both values. For example: inequivalent arg 'x-max-length' for queue 'q' in vhost '/': received the value
/// '5' of type 'signedint' but current is none
fn inequivalent(reason: &str) -> Option<(String, String, String)> {
    let (_, rest) = reason.split_once("inequivalent arg '")?;
    let (argument, rest) = rest.split_once('\'')?;
    let (_, rest) = rest.split_once(": received ")?;
    let (expected, current) = rest.split_once(" but current is ")?;
    let value = |text: &str| {
        let text = text.trim();
        let text = text.strip_prefix("the value ").unwrap_or(text);
        text.split_once(" of type ").map_or(text, |(value, _)| value).to_owned()
    };
    Some((argument.to_owned(), value(expected), value(current)))
}

/// For example: access to exchange 'commands' in vhost '/' refused for user 'limited'; newer brokers begin with the right.
fn resource(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("access to ")?;
    Some(rest.split_once(" in vhost")?.0)
}

fn quoted_after<'t>(text: &'t str, before: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split('\'').nth(1)
}

/// The right that is missing: as newer brokers say it, else as it follows from what was asked.
fn right(reason: &str, resource: &str, kind: &str, name: &str, action: Action<'_>) -> &'static str {
    for (said, right) in [("configure", "configure"), ("write", "write to"), ("read", "read from")] {
        if reason.contains(&format!("{said} access to ")) {
            return right;
        }
    }
    let itself = resource == format!("{kind} '{name}'");
    match action {
        // A queue that may be configured and not be read from is refused in the same words.
        Action::Declare if itself && kind == "queue" => "configure, or not read from,",
        Action::Declare if itself => "configure",
        Action::Bind(exchange) if resource == format!("exchange '{exchange}'") && !itself => "read from",
        Action::Consume => "read from",
        Action::Declare | Action::Bind(_) => "write to",
    }
}

fn remedy(kind: &str, name: &str, vhost: &str) -> String {
    let vhost = if vhost == "/" { String::new() } else { format!(" -p {vhost}") };
    match kind {
        "queue" => format!("drain and delete it with `rabbitmqctl delete_queue {name}{vhost}`"),
        // Without the management plugin the broker has no command for it.
        _ => format!("delete it with `rabbitmqadmin delete {kind} name={name}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_differs_is_found_with_both_values() {
        let table = [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for queue 'commands.0' in vhost '/': received the value \
                 '100000' of type 'long' but current is the value '5' of type 'signedint'",
                Some(("x-max-length", "'100000'", "'5'")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'commands' in vhost '/': received 'direct' but \
                 current is 'topic'",
                Some(("type", "'direct'", "'topic'")),
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received none but current is \
                 the value 'quorum' of type 'longstr'",
                Some(("x-queue-type", "none", "'quorum'")),
            ),
            ("PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost 'v' (5) is reached", None),
        ];
        for (reason, expected) in table {
            let found = inequivalent(reason);
            let found = found.as_ref().map(|(argument, one, other)| (argument.as_str(), one.as_str(), other.as_str()));
            assert_eq!(found, expected, "{reason}");
        }
    }

    #[test]
    fn the_right_that_is_missing_is_told_apart() {
        let queue = "access to queue 'commands.0' in vhost '/' refused for user 'u'";
        let exchange = "access to exchange 'commands' in vhost '/' refused for user 'u'";
        let newer = "write access to queue 'commands.0' in vhost '/' refused for user 'u'";
        let letters = "access to exchange 'dead-letters' in vhost '/' refused for user 'u'";
        let table = [
            (exchange, "exchange", "commands", Action::Declare, "configure"),
            (letters, "queue", "commands.0", Action::Declare, "write to"),
            (queue, "queue", "commands.0", Action::Bind("commands"), "write to"),
            (exchange, "queue", "commands.0", Action::Bind("commands"), "read from"),
            (exchange, "exchange", "commands", Action::Bind("commands"), "write to"),
            (newer, "queue", "commands.0", Action::Declare, "write to"),
            (queue, "queue", "commands.0", Action::Consume, "read from"),
        ];
        for (reason, kind, name, action, expected) in table {
            let resource = resource(reason).expect("a resource");
            assert_eq!(right(reason, resource, kind, name, action), expected, "{reason} {action:?}");
            assert_eq!(quoted_after(reason, "for user "), Some("u"));
        }
    }
}
