//! Log filter (`LOG`): a level for everything, and levels for parts of the program.
//!
//! # Why not the library's own reading?
//! It takes any word for a part of the program: `LOG=inof` is the part "inof" at every level, and silences all others.

use tracing_subscriber::filter::{LevelFilter, Targets};

use super::TRACE_TARGET;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The crates whose lines can be asked for.
const PARTS: [&str; 14] = [
    "rollcall",
    "rollcall_api",
    "rollcall_common",
    "rollcall_worker",
    "h2",
    "hyper",
    "hyper_util",
    "opentelemetry",
    "opentelemetry_otlp",
    "opentelemetry_sdk",
    "poem",
    "reqwest",
    "rustls",
    "tonic",
];

/// Reads a filter.
///
/// # Errors
/// Names the directive that would have no effect, and what can be written.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    // The failures of all other parts stay visible when the level of one is raised.
    let mut filter = Targets::new().with_default(LevelFilter::INFO);
    for directive in text.split(',').map(str::trim) {
        filter = match directive.split_once('=') {
            None => filter.with_default(level(directive)?),
            Some((part, at)) => filter.with_target(known(part.trim())?, level(at.trim())?),
        };
    }
    // The last of several for one target counts.
    Ok(filter
        // It logs returned messages with their body, which is personal data; what fails is logged where it is handled.
        .with_target("lapin", LevelFilter::OFF)
        .with_target("sqlx", LevelFilter::WARN)
        // Spans are for traces: formatting them for lines that name what matters anyway would cost each request.
        .with_target(TRACE_TARGET, LevelFilter::OFF))
}

fn level(word: &str) -> Result<LevelFilter, String> {
    let known = LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let level = word.parse().ok().filter(|_| known);
    level.ok_or_else(|| format!("{word:?} is no level; expected one of {}", LEVELS.join(", ")))
}

fn known(part: &str) -> Result<&str, String> {
    let name = part.split("::").next().unwrap_or_default();
    if PARTS.contains(&name) {
        return Ok(part);
    }
    Err(format!("{part:?} is no part of the program whose level can be set; expected one of {}", PARTS.join(", ")))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_sets_levels_of_everything_and_of_parts() {
        let filter = log_filter("warn, rollcall_worker=debug,rollcall_common::broker=off").expect("a filter");
        for (target, level, logged) in [
            ("rollcall_api", Level::WARN, true),
            ("rollcall_api", Level::INFO, false),
            ("rollcall_worker::partition", Level::DEBUG, true),
            ("rollcall_common::broker::link", Level::ERROR, false),
            ("rollcall_common::health", Level::WARN, true),
            ("lapin", Level::ERROR, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), logged, "{target} {level}");
        }
        assert!(log_filter("INFO").is_ok() && log_filter("off").is_ok());
        let part = log_filter("rollcall_api=trace").expect("a filter");
        assert!(part.would_enable("rollcall_common::shutdown", &Level::ERROR), "the others are not silenced");
    }

    #[test]
    fn a_filter_that_would_silence_everything_is_refused() {
        for (text, named) in [
            ("inof", "\"inof\" is no level"),
            ("info,debgu", "\"debgu\" is no level"),
            ("info,,debug", "\"\" is no level"),
            ("3", "\"3\" is no level"),
            ("rollcall_worker", "\"rollcall_worker\" is no level"),
            ("info,rollcall_wroker=debug", "\"rollcall_wroker\" is no part"),
            ("info,lapin=debug", "\"lapin\" is no part"),
            ("rollcall_api=", "\"\" is no level"),
            ("rollcall_api[span]=debug", "is no part"),
        ] {
            let fault = log_filter(text).expect_err(text);
            assert!(fault.contains(named) && fault.contains("expected one of"), "{fault}");
        }
    }
}
