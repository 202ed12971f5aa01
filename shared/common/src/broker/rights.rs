//! Rights at the broker: the users of a deployment, and the names that each may configure, write and read.
//!
//! # What does each right allow?
//! Configure: declaring and deleting. Write: publishing to an exchange, binding a queue. Read: consuming and purging a queue,
//! binding to an exchange. The rights are patterns of names, so a queue and an exchange of one name share them. Asking
//! whether something exists (a passive declaration) needs no right.
//!
//! # Why may the worker declare the deployment's mark and the API not?
//! The first process that reaches the broker marks it ([identity](super::identity)), and can also remove the mark, which
//! stops the deployment. A worker can stop it anyway, because it may read the partition queues. An API waits for the mark.

/// A part of the deployment with a user of its own at the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerUser {
    /// Declares exchanges and queues: `rollcall broker apply`, `rollcall migrate run`.
    Setup,
    /// Publishes commands and receives replies.
    Api,
    /// Consumes commands and dead letters, publishes events and replies.
    Worker,
}

/// The patterns of names that a user may configure, write and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Declare and delete.
    pub configure: String,
    /// Publish to, bind.
    pub write: String,
    /// Consume, purge, bind to.
    pub read: String,
}

/// The end of a name that a process makes up: a UUID.
const UUID: &str = r"\.[0-9a-f-]+";

impl BrokerUser {
    /// Every user.
    pub const ALL: [Self; 3] = [Self::Setup, Self::Api, Self::Worker];

    /// Its name in a deployment.
    pub fn name(self, prefix: &str) -> String {
        let suffix = match self {
            Self::Setup => "setup",
            Self::Api => "api",
            Self::Worker => "worker",
        };
        format!("{prefix}_{suffix}")
    }

    /// What it may do with names that begin with `broker_prefix`.
    pub fn permissions(self, broker_prefix: &str) -> Permissions {
        let [configure, write, read] = match self {
            // A queue with a dead-letter exchange is declared by who may read it and write to that exchange.
            Self::Setup => [
                r"commands(\.[0-9]+)?|events|replies|dead-letters".to_owned(),
                r"commands\.[0-9]+|dead-letters".to_owned(),
                r"commands(\.[0-9]+)?|dead-letters".to_owned(),
            ],
            Self::Api => {
                [format!("arrivals|replies{UUID}"), format!("commands|replies{UUID}"), format!("replies({UUID})?")]
            }
            Self::Worker => [
                format!("arrivals|deployment{UUID}"),
                "events|replies".to_owned(),
                r"commands\.[0-9]+|dead-letters".to_owned(),
            ],
        };
        let prefix = escaped(broker_prefix);
        let [configure, write, read] = [configure, write, read].map(|names| format!("^{prefix}({names})$"));
        Permissions { configure, write, read }
    }
}

/// What a subscriber to the events may do: everything with its own queues and exchanges, whose names are `name` or begin with
/// `name` and a dot, and binding them to the events.
pub fn subscriber_permissions(name: &str, broker_prefix: &str) -> Permissions {
    let own = format!(r"{}(\..+)?", escaped(name));
    Permissions {
        configure: format!("^{own}$"),
        write: format!("^{own}$"),
        read: format!("^({}events|{own})$", escaped(broker_prefix)),
    }
}

/// Names here are of letters, digits, `.`, `_` and `-`.
fn escaped(name: &str) -> String {
    name.replace('.', r"\.")
}
