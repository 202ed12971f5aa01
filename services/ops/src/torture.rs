//! `rollcall torture`: faults against a system of its own under load, and a verdict on every promise that it gave.
//!
//! The system is real: the executables of this build, a private PostgreSQL and RabbitMQ. The schedule of faults comes from
//! the seed, so a run can be repeated; what the operating system makes of it differs from run to run.

mod load;
mod schedule;
mod system;
mod verdict;

use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::say;
use load::Load;
use schedule::Schedule;
use system::System;

/// How long the last outcome may take once everything runs again.
const SETTLE_DEADLINE: Duration = Duration::from_mins(2);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long to go on
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What decides the schedule; printed, and chosen at random when left out
    #[arg(long)]
    seed: Option<u64>,
    /// API instances
    #[arg(long, default_value_t = 2)]
    apis: usize,
    /// Workers
    #[arg(long, default_value_t = 3)]
    workers: usize,
    /// Clients, each with commands for users of its own
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    say(format_args!(
        "seed {seed}: {} APIs, {} workers, {} clients",
        arguments.apis, arguments.workers, arguments.clients
    ));
    let mut system = System::start(arguments.apis, arguments.workers).await?;
    let load = Load::start(system.bases(), arguments.clients, seed)?;
    let mut schedule = Schedule::new(StdRng::seed_from_u64(seed));

    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    let started = Instant::now();
    let bar = progress(length);
    while started.elapsed() < length {
        let fault = schedule.next(&mut system, &load).await?;
        bar.set_position(started.elapsed().as_secs());
        bar.set_message(format!("{} accepted, {} faults, last: {fault}", load.accepted(), schedule.count()));
    }
    bar.finish_and_clear();

    system.heal().await?;
    let promises = load.finish().await;
    let verdict = verdict::judge(&system, &promises, SETTLE_DEADLINE).await?;
    let faults = schedule.summary();
    system.stop().await?;
    say(format_args!("faults     {} ({faults})", schedule.count()));
    say(&verdict);
    if !verdict.kept() {
        bail!("promises were broken; repeat with --seed {seed}");
    }
    Ok(())
}

fn progress(length: Duration) -> ProgressBar {
    // The template is fixed and valid; without it the bar still shows, only plainer.
    let bar = ProgressBar::new(length.as_secs());
    match ProgressStyle::with_template("{bar:20} {pos}/{len} s  {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
