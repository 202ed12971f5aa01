//! Log of refused requests: who was refused, where and why, at most one line a second for each reason and caller.
//!
//! A client with an old key, or somebody who guesses, may send thousands of requests a second. What was left out is counted in
//! the caller's next line, and the counter `rollcall.api.refusals` has all of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::telemetry::TraceId;
use poem::{PathPattern, Request};
use tokio::time::Instant;

use super::denial::Denial;

const APART: Duration = Duration::from_secs(1);
/// Callers and reasons that are remembered, and so the most lines a second; beyond, nothing is logged.
const MOST: usize = 1_000;

/// The lines that were written lately.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    by_caller: HashMap<(&'static str, String), Line>,
    /// When old lines were last removed. At the bound every refused request would look through all of them otherwise.
    pruned_at: Option<Instant>,
}

#[derive(Debug)]
struct Line {
    at: Instant,
    omitted: u64,
}

impl RefusalLog {
    /// Logs a refusal. `address` is the caller's, as `TRUSTED_PROXIES` lets it be known.
    pub(super) fn note(&self, request: &Request, address: &str, refusal: &Denial) {
        let (reason, who) = (refusal.reason.label(), refusal.who.as_deref());
        let Some(omitted) = self.due(reason, who.unwrap_or(address), Instant::now()) else { return };
        let trace_id = request.data::<TraceId>().map(ToString::to_string);
        let (operation, detail) = (operation(request), refusal.detail.as_deref());
        tracing::info!(reason, who, detail, operation, address, trace_id, omitted, "a request was refused");
    }

    /// Whether it is time for a line; with how many had none since the last.
    fn due(&self, reason: &'static str, caller: &str, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.by_caller.get_mut(&(reason, caller.to_owned())) {
            if now < line.at + APART {
                line.omitted += 1;
                return None;
            }
            line.at = now;
            return Some(std::mem::take(&mut line.omitted));
        }
        if lines.by_caller.len() >= MOST {
            if lines.pruned_at.is_some_and(|pruned_at| now < pruned_at + APART) {
                return None;
            }
            lines.pruned_at = Some(now);
            lines.by_caller.retain(|_, line| now < line.at + APART);
        }
        if lines.by_caller.len() >= MOST {
            return None;
        }
        lines.by_caller.insert((reason, caller.to_owned()), Line { at: now, omitted: 0 });
        Some(0)
    }
}

/// The method and the path without what a client chose in it.
fn operation(request: &Request) -> String {
    let pattern = request.data::<PathPattern>().map_or("", |pattern| &*pattern.0);
    let path: Vec<_> = pattern.split('/').map(|part| if part.starts_with(':') { "{id}" } else { part }).collect();
    format!("{} {}", request.method(), path.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_one_line_a_second_for_each_reason() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        assert_eq!(log.due("missing", "address:192.0.2.1", now), Some(0));
        for _ in 0..200 {
            assert_eq!(log.due("missing", "address:192.0.2.1", now), None);
        }
        assert_eq!(log.due("malformed", "address:192.0.2.1", now), Some(0), "another reason");
        assert_eq!(log.due("missing", "address:192.0.2.2", now), Some(0), "another caller");
        assert_eq!(log.due("missing", "address:192.0.2.1", now + APART), Some(200));
    }

    #[test]
    fn any_number_of_callers_has_a_bounded_number_of_lines() {
        let (log, now) = (RefusalLog::default(), Instant::now());
        let lines = |now| (0..5 * MOST).filter(|n| log.due("missing", &n.to_string(), now).is_some()).count();
        assert_eq!((lines(now), lines(now + APART)), (MOST, MOST));
        let kept = log.0.lock().expect("a lock");
        assert_eq!((kept.by_caller.len(), kept.pruned_at), (MOST, Some(now + APART)));
    }
}
