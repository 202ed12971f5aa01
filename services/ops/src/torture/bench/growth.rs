//! `rollcall torture bench growth`: short rows on larger directories and with more processes, and what limits each.
//!
//! Each case differs from the first one in one thing, and has servers and databases of its own. Rates of different cases meet
//! a machine of different speed, so each case measures Express, too, and ratios are compared.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde::Serialize;

use super::report::Report;
use super::sample::Sample;
use super::workload::Workload;
use super::{make_folder, measure};
use crate::output::say;

/// Rows of a case.
const WORKLOADS: [Workload; 6] = [
    Workload::ExpressRead,
    Workload::ExpressInsert,
    Workload::Read,
    Workload::Sustained,
    Workload::Waited,
    Workload::Accept,
];
const PARTITIONS: u16 = 16;
/// Above this share of all cores it is the cores that limit.
const BUSY: f64 = 0.85;
/// How much the ratio of reads may change from the fewest users to the most.
const CHANGE: f64 = 0.15;

#[derive(Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Users in each directory; the first number is that of all other cases
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 1_000_000, 10_000_000], value_parser = clap::value_parser!(i64).range(1..=100_000_000))]
    users: Vec<i64>,
    /// Rows of decided commands
    #[arg(long, value_delimiter = ',', default_values_t = [10_000_000], value_parser = clap::value_parser!(i64).range(0..=1_000_000_000))]
    commands: Vec<i64>,
    /// API instances
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4], value_parser = clap::value_parser!(u16).range(1..=16))]
    apis: Vec<u16>,
    /// Workers
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4], value_parser = clap::value_parser!(u16).range(1..=16))]
    workers: Vec<u16>,
    /// Partitions
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 64], value_parser = clap::value_parser!(u16).range(1..=256))]
    partitions: Vec<u16>,
    /// How often every workload runs in a case
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a workload is measured, in seconds
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Connections of the load generator
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=10_000))]
    connections: u16,
    /// Folder for growth.json and growth.md; made if it does not exist
    #[arg(long, default_value = "bench")]
    out: PathBuf,
}

/// One case: what differs from the first one is set.
#[derive(Debug, Clone, Serialize)]
struct Case {
    users: i64,
    commands: i64,
    apis: u16,
    workers: u16,
    partitions: u16,
}

/// A case with its report.
#[derive(Serialize)]
struct Row {
    case: Case,
    report: Report,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    make_folder(&arguments.out)?;
    let cases = cases(&arguments);
    let mut rows: Vec<Row> = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        say(format_args!("case {} of {}: {}", number + 1, cases.len(), describe(case)));
        let report = measure(&settings(&arguments, case), |_| Ok(())).await;
        let report = report.with_context(|| describe(case))?;
        rows.push(Row { case: case.clone(), report });
        // What was measured is kept, even if a later case fails.
        let write = |name: &str, text: &str| {
            let path = arguments.out.join(name);
            std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))
        };
        write("growth.json", &serde_json::to_string_pretty(&rows)?)?;
        write("growth.md", &page(&rows))?;
    }
    say(table(&rows));
    say(arguments.out.join("growth.md").display());
    let failures: usize = rows.iter().map(|row| row.report.failures()).sum();
    ensure!(failures == 0, "{failures} workload(s) gave no sample; growth.json says why");
    Ok(())
}

/// The first one, and those that differ from it in one thing.
fn cases(arguments: &Arguments) -> Vec<Case> {
    let users = arguments.users.first().copied().unwrap_or(1);
    let first = Case { users, commands: 0, apis: 1, workers: 1, partitions: PARTITIONS };
    let mut cases = vec![first.clone()];
    cases.extend(arguments.users.iter().skip(1).map(|&users| Case { users, ..first.clone() }));
    cases.extend(arguments.commands.iter().map(|&commands| Case { commands, ..first.clone() }));
    cases.extend(arguments.apis.iter().map(|&apis| Case { apis, ..first.clone() }));
    cases.extend(arguments.workers.iter().map(|&workers| Case { workers, ..first.clone() }));
    cases.extend(arguments.partitions.iter().map(|&partitions| Case { partitions, ..first.clone() }));
    cases
}

fn settings(arguments: &Arguments, case: &Case) -> super::Arguments {
    super::Arguments {
        rounds: arguments.rounds,
        seconds: arguments.seconds,
        warm_up: 1,
        connections: arguments.connections.into(),
        users: case.users,
        commands: case.commands,
        backlog: 1,
        apis: case.apis.into(),
        workers: case.workers.into(),
        only: WORKLOADS.to_vec(),
        statements: false,
        set: vec![("PARTITIONS".to_owned(), case.partitions.to_string())],
        out: arguments.out.clone(),
        part: None,
    }
}

fn describe(case: &Case) -> String {
    let Case { users, commands, apis, workers, partitions } = case;
    format!("{users} users, {commands} command rows, {apis} API(s), {workers} worker(s), {partitions} partition(s)")
}

fn page(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    format!(
        "# Growth\n\n{}\n\nEach case differs from the first one in one thing. A cell has the rate per second, its ratio to \
         Express in the same case, and the limit: the cores, with the process that uses most of them, or waiting, when less \
         than {:.0} % of the cores are busy.\n\n{}",
        first.report.machine(),
        BUSY * 100.0,
        table(rows),
    )
}

fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| users | command rows | APIs | workers | partitions | read | accept and apply | waited create | accept, no worker |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for Row { case: Case { users, commands, apis, workers, partitions }, report } in rows {
        let cell = |workload| cell(report, workload);
        // A write to a String does not fail.
        let _ = writeln!(
            table,
            "| {users} | {commands} | {apis} | {workers} | {partitions} | {} | {} | {} | {} |",
            cell(Workload::Read),
            cell(Workload::Sustained),
            cell(Workload::Waited),
            cell(Workload::Accept),
        );
    }
    let by_users = rows.iter().filter(|row| {
        let Case { commands, apis, workers, partitions, .. } = row.case;
        (commands, apis, workers, partitions) == (0, 1, 1, PARTITIONS)
    });
    let ratio = |row: &Row| Some(row.report.rate_ratio(Workload::Read, Workload::ExpressRead)?.median);
    let ratios: Vec<f64> = by_users.filter_map(ratio).collect();
    if let (Some(first), Some(last), true) = (ratios.first(), ratios.last(), ratios.len() > 1) {
        let change = last / first - 1.0;
        let verdict = if change.abs() < CHANGE { "pass" } else { "short" };
        let _ = writeln!(
            table,
            "\nReads against Express's change by {:+.0} % from the fewest users to the most (less than {:.0} %): {verdict}.",
            change * 100.0,
            CHANGE * 100.0,
        );
    }
    table
}

fn cell(report: &Report, workload: Workload) -> String {
    let Some(rate) = report.rate(workload) else { return "failed".to_owned() };
    let ratio = workload.peer().and_then(|peer| report.rate_ratio(workload, peer));
    let ratio = ratio.map_or(String::new(), |ratio| format!(", {:.1} ×", ratio.median));
    let cpu: fn(&Sample) -> &std::collections::BTreeMap<String, f64> = |sample| &sample.cpu_us;
    let cpu = report.medians(workload, cpu);
    let total: f64 = cpu.values().sum();
    let most = cpu.iter().max_by(|(_, one), (_, other)| one.total_cmp(other));
    let most = most.map_or(String::new(), |(name, spent)| format!("{name} {:.0} %", spent / total * 100.0));
    let busy = report.median(workload, |sample| Some(sample.busy)).unwrap_or_default();
    let limit = if busy >= BUSY { "cores" } else { "waiting" };
    format!("{:.0}{ratio}; {limit} ({:.0} % busy, {most})", rate.median, busy * 100.0)
}

#[cfg(test)]
mod tests {
    use super::{Arguments, cases};

    #[test]
    fn cases_differ_from_the_first_in_one_thing() {
        let arguments = Arguments {
            users: vec![10, 1_000],
            commands: vec![500],
            apis: vec![2, 4],
            workers: vec![3],
            partitions: vec![1, 64],
            rounds: 1,
            seconds: 1,
            connections: 2,
            out: "unused".into(),
        };
        let cases = cases(&arguments);
        assert_eq!(cases.len(), 8);
        for case in &cases[1..] {
            let first = &cases[0];
            let differences = [
                case.users != first.users,
                case.commands != first.commands,
                case.apis != first.apis,
                case.workers != first.workers,
                case.partitions != first.partitions,
            ];
            assert_eq!(differences.iter().filter(|differs| **differs).count(), 1, "{case:?}");
        }
    }
}
