//! Targets: the ratios that a run has to show.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::{Report, Spread};
use crate::torture::bench::figure;
use crate::torture::bench::sample::Sample;
use crate::torture::bench::workload::Workload as W;

/// A target and the ratios of the rounds, judged by their median.
#[derive(Serialize)]
pub(super) struct Target {
    what: &'static str,
    bound: Bound,
    ratio: Spread,
    met: bool,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, measured: f64) -> bool {
        match self {
            Self::AtLeast(bound) => measured >= bound,
            Self::AtMost(bound) => measured <= bound,
        }
    }
}

impl Report {
    /// Those whose workloads were measured.
    pub(super) fn targets(&self) -> Vec<Target> {
        use Bound::{AtLeast, AtMost};
        let (p50, p99) = (|sample: &Sample| sample.p50_ms, |sample: &Sample| sample.p99_ms);
        let postgresql = |sample: &Sample| sample.cpu_us.get("postgresql").copied();
        let left = self.spread(W::Sustained, |sample| sample.left.map(figure));
        let insert = W::ExpressInsert;
        let (one, one_peer) = (W::WaitedOne, W::ExpressInsertOne);
        let (paced, paced_peer) = (W::WaitedPaced, W::ExpressInsertPaced);
        let rows = [
            ("accept and apply: rate, Express's insert", AtLeast(2.5), self.rate_ratio(W::Sustained, insert)),
            ("accept and apply: the same, moonshot", AtLeast(4.0), self.rate_ratio(W::Sustained, insert)),
            ("accept and apply: commands left after 1 s (count)", AtMost(0.0), left),
            (
                "accept and apply: PostgreSQL's CPU per command, that of a drain",
                AtMost(1.5),
                self.ratio(W::Sustained, W::Drain, postgresql, postgresql),
            ),
            ("waited create: rate, Express's insert", AtLeast(1.2), self.rate_ratio(W::Waited, insert)),
            ("waited create, one connection: p50, Express's", AtMost(3.0), self.ratio(one, one_peer, p50, p50)),
            ("waited create, 200 per second: p50, Express's", AtMost(2.5), self.ratio(paced, paced_peer, p50, p50)),
            ("waited create, 200 per second: p99, Express's", AtMost(3.0), self.ratio(paced, paced_peer, p99, p99)),
            ("accept: rate, Express's insert", AtLeast(5.0), self.rate_ratio(W::Accept, insert)),
            ("accept: rate, raw confirmed publishes", AtLeast(0.5), self.rate_ratio(W::Accept, W::RawPublishes)),
            ("drain: rate, raw set-based batches", AtLeast(0.6), self.rate_ratio(W::Drain, W::RawBatches)),
            ("drain with two workers: rate, with one", AtLeast(1.0), self.rate_ratio(W::DrainTwo, W::Drain)),
            ("read: rate, Express's", AtLeast(12.0), self.rate_ratio(W::Read, W::ExpressRead)),
            ("read: rate, a constant answer", AtLeast(0.55), self.rate_ratio(W::Read, W::Constant)),
            ("read: p99, median of Express's", AtMost(1.0), self.ratio(W::Read, W::ExpressRead, p99, p50)),
            (
                "read: memory of API and worker, Express's",
                AtMost(1.0),
                self.ratio(W::Read, W::ExpressRead, memory_of_rollcall, memory_of_express),
            ),
            (
                "accept and apply: memory of API and worker, Express's",
                AtMost(1.0),
                self.ratio(W::Sustained, insert, memory_of_rollcall, memory_of_express),
            ),
        ];
        let measured = rows.into_iter().filter_map(|(what, bound, ratio)| Some((what, bound, ratio?)));
        measured.map(|(what, bound, ratio)| Target { what, bound, ratio, met: bound.holds(ratio.median) }).collect()
    }

    /// As a table.
    pub(super) fn table_of_targets(&self) -> String {
        let mut table = String::from(
            "| what, against what | target | median ratio (lowest to highest) | |\n| --- | --- | --- | --- |\n",
        );
        for Target { what, bound, ratio, met } in self.targets() {
            let bound = match bound {
                Bound::AtLeast(bound) => format!("at least {bound}"),
                Bound::AtMost(bound) => format!("at most {bound}"),
            };
            let Spread { min, median, max } = ratio;
            let verdict = if met { "pass" } else { "short" };
            // A write to a String does not fail.
            let _ = writeln!(table, "| {what} | {bound} | {median:.2} ({min:.2} to {max:.2}) | {verdict} |");
        }
        table
    }
}

fn memory_of_rollcall(sample: &Sample) -> Option<f64> {
    let memory: &BTreeMap<String, f64> = &sample.memory_mib;
    Some(memory.get("api")? + memory.get("worker")?)
}

fn memory_of_express(sample: &Sample) -> Option<f64> {
    sample.memory_mib.get("express").copied()
}
