//! What was noted of a run, and whether the budget held. Times depend on the machine: they are compared with their targets,
//! but decide nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::shares::Move;
use super::witness::{INTERVAL, Seen, USED};

/// How many findings of a kind are shown one by one.
const SHOWN: usize = 10;

/// How an instance went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Gone {
    Left,
    Killed,
    Frozen,
    Silenced,
}

impl Gone {
    const ALL: [Self; 4] = [Self::Left, Self::Killed, Self::Frozen, Self::Silenced];

    /// From when the time counts.
    fn name(self) -> &'static str {
        match self {
            Self::Left => "left, since its process ended",
            Self::Killed => "killed, since then",
            Self::Frozen => "frozen, since then",
            Self::Silenced => "silenced, since then",
        }
    }

    /// A second (half of it until the next heartbeat, less for the grace) or the time to live of a lease (5 s), and something
    /// for the others to hear of it.
    fn target(self) -> Duration {
        Duration::from_millis(match self {
            Self::Left => 150,
            Self::Killed => 1_150,
            Self::Frozen | Self::Silenced => 5_500,
        })
    }
}

/// What was noted while it went on.
#[derive(Debug, Default)]
pub(super) struct Record {
    events: BTreeMap<&'static str, u32>,
    most: usize,
    moved: BTreeMap<Gone, Vec<Duration>>,
    /// Departures during which something else happened, too.
    blurred: u32,
    /// Who was not ready and did not say why, and what was not used.
    pub(super) unwell: Vec<String>,
}

impl Record {
    pub(super) fn happened(&mut self, event: &'static str, running: usize) {
        *self.events.entry(event).or_default() += 1;
        self.most = self.most.max(running);
    }

    pub(super) fn moved(&mut self, gone: Gone, moved: Move) {
        match moved {
            Move::After(time) => self.moved.entry(gone).or_default().push(time),
            Move::Blurred => self.blurred += 1,
            Move::Never => self.unwell.push(format!("the share of one that is gone ({}) did not move", gone.name())),
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.events.values().sum()
    }
}

/// Everything that decides, and what else is worth knowing.
pub(super) struct Verdict {
    pub(super) record: Record,
    pub(super) seen: Seen,
    pub(super) budget: i32,
    /// Requests answered, and refused for now.
    pub(super) answered: u64,
    pub(super) refused: u64,
    pub(super) took: Duration,
    /// Lines of logs about connections that the server refused for their number.
    pub(super) refusals: Vec<String>,
}

impl Verdict {
    pub(super) fn kept(&self) -> bool {
        // A run that was not watched proves nothing.
        self.seen.samples > 0 && self.seen.over == 0 && self.refusals.is_empty() && self.record.unwell.is_empty()
    }
}

/// In hundredths, with one decimal.
#[expect(clippy::cast_precision_loss, reason = "counts of samples are far below 2^52")]
fn part(of: u64, all: u64) -> f64 {
    100.0 * of as f64 / all.max(1) as f64
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { record, seen, budget, .. } = self;
        let events: Vec<_> = record.events.iter().map(|(event, count)| format!("{event} {count}")).collect();
        let events = events.join(", ");
        writeln!(f, "events     {} in {:.0} s ({events})", record.count(), self.took.as_secs_f64())?;
        writeln!(f, "instances  {} at most", record.most)?;
        writeln!(f, "requests   {} answered, {} refused for now", self.answered, self.refused)?;
        writeln!(
            f,
            "samples    {}, one each {} ms; {} late, the largest gap {} ms; the server was away {} times",
            seen.samples,
            INTERVAL.as_millis(),
            seen.late,
            seen.widest.as_millis(),
            seen.outages,
        )?;
        writeln!(f, "most       {} of {budget} connections at once, {} promised", seen.most, seen.promised)?;
        writeln!(
            f,
            "used       {USED} % of what can be shared is granted in {:.1} % of {} calm samples; {:.1} % of the budget is taken",
            part(seen.used, seen.calm),
            seen.calm,
            part(seen.taken, seen.budget),
        )?;
        for gone in Gone::ALL {
            let mut times = record.moved.get(&gone).cloned().unwrap_or_default();
            times.sort_unstable();
            write!(f, "moved      {}: ", gone.name())?;
            match times.last() {
                Some(longest) => writeln!(
                    f,
                    "{} seen alone, {} ms median, {} ms p99, {} ms at most ({} {} ms)",
                    times.len(),
                    rank(&times, 50).as_millis(),
                    rank(&times, 99).as_millis(),
                    longest.as_millis(),
                    if rank(&times, 99) <= gone.target() { "p99 within" } else { "P99 ABOVE" },
                    gone.target().as_millis(),
                )?,
                None => writeln!(f, "none seen alone")?,
            }
        }
        writeln!(f, "blurred    {} departures with something else going on", record.blurred)?;
        list(f, "over", seen.over, &seen.excesses)?;
        list(f, "refused", self.refusals.len() as u64, &self.refusals)?;
        list(f, "unwell", record.unwell.len() as u64, &record.unwell)?;
        write!(f, "{}", if self.kept() { "the budget held" } else { "THE BUDGET DID NOT HOLD" })
    }
}

fn list(f: &mut fmt::Formatter<'_>, name: &str, count: u64, some: &[String]) -> fmt::Result {
    writeln!(f, "{name:<10} {count}")?;
    for one in some.iter().take(SHOWN) {
        writeln!(f, "  {one}")?;
    }
    Ok(())
}

/// The smallest that so many hundredths do not exceed; of a list in order that is not empty.
fn rank(times: &[Duration], hundredths: usize) -> Duration {
    times[(times.len() * hundredths).div_ceil(100).saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_nearest_rank() {
        let times: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        for (hundredths, expected) in [(0, 1), (50, 100), (99, 198), (100, 200)] {
            assert_eq!(rank(&times, hundredths), Duration::from_millis(expected));
        }
        assert_eq!(rank(&times[..1], 99), Duration::from_millis(1));
    }

    #[test]
    fn a_verdict_without_samples_or_with_one_finding_is_no_success() {
        let verdict = |samples, over, refusals: &[&str], unwell: &[&str]| Verdict {
            record: Record { unwell: unwell.iter().map(ToString::to_string).collect(), ..Record::default() },
            seen: Seen { samples, over, ..Seen::default() },
            budget: 8,
            answered: 0,
            refused: 0,
            took: Duration::ZERO,
            refusals: refusals.iter().map(ToString::to_string).collect(),
        };
        assert!(verdict(1, 0, &[], &[]).kept());
        assert!(!verdict(0, 0, &[], &[]).kept());
        assert!(!verdict(1, 1, &[], &[]).kept());
        assert!(!verdict(1, 0, &["53300"], &[]).kept());
        assert!(!verdict(1, 0, &[], &["not ready"]).kept());
    }
}
