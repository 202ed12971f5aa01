//! Dead letters: commands that could not be applied, the later commands of their users, and messages that are no commands.
//!
//! # The words
//! A *letter* is a row of `dead_letters`. A command is *guilty* when it could not be applied itself, and *behind* when an
//! earlier one of its user is open; both are `parked` in the status resource. A user with an open letter is *held*.
//!
//! # What has a status, and what blocks?
//! A message with a readable id has a row in `commands`, `parked`, whatever else is wrong with it: a type of a later
//! release, a fault in its body, an id of the future. With a readable user it holds that user, in order of arrival. Without
//! one it has a status and blocks nothing, because nobody knows what. A message without a readable id is kept raw.
//! Every letter keeps the bytes of its message, and a replay reads those: a newer build understands more of them.
//!
//! # Why are a user's later commands parked too?
//! They were accepted behind the guilty one and may depend on it. So the commands of a held user are
//! recorded in order, and follow in order once an operator has replayed or discarded the first.
//!
//! # What keeps an operator and a batch from overtaking each other?
//! The user's row in `held_users`. A batch locks the rows of its users for share before it applies anything, in order of
//! the user ids; a replay or discard locks one for update. Whoever comes second sees what the first has done.

mod broker;
mod browse;
mod collect;
mod record;
mod replay;

use std::collections::HashMap;

use common::command::CommandId;
use common::telemetry::TraceHeaders;

pub use broker::BrokerCause;
pub use browse::{Filter, Letter, behind, find, list, open_letters};
pub use collect::{CollectedMessage, collect_one};
pub(crate) use collect::{Collector, observe_open};
pub(crate) use record::{Letters, prune, without_letter};
pub use record::{RawMessage, record_raw, record_undelivered};
pub use replay::{Discarded, ReplayError, Step, Terms, Verdict, discard, discard_raw, replay, replay_raw};

/// `commands.reason` of a command that waits behind another of its user.
pub const BEHIND: &str = "behind-another";
/// `commands.reason` of a command that ended its worker again and again.
pub const WORKER_ENDED: &str = "worker-ended";
/// `commands.reason` of a command with a type, a condition or another member that this release does not understand, or with
/// a fault in its message.
pub const NOT_UNDERSTOOD: &str = "not-understood";
/// `commands.reason` of a command that came in another partition than that of its user.
pub const WRONG_PARTITION: &str = "wrong-partition";
/// `commands.reason` of a command whose id is too far ahead of the database's clock.
pub const ID_AHEAD: &str = "id-ahead";
/// `commands.reason` of a command whose day's records are not kept: it may have been applied before.
pub const RECORD_DROPPED: &str = "record-dropped";
/// `commands.reason` of a command that an operator discarded: it stays `parked`, for good.
pub const DISCARDED: &str = "discarded";

/// Reason of the letter of a retry whose first command ended in a way that only a newer version knows.
pub(crate) const UNKNOWN_OUTCOME: &str =
    "repeats a command that ended in a way that this version does not know; replay it with the version that wrote that";

/// The trace contexts of a batch's messages.
pub type Traces<'a> = HashMap<CommandId, &'a TraceHeaders>;
