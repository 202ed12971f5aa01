//! How far a run has come: a bar on a terminal, else a line now and then.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::say;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Progress {
    told_at: Instant,
    length: u64,
    unit: &'static str,
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new(length: u64, unit: &'static str) -> Self {
        // The template is fixed and valid; without it the bar still shows, only plainer.
        let bar = ProgressBar::new(length);
        let bar = match ProgressStyle::with_template("{bar:20} {pos}/{len} {prefix}  {msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.set_prefix(unit);
        Self { told_at: Instant::now(), length, unit, bar }
    }

    pub(super) fn tell(&mut self, position: u64, line: &str) {
        self.bar.set_position(position);
        self.bar.set_message(line.to_owned());
        if self.bar.is_hidden() && self.told_at.elapsed() > LINE_INTERVAL {
            self.told_at = Instant::now();
            say(format_args!("{position}/{} {}  {line}", self.length, self.unit));
        }
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
