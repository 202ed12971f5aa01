//! Markdown page of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Report, Settings};
use crate::torture::bench::figure;
use crate::torture::bench::workload::Workload;

impl Report {
    /// The tables without the explanations, for the terminal.
    pub(in crate::torture::bench) fn summary(&self) -> String {
        format!("{}\n{}{}", self.rates_table(), self.table_of_targets(), self.table_of_failures())
    }

    pub(super) fn page(&self) -> String {
        let Settings { rounds, seconds, warm_up, connections, users, commands, backlog, apis, workers, set } =
            &self.settings;
        let set: Vec<String> = set.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let set = if set.is_empty() { String::new() } else { format!(" Settings: {}.", set.join(", ")) };
        format!(
            "# Rollcall beside Express and the bare servers\n\n{}\n\n\
             {rounds} rounds, each with every workload for {seconds} s after {warm_up} s of warm-up; {connections} connections, \
             {users} users and {commands} command rows before the first round, a backlog of {backlog}, {apis} API(s), \
             {workers} worker(s).{set} Figures are medians over the rounds (lowest to highest). A ratio is the median of the \
             ratios within a round, so that a change of the machine's speed meets both sides.\n\n\
             ## Targets\n\n{}{}\n## Rates and latencies\n\n{}\n![Rates](rates.svg)\n\n\
             Latencies of workloads with a rate in their name count from the moment at which the request was due. Left: \
             accepted and not applied one second after the end of the load. Limit: the generator ran ahead of the worker \
             without one.\n\n\
             ## Costs\n\nFor each answer or, where commands are applied, each command. CPU time is of whole process trees. \
             Memory is resident memory; where there are several processes, as of PostgreSQL, their proportional set \
             size.\n\n{}\n![CPU time](cpu.svg)\n",
            self.machine.describe(),
            self.table_of_targets(),
            self.table_of_failures(),
            self.rates_table(),
            self.costs_table(),
        )
    }

    fn rates_table(&self) -> String {
        let mut table = String::from(
            "| workload | per second | against its peer | p50 ms | p99 ms | errors | left | limit |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for workload in Workload::in_order() {
            let Some(rate) = self.rate(workload) else { continue };
            let peer = match workload.peer() {
                None => "1".to_owned(),
                Some(peer) => text(self.rate_ratio(workload, peer).map(|ratio| ratio.median), 2, " ×"),
            };
            let errors = self.spread(workload, |sample| Some(figure(sample.errors))).map(|spread| spread.max);
            let left = self.spread(workload, |sample| sample.left.map(figure)).map(|spread| spread.max);
            // A write to a String does not fail.
            let _ = writeln!(
                table,
                "| {} | {:.0} ({:.0} to {:.0}) | {peer} | {} | {} | {} | {} | {} |",
                workload.title(),
                rate.median,
                rate.min,
                rate.max,
                text(self.median(workload, |sample| sample.p50_ms), 1, ""),
                text(self.median(workload, |sample| sample.p99_ms), 1, ""),
                text(errors, 0, ""),
                text(left, 0, ""),
                text(self.median(workload, |sample| sample.limit), 0, ""),
            );
        }
        table
    }

    fn costs_table(&self) -> String {
        let mut table = String::from(
            "| workload | CPU µs | cores busy | memory MiB | transactions | rows written | WAL bytes | round trips |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for workload in Workload::in_order() {
            if self.rate(workload).is_none() {
                continue;
            }
            let database = self.medians(workload, |sample| &sample.database);
            let each = |name: &str, decimals: usize| text(database.get(name).copied(), decimals, "");
            let _ = writeln!(
                table,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                workload.title(),
                by_process(&self.medians(workload, |sample| &sample.cpu_us)),
                text(self.median(workload, |sample| Some(sample.busy * 100.0)), 0, " %"),
                by_process(&self.medians(workload, |sample| &sample.memory_mib)),
                each("transactions", 3),
                each("rows", 2),
                each("wal_bytes", 0),
                each("statements", 3),
            );
        }
        table
    }

    fn table_of_failures(&self) -> String {
        if self.failures.is_empty() {
            return String::new();
        }
        let mut table = String::from("\n| workload without a sample | round | why |\n| --- | --- | --- |\n");
        for failure in &self.failures {
            let error = failure.error.replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(table, "| {} | {} | {error} |", failure.workload, failure.round);
        }
        table
    }
}

fn text(figure: Option<f64>, decimals: usize, unit: &str) -> String {
    figure.map_or("–".to_owned(), |figure| format!("{figure:.decimals$}{unit}"))
}

fn by_process(figures: &BTreeMap<String, f64>) -> String {
    let shown = figures.iter().map(|(name, figure)| format!("{name} {figure:.0}"));
    shown.collect::<Vec<_>>().join(", ")
}
