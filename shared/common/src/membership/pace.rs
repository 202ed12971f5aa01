//! How quickly the control connection answers, and so for how long an answer counts.
//!
//! # Why does it depend on the answers?
//! Connections are opened only while the last answer counts, and others get the share of one whose control session ended only
//! after that. A short time lets shares move quickly; one that is shorter than the way to the server would let nothing open.

use std::collections::VecDeque;
use std::time::Duration;

use crate::db::UNDER_WAY;

/// Answers that are looked at.
const LAST: usize = 8;
/// For how long an answer counts at least: longer than between two questions. And at most: others wait for it.
const LEAST: Duration = Duration::from_millis(150);
const MOST: Duration = Duration::from_secs(1);

/// The last answers, by how long they took.
#[derive(Debug, Default)]
pub(super) struct Pace(VecDeque<Duration>);

impl Pace {
    pub(super) fn note(&mut self, took: Duration) {
        if self.0.len() == LAST {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// The way to the server and back, without what was only a busy moment.
    fn quickest(&self) -> Duration {
        self.0.iter().min().copied().unwrap_or_default()
    }

    /// For how long an answer counts, since the question.
    pub(super) fn counts(&self) -> Duration {
        (self.quickest() * 3).clamp(LEAST, MOST)
    }

    /// For how long others must not be given the share after the control session ended.
    pub(super) fn grace(counts: Duration) -> Duration {
        counts + UNDER_WAY
    }

    /// The time that every answer takes, when it is too long for any connection to be opened.
    pub(super) fn too_slow(&self) -> Option<Duration> {
        Some(self.quickest()).filter(|quickest| self.0.len() == LAST && *quickest >= MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(answers: impl IntoIterator<Item = u64>) -> Pace {
        let mut pace = Pace::default();
        answers.into_iter().for_each(|took| pace.note(Duration::from_millis(took)));
        pace
    }

    #[test]
    fn an_answer_counts_for_longer_than_it_takes_and_busy_moments_do_not_matter() {
        let counts = |answers: &[u64]| pace(answers.iter().copied()).counts().as_millis();
        assert_eq!(counts(&[]), 150);
        assert_eq!(counts(&[1, 2, 900, 1]), 150);
        assert_eq!(counts(&[200, 210, 900]), 600);
        assert_eq!(counts(&[800, 900]), 1000);
        assert_eq!(counts(&[1, 200, 200, 200, 200, 200, 200, 200, 200]), 600, "only the last count");
    }

    #[test]
    fn a_server_that_always_answers_too_late_is_told() {
        assert_eq!(pace([1100; 8]).too_slow(), Some(Duration::from_millis(1100)));
        assert_eq!(pace([1100; 7]).too_slow(), None);
        assert_eq!(pace([1100, 1100, 1100, 1100, 1100, 1100, 1100, 200]).too_slow(), None);
    }
}
