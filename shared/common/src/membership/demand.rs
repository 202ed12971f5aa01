//! What an instance has use for: the most that it used and waited for within a while.
//!
//! # Why the most of ten seconds?
//! A share that follows every burst moves all the time, and each move closes connections that are wanted again. So demand
//! rises at once and falls late.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const MEMORY: Duration = Duration::from_secs(10);

/// The peaks of a while, falling: an earlier one that a later one exceeds says nothing any more.
#[derive(Debug, Default)]
pub(super) struct Demand {
    peaks: VecDeque<(Instant, usize)>,
}

impl Demand {
    pub(super) fn note(&mut self, peak: usize) {
        let now = Instant::now();
        while self.peaks.back().is_some_and(|(_, earlier)| *earlier <= peak) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, peak));
        while self.peaks.front().is_some_and(|(at, _)| now - *at > MEMORY) {
            self.peaks.pop_front();
        }
    }

    pub(super) fn peak(&self) -> usize {
        self.peaks.front().map_or(0, |(_, peak)| *peak)
    }
}
