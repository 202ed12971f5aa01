//! `rollcall torture`: faults against a system of its own under load, and a verdict on every promise that it gave.
//!
//! The system is real: the executables of this build, a private PostgreSQL and RabbitMQ, and a proxy between each service
//! and each server. The schedule of faults comes from the seed, so a run can be repeated; what the operating system makes
//! of it differs from run to run. In reading order:
//!
//! 1. `system`: the servers and the services; `proxy`: the network between them.
//! 2. `load`: clients, which remember as `promises` what they were told.
//! 3. `schedule`: which fault comes next; `faults`: what it does; `illness`: what makes dead letters, and who replays them.
//! 4. `verdict`: what the rows say of the promises.

mod faults;
mod illness;
mod load;
#[cfg(feature = "mutants")]
mod mutants;
mod promises;
mod proxy;
mod schedule;
mod system;
mod verdict;

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::say;
use load::Load;
use schedule::Schedule;
use system::System;
use verdict::Verdict;

/// How long the last outcome may take once everything runs again.
const SETTLE_DEADLINE: Duration = Duration::from_mins(2);
/// Between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to go on
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// What decides the schedule; printed, and chosen at random when left out
    #[arg(long)]
    seed: Option<u64>,
    /// API instances
    #[arg(long, default_value_t = 2, value_parser = at_least_one())]
    apis: usize,
    /// Workers; with one there is nobody to take over
    #[arg(long, default_value_t = 3, value_parser = at_least_one())]
    workers: usize,
    /// Clients, each with up to four commands in flight for a user of its own
    #[arg(long, default_value_t = 16, value_parser = at_least_one())]
    clients: usize,
    /// A fault that the workers are given, and that must be found: then the run succeeds
    #[cfg(feature = "mutants")]
    #[arg(long, value_parser = mutants::parse)]
    mutant: Option<worker::mutants::Mutant>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes".to_owned())?;
    if minutes > 0.0 && minutes <= 7.0 * 24.0 * 60.0 { Ok(minutes) } else { Err("above 0, up to a week".to_owned()) }
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=100)
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    #[cfg(feature = "mutants")]
    if let Some(mutant) = arguments.mutant {
        return mutants::run(&arguments, mutant).await;
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    say(format_args!(
        "seed {seed}: {} APIs, {} workers, {} clients",
        arguments.apis, arguments.workers, arguments.clients
    ));
    let verdict = torture(&arguments, seed, &[]).await?;
    say(&verdict);
    if !verdict.kept() {
        bail!("promises were broken; repeat with --seed {seed}");
    }
    Ok(())
}

/// A whole run, with further environment variables for the services.
async fn torture(arguments: &Arguments, seed: u64, environment: &[(&str, &str)]) -> anyhow::Result<Verdict> {
    let mut system = System::start(arguments.apis, arguments.workers, environment).await?;
    let load = Load::start(system.bases(), arguments.clients, seed)?;
    let mut schedule = Schedule::new(StdRng::seed_from_u64(seed));

    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut progress = Progress::new(length);
    while progress.began.elapsed() < length {
        let fault = schedule.next(&mut system, &load).await?;
        progress.tell(&format!("{} accepted, {} faults, last: {fault}", load.accepted(), schedule.count()));
    }
    progress.bar.finish_and_clear();

    system.heal().await?;
    illness::cure(&system).await?;
    let promises = load.finish().await;
    let mut verdict = verdict::judge(&system, &promises, SETTLE_DEADLINE).await?;
    verdict.add_stuck(system.stop().await?);
    system.end().await?;
    say(format_args!("faults     {} ({})", schedule.count(), schedule.summary()));
    Ok(verdict)
}

/// A bar on a terminal, else a line now and then.
struct Progress {
    began: Instant,
    told_at: Instant,
    length: Duration,
    bar: ProgressBar,
}

impl Progress {
    fn new(length: Duration) -> Self {
        // The template is fixed and valid; without it the bar still shows, only plainer.
        let bar = ProgressBar::new(length.as_secs());
        let bar = match ProgressStyle::with_template("{bar:20} {pos}/{len} s  {msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self { began: Instant::now(), told_at: Instant::now(), length, bar }
    }

    fn tell(&mut self, line: &str) {
        let elapsed = self.began.elapsed().as_secs();
        self.bar.set_position(elapsed);
        self.bar.set_message(line.to_owned());
        if self.bar.is_hidden() && self.told_at.elapsed() > LINE_INTERVAL {
            self.told_at = Instant::now();
            say(format_args!("{elapsed}/{} s  {line}", self.length.as_secs()));
        }
    }
}
