//! For how long a partition stood still while it had something to apply.

use std::collections::HashMap;
use std::fmt;

use common::command::{DEFAULT_PARTITIONS, UserId};
use time::OffsetDateTime;

use super::rows::Rows;

/// The longest.
#[derive(Debug)]
pub(super) struct Pause {
    partition: u16,
    length: time::Duration,
    /// Since the first command was accepted.
    began: time::Duration,
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, began) = (self.length.as_seconds_f64(), self.began.as_seconds_f64());
        write!(f, "{length:.1} s at most, of partition {} after {began:.0} s", self.partition)
    }
}

/// Both times come from clocks of one machine.
pub(super) fn longest(rows: &Rows) -> Option<Pause> {
    let mut partitions: HashMap<u16, Vec<(OffsetDateTime, OffsetDateTime)>> = HashMap::new();
    for row in rows.commands.values() {
        let partition = UserId::try_from(row.user_id).ok()?.partition(DEFAULT_PARTITIONS);
        partitions.entry(partition).or_default().push((row.applied_at, row.accepted_at));
    }
    let start = rows.commands.values().map(|row| row.accepted_at).min()?;
    let pauses = partitions.into_iter().filter_map(|(partition, times)| {
        let (length, began) = longest_of(times)?;
        Some(Pause { partition, length, began: began - start })
    });
    pauses.max_by_key(|pause| pause.length)
}

/// Of one partition's commands, each as when it was applied and when it was accepted.
fn longest_of(mut times: Vec<(OffsetDateTime, OffsetDateTime)>) -> Option<(time::Duration, OffsetDateTime)> {
    times.sort_unstable();
    // Backwards: the earliest of those that were still to apply.
    let mut waiting: Option<OffsetDateTime> = None;
    let mut longest: Option<(time::Duration, OffsetDateTime)> = None;
    for (place, (applied, accepted)) in times.iter().enumerate().rev() {
        let since = waiting.map_or(*accepted, |earliest| earliest.min(*accepted));
        waiting = Some(since);
        let last = place.checked_sub(1).and_then(|before| times.get(before)).map(|(applied, _)| *applied);
        let began = last.map_or(since, |last| last.max(since));
        let pause = (*applied - began, began);
        if longest.is_none_or(|longest| pause.0 > longest.0) {
            longest = Some(pause);
        }
    }
    longest
}
