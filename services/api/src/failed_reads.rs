//! What is told of reads that fail: to the client a problem, to the log at most one line a second. While the database is away
//! each would say the same, and how many there are is a metric.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::db::DbError;
use common::shutdown::chain;
use tokio::time::Instant;
use tracing::warn;

use crate::loader::LoadError;
use crate::problem::{Problem, ProblemKind};

/// Between two lines.
const APART: Duration = Duration::from_secs(1);

static LOG: Mutex<Log> = Mutex::new(Log { last: None, untold: 0 });

/// Logs why a read failed.
pub(crate) fn read_failed(error: &DbError) {
    let due = LOG.lock().unwrap_or_else(PoisonError::into_inner).due(Instant::now());
    if let Some(untold) = due {
        warn!(error = chain(error), untold, "a read failed");
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        read_failed(&error);
        Self::new(ProblemKind::DatabaseUnavailable)
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        Self::new(match error {
            LoadError::Full => ProblemKind::Overloaded,
            LoadError::Unavailable => ProblemKind::DatabaseUnavailable,
        })
    }
}

struct Log {
    last: Option<Instant>,
    untold: u64,
}

impl Log {
    /// Whether it is time for a line; with how many had none since the last.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + APART) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_is_told_with_the_number_of_the_others() {
        let mut log = Log { last: None, untold: 0 };
        let start = Instant::now();
        assert_eq!(log.due(start), Some(0));
        assert_eq!(log.due(start), None);
        assert_eq!(log.due(start + APART / 2), None);
        assert_eq!(log.due(start + APART), Some(2));
        assert_eq!(log.due(start + APART * 5), Some(0));
    }
}
