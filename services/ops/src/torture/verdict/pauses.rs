//! For how long a partition stood still while it had something to apply.

use std::collections::HashMap;
use std::fmt;

use common::command::{DEFAULT_PARTITIONS, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use super::rows::{Row, Rows};

/// The longest.
#[derive(Debug)]
pub(super) struct Pause {
    partition: u16,
    length: time::Duration,
    /// Since the first command was accepted.
    began: time::Duration,
    /// The command that ended it.
    command: Uuid,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, began) = (self.length.as_seconds_f64(), self.began.as_seconds_f64());
        let Self { partition, command, .. } = self;
        write!(f, "{length:.1} s at most, of partition {partition} after {began:.0} s, until command {command}")
    }
}

/// Both times come from clocks of one machine. What was parked waited for an operator, and nothing waited for it.
pub(super) fn longest(rows: &Rows) -> Option<Pause> {
    let mut partitions: HashMap<u16, Vec<&Row>> = HashMap::new();
    for row in rows.commands.values().filter(|row| !row.letter) {
        let partition = UserId::try_from(row.user_id).ok()?.partition(DEFAULT_PARTITIONS);
        partitions.entry(partition).or_default().push(row);
    }
    let start = rows.commands.values().map(|row| row.accepted_at).min()?;
    let pauses = partitions.into_iter().filter_map(|(partition, rows)| {
        let (length, began, command) = longest_of(rows)?;
        Some(Pause { partition, length, began: began - start, command })
    });
    pauses.max_by_key(|pause| pause.length)
}

/// Of one partition's commands.
fn longest_of(mut rows: Vec<&Row>) -> Option<(time::Duration, OffsetDateTime, Uuid)> {
    rows.sort_unstable_by_key(|row| (row.applied_at, row.accepted_at));
    // Backwards: the earliest of those that were still to apply.
    let mut waiting: Option<OffsetDateTime> = None;
    let mut longest: Option<(time::Duration, OffsetDateTime, Uuid)> = None;
    for (place, row) in rows.iter().enumerate().rev() {
        let since = waiting.map_or(row.accepted_at, |earliest| earliest.min(row.accepted_at));
        waiting = Some(since);
        let last = place.checked_sub(1).and_then(|before| rows.get(before)).map(|before| before.applied_at);
        let began = last.map_or(since, |last| last.max(since));
        let pause = (row.applied_at - began, began, row.id);
        if longest.is_none_or(|longest| pause.0 > longest.0) {
            longest = Some(pause);
        }
    }
    longest
}
