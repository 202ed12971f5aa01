//! Faults that can be switched on, to prove that `rollcall torture` finds them. Compiled only with the feature `mutants`,
//! which no release build can have.
//!
//! Some make the moment longer in which the fault shows, so that a run of less than a minute meets it.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::Duration;

use common::command::CommandId;
use lapin::Acker;
use lapin::options::BasicAckOptions;
use sqlx::PgConnection;
use tokio::time::sleep;

#[cfg(not(debug_assertions))]
compile_error!("the feature `mutants` breaks what the worker promises: it is for debug builds only");

/// Names the mutant in the environment of a worker.
pub const VARIABLE: &str = "ROLLCALL_MUTANT";
/// Between an early acknowledgement and the transaction.
const UNCOMMITTED: Duration = Duration::from_millis(50);
/// Between the beginning of a batch and its transaction, when there is no fence.
const UNFENCED: Duration = Duration::from_millis(300);
/// The share of changes without an event.
const FORGOTTEN: f64 = 0.02;

/// What a worker can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Applies what was applied before.
    Deduplication,
    /// Applies what is no longer its own.
    Fence,
    /// Acknowledges before the commit.
    EarlyAck,
    /// Applies a batch backwards.
    Order,
    /// Sometimes records no event of a change.
    LostEvent,
    /// Publishes what is waiting backwards.
    EventOrder,
    /// Applies the commands behind a dead letter.
    Unheld,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Deduplication,
        Self::Fence,
        Self::EarlyAck,
        Self::Order,
        Self::LostEvent,
        Self::EventOrder,
        Self::Unheld,
    ];

    /// As it is written in the environment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deduplication => "deduplication",
            Self::Fence => "fence",
            Self::EarlyAck => "early-ack",
            Self::Order => "order",
            Self::LostEvent => "lost-event",
            Self::EventOrder => "event-order",
            Self::Unheld => "unheld",
        }
    }

    /// The mutant of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.name() == name)
    }
}

fn active(mutant: Mutant) -> bool {
    static CHOSEN: OnceLock<Option<Mutant>> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "no setting of the worker: a release build knows nothing of it")]
    let chosen = CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok().and_then(|name| Mutant::from_name(&name)));
    *chosen == Some(mutant)
}

/// The partitions that count as owned.
pub(crate) fn fenced(owned: HashSet<u16>, all: impl Iterator<Item = u16>) -> HashSet<u16> {
    if active(Mutant::Fence) { all.collect() } else { owned }
}

/// Whoever takes a partition over ends the sessions of the last owner, which stops what a fence has to stop. So a worker
/// without one hides its session for a while, in which a freeze finds it.
pub(crate) async fn hide(session: &mut PgConnection) -> sqlx::Result<()> {
    if !active(Mutant::Fence) {
        return Ok(());
    }
    let name: String =
        sqlx::query_scalar("SELECT current_setting('application_name')").fetch_one(&mut *session).await?;
    let named = "SELECT set_config('application_name', $1, false)";
    sqlx::query(named).bind("hidden").execute(&mut *session).await?;
    sleep(UNFENCED).await;
    sqlx::query(named).bind(name).execute(session).await?;
    Ok(())
}

/// The commands that count as decided before.
pub(crate) fn known(known: &HashSet<CommandId>) -> HashSet<CommandId> {
    if active(Mutant::Deduplication) { HashSet::new() } else { known.clone() }
}

/// The command rows that count as written.
pub(crate) fn rows(written: usize, wanted: usize) -> usize {
    if active(Mutant::Deduplication) || active(Mutant::Fence) { wanted } else { written }
}

/// The commands in the order in which they are applied.
pub(crate) fn ordered<T>(mut commands: Vec<T>) -> Vec<T> {
    if active(Mutant::Order) {
        commands.reverse();
    }
    commands
}

/// Between the receipt of a batch and its transaction; says whether the batch is acknowledged now.
pub(crate) async fn acknowledged(last: &Acker) -> lapin::Result<bool> {
    let early = active(Mutant::EarlyAck);
    if early {
        last.ack(BasicAckOptions { multiple: true }).await?;
        sleep(UNCOMMITTED).await;
    }
    Ok(early)
}

/// The changes whose events are recorded.
pub(crate) fn recorded<T>(mut changes: Vec<T>) -> Vec<T> {
    let forgets = active(Mutant::LostEvent);
    changes.retain(|_| !(forgets && rand::random_bool(FORGOTTEN)));
    changes
}

/// The events in the order in which they are published.
pub(crate) fn relayed<T>(mut events: Vec<T>) -> Vec<T> {
    if active(Mutant::EventOrder) {
        events.reverse();
    }
    events
}

/// Whether the user of a command counts as held.
pub(crate) fn held(held: bool) -> bool {
    held && !active(Mutant::Unheld)
}
