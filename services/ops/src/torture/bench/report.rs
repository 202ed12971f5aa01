//! Report of a run: medians and ratios, as JSON for programs and as Markdown with plots for people.

mod machine;
mod page;
mod spread;
mod targets;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

pub(super) use self::machine::Machine;
pub(super) use self::spread::Spread;
use super::Arguments;
use super::chart;
use super::sample::Sample;
use super::workload::Workload;

#[derive(Serialize)]
pub(super) struct Report {
    machine: Machine,
    settings: Settings,
    samples: BTreeMap<String, Vec<Sample>>,
    failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Settings {
    rounds: u32,
    seconds: u64,
    warm_up: u64,
    connections: usize,
    users: i64,
    commands: i64,
    backlog: u64,
    apis: usize,
    workers: usize,
    set: Vec<(String, String)>,
}

/// A workload that gave no sample in a round.
#[derive(Serialize)]
struct Failure {
    workload: String,
    round: u32,
    error: String,
}

/// What stands in the JSON beside the samples.
#[derive(Serialize)]
struct Document<'r> {
    #[serde(flatten)]
    report: &'r Report,
    summary: BTreeMap<String, BTreeMap<&'static str, Spread>>,
    targets: Vec<targets::Target>,
}

impl Report {
    pub(super) fn new(arguments: &Arguments, machine: Machine) -> Self {
        let settings = Settings {
            rounds: arguments.rounds,
            seconds: arguments.seconds,
            warm_up: arguments.warm_up,
            connections: arguments.connections,
            users: arguments.users,
            commands: arguments.commands,
            backlog: arguments.backlog,
            apis: arguments.apis,
            workers: arguments.workers,
            set: arguments.settings(),
        };
        Self { machine, settings, samples: BTreeMap::new(), failures: Vec::new() }
    }

    pub(super) fn add(&mut self, workload: Workload, round: u32, sample: Sample) {
        self.samples.entry(workload.name()).or_default().push(Sample { round, ..sample });
    }

    pub(super) fn add_failure(&mut self, workload: Workload, round: u32, error: &anyhow::Error) {
        self.failures.push(Failure { workload: workload.name(), round, error: format!("{error:#}") });
    }

    /// The machine as a paragraph.
    pub(super) fn machine(&self) -> String {
        self.machine.describe()
    }

    /// How many workloads gave no sample.
    pub(super) fn failures(&self) -> usize {
        self.failures.len()
    }

    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
        };
        let summary = Workload::in_order().into_iter().filter(|workload| self.rate(*workload).is_some());
        let summary = summary.map(|workload| (workload.name(), self.summary_of(workload))).collect();
        let document = Document { report: self, summary, targets: self.targets() };
        write("bench.json", &serde_json::to_string_pretty(&document)?)?;
        write("rates.svg", &chart::rates(&self.rates()))?;
        write("cpu.svg", &chart::stacks(&self.costs()))?;
        write("bench.md", &self.page())
    }

    fn summary_of(&self, workload: Workload) -> BTreeMap<&'static str, Spread> {
        let spreads = [
            ("per_second", self.rate(workload)),
            ("p50_ms", self.spread(workload, |sample| sample.p50_ms)),
            ("p99_ms", self.spread(workload, |sample| sample.p99_ms)),
            ("busy", self.spread(workload, |sample| Some(sample.busy))),
        ];
        spreads.into_iter().filter_map(|(name, spread)| Some((name, spread?))).collect()
    }

    fn rates(&self) -> Vec<(&'static str, Spread)> {
        let spread = |workload: Workload| Some((workload.title(), self.rate(workload)?));
        Workload::in_order().into_iter().filter_map(spread).collect()
    }

    /// CPU time by process of what a service does.
    fn costs(&self) -> Vec<(&'static str, BTreeMap<String, f64>)> {
        let measured = Workload::in_order().into_iter().filter(|workload| self.rate(*workload).is_some());
        measured.map(|workload| (workload.title(), self.medians(workload, |sample| &sample.cpu_us))).collect()
    }

    pub(super) fn spread(&self, workload: Workload, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.samples.get(&workload.name())?.iter().filter_map(figure).collect())
    }

    pub(super) fn median(&self, workload: Workload, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        self.spread(workload, figure).map(|spread| spread.median)
    }

    pub(super) fn rate(&self, workload: Workload) -> Option<Spread> {
        self.spread(workload, |sample| Some(sample.per_second))
    }

    /// The median of each of several figures.
    pub(super) fn medians(
        &self,
        workload: Workload,
        figures: fn(&Sample) -> &BTreeMap<String, f64>,
    ) -> BTreeMap<String, f64> {
        let samples = self.samples.get(&workload.name()).map(Vec::as_slice).unwrap_or_default();
        let names = samples.iter().flat_map(|sample| figures(sample).keys());
        let median =
            |name: &String| Some((name.clone(), self.median(workload, |sample| figures(sample).get(name).copied())?));
        names.filter_map(median).collect()
    }

    /// The ratio within each round that has both.
    pub(super) fn ratio(
        &self,
        workload: Workload,
        peer: Workload,
        figure: impl Fn(&Sample) -> Option<f64>,
        peer_figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<Spread> {
        let (own, peers) = (self.samples.get(&workload.name())?, self.samples.get(&peer.name())?);
        let ratio = |own: &Sample| {
            let peer = peers.iter().find(|peer| peer.round == own.round)?;
            Some(figure(own)? / peer_figure(peer)?)
        };
        Spread::of(own.iter().filter_map(ratio).collect())
    }

    pub(super) fn rate_ratio(&self, workload: Workload, peer: Workload) -> Option<Spread> {
        self.ratio(workload, peer, |sample| Some(sample.per_second), |sample| Some(sample.per_second))
    }
}
