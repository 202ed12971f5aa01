//! `rollcall torture bench`: Rollcall, the tutorial's Express service and the bare servers, measured in one run.
//!
//! Every workload runs once in each round, so that a change of the machine's speed meets all of them. Figures are medians over
//! the rounds, and what is judged is their ratios. In reading order:
//!
//! 1. `workload`: the closed list of what is measured, and which processes it needs.
//! 2. `site`: the servers, the databases and the processes; `process`: one of them.
//! 3. `generator`: closed-loop load by wrk, open-loop load by this process; `raw`: the bare servers.
//! 4. `runner`: one workload, from its warm-up to a `sample`; `meter`: what it costs, by `usage` (processes) and `work`
//!    (PostgreSQL).
//! 5. `report`: medians, ratios and targets as JSON and Markdown; `chart`: the plots.
//! 6. `growth`: the same on larger directories and with more processes.

mod chart;
mod generator;
mod growth;
mod meter;
mod process;
mod raw;
mod report;
mod runner;
mod sample;
mod site;
mod usage;
mod work;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::builder::RangedU64ValueParser;

use super::progress::Progress;
use crate::output::say;
use report::{Machine, Report};
use runner::Runner;
use site::Site;
use workload::{Generator, Workload};

const AFTER_HELP: &str = "\
Needs PostgreSQL and RabbitMQ as `rollcall up` does, wrk, and Node.js with npm, which installs express, pg and amqplib from the
registry that it is configured with; with --only, what the chosen workloads need. Writes bench.json, bench.md, rates.svg and
cpu.svg. The exit status is 0 when every workload gave a sample in every round, whether or not the targets are met. Figures
of one run can be compared with each other only.";

#[derive(Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// How often every workload runs; figures are medians over the rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long a workload is measured in each round, in seconds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How long each workload runs before it is measured, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    warm_up: u64,
    /// Connections of the load generator, messages in flight of raw publishes
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(2..=10_000))]
    connections: usize,
    /// Users in each directory before the first round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(i64).range(1..=100_000_000))]
    users: i64,
    /// Rows of decided commands before the first round
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..=1_000_000_000))]
    commands: i64,
    /// Commands that wait before a drain; what accepting left is topped up to it
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    backlog: u64,
    /// API instances; the connections are divided among them
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=16))]
    apis: usize,
    /// Workers, except of drains
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=16))]
    workers: usize,
    /// Measure only these workloads, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// Have PostgreSQL count statements, for the column of round trips; costs each statement a little
    #[arg(long)]
    statements: bool,
    /// A setting of Rollcall's services; can be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Folder for the report; made if it does not exist
    #[arg(long, default_value = "bench")]
    out: PathBuf,
    #[command(subcommand)]
    part: Option<Part>,
}

/// A further course.
#[derive(Clone, clap::Subcommand)]
enum Part {
    /// Measure short rows on larger directories and with more processes, one change at a time
    Growth(growth::Arguments),
}

impl Arguments {
    /// Of Rollcall's services.
    fn settings(&self) -> Vec<(String, String)> {
        self.set.clone()
    }

    fn workloads(&self) -> Vec<Workload> {
        let mut workloads = Workload::in_order();
        workloads.retain(|workload| self.only.is_empty() || self.only.contains(workload));
        workloads
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE, for example PARTITIONS=2")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures say nothing; use `cargo run --release -- torture bench`");
    }
    if let Some(Part::Growth(arguments)) = arguments.part {
        return growth::run(arguments).await;
    }
    make_folder(&arguments.out)?;
    let report = measure(&arguments, |report| report.write(&arguments.out)).await?;
    say(report.summary());
    say(arguments.out.join("bench.md").display());
    let failures = report.failures();
    ensure!(failures == 0, "{failures} workload(s) gave no sample; the report says why");
    Ok(())
}

/// Runs every round, and keeps what was measured by `keep` after each of them. A workload that fails is in the report.
async fn measure(arguments: &Arguments, keep: impl Fn(&Report) -> anyhow::Result<()>) -> anyhow::Result<Report> {
    let workloads = arguments.workloads();
    let generator = workloads.iter().any(|workload| workload.generator() == Generator::Wrk);
    let generator = if generator { Some(generator::wrk_version().await?) } else { None };
    let needs_node = workloads.iter().any(|workload| workload.needs_node());
    let mut site = Site::prepare(arguments, needs_node).await?;
    let machine = Machine::look(&mut site, generator).await?;
    let (mut report, mut runner) = (Report::new(arguments, machine), Runner::new(site, arguments));
    let mut progress = Progress::new(u64::from(arguments.rounds) * workloads.len() as u64, "workloads");
    let mut position = 0;
    for round in 1..=arguments.rounds {
        for (index, &workload) in workloads.iter().enumerate() {
            let end = match runner.run(workload).await {
                Ok(sample) => {
                    let end = format!("{:.0}/s", sample.per_second);
                    report.add(workload, round, sample);
                    end
                }
                Err(error) => {
                    report.add_failure(workload, round, &error);
                    runner.reset().await;
                    format!("failed: {error:#}")
                }
            };
            position += 1;
            let next = workloads.get(index + 1).or(workloads.first()).map(|next| next.name()).unwrap_or_default();
            progress.tell(position, &format!("round {round}: {} {end}; next {next}", workload.name()));
        }
        runner.end_round().await?;
        keep(&report)?;
    }
    progress.finish();
    runner.end().await?;
    Ok(report)
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn figure(count: u64) -> f64 {
    count as f64
}
