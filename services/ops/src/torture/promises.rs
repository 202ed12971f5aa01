//! What a client asked for, and what it was told.

use std::time::Instant;

use uuid::Uuid;

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Update,
    Suspend,
    Reactivate,
    Delete,
}

impl Kind {
    /// As it stands in the row.
    pub(crate) fn wire_name(self) -> &'static str {
        match self {
            Self::Create => "users.create",
            Self::Update => "users.update",
            Self::Suspend => "users.suspend",
            Self::Reactivate => "users.reactivate",
            Self::Delete => "users.delete",
        }
    }
}

/// One change that a client wants. However often it is sent, it is wanted once.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    /// Of creates; no two are the same.
    pub(crate) email: Option<String>,
    /// Of creates and updates; no two of one user are the same.
    pub(crate) name: Option<String>,
    /// The version that it is conditional on.
    pub(crate) if_match: Option<i64>,
    /// Without one it is sent once only.
    pub(crate) key: Option<String>,
    /// The key belongs to an earlier request of this user: this one must be rejected.
    pub(crate) reused: bool,
    /// Whether the client waits for the outcome.
    pub(crate) wait: bool,
}

/// A command whose id the client knows.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) id: Uuid,
    /// The rejection that a client which waited was told.
    pub(crate) rejected: Option<String>,
    /// Whether such a client was told that it is parked: then its outcome is to come.
    pub(crate) parked: bool,
}

/// What a client which waited was told, if the change succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The user, at least as new as this.
    Version(i64),
    /// The user is gone.
    Gone,
}

/// A request with everything that came back.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) request: Request,
    /// Before its first attempt left.
    pub(crate) sent: Instant,
    /// When its first promise had come.
    pub(crate) accepted: Option<Instant>,
    /// One for each attempt that was accepted.
    pub(crate) promises: Vec<Promise>,
    pub(crate) shown: Option<Shown>,
}

impl Operation {
    pub(crate) fn of(request: Request) -> Self {
        Self { request, sent: Instant::now(), accepted: None, promises: Vec::new(), shown: None }
    }

    /// Notes that it is owed now.
    pub(crate) fn accept(&mut self) {
        self.accepted.get_or_insert_with(Instant::now);
    }
}

/// One user's operations, in the order in which they were sent.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) user: Uuid,
    pub(crate) operations: Vec<Operation>,
}

impl Life {
    /// The latest version that was shown; none of a user that is gone.
    pub(crate) fn shown(&self) -> Option<i64> {
        let deleted = self.operations.iter().any(|operation| operation.request.kind == Kind::Delete);
        let shown = self.operations.iter().filter_map(|operation| match operation.shown {
            Some(Shown::Version(version)) => Some(version),
            _ => None,
        });
        shown.max().filter(|_| !deleted)
    }
}

/// What all clients were told.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    pub(crate) lives: Vec<Life>,
    /// Answers that no fault explains.
    pub(crate) wrong: Vec<String>,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
}

impl Promises {
    /// Every command whose id a client knows.
    pub(crate) fn ids(&self) -> Vec<Uuid> {
        let operations = self.lives.iter().flat_map(|life| &life.operations);
        operations.flat_map(|operation| &operation.promises).map(|promise| promise.id).collect()
    }
}
