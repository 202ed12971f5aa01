//! File descriptors: each connection of a client takes one, and what the service itself needs must not run out.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// For the servers, the log and whatever else is open.
const OWN: u64 = 256;

/// How many connections of clients there may be, of those that are wanted. Shells and supervisors set a soft limit that suits
/// programs of another time: it is raised to the hard one.
pub fn possible_connections(wanted: usize) -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Refused only above the hard limit.
    let raised = current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current };
    let possible = possible(wanted, limit);
    if possible < wanted {
        warn!(
            wanted,
            possible,
            limit,
            "fewer connections are served: each takes a file descriptor; raise the hard limit (nofile)"
        );
    }
    possible
}

fn possible(wanted: usize, limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return wanted };
    // Few are better than none.
    let left = limit.saturating_sub(OWN).max(limit / 2).max(1);
    usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_service_needs_itself_is_left() {
        for (wanted, limit, expected) in [
            (10_000, None, 10_000),
            (10_000, Some(20_000), 10_000),
            (10_000, Some(10_000), 9744),
            (10_000, Some(1024), 768),
            (100, Some(1024), 100),
            (10_000, Some(256), 128),
        ] {
            assert_eq!(possible(wanted, limit), expected, "{limit:?}");
        }
    }
}
