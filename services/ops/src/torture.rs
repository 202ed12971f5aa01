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
//!
//! `budget` is another run on the same system, which looks at nothing but connections.

mod budget;
mod faults;
mod illness;
mod load;
#[cfg(feature = "mutants")]
mod mutants;
mod progress;
mod promises;
mod proxy;
mod schedule;
mod system;
mod verdict;

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::builder::RangedU64ValueParser;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sqlx::Connection;

use crate::output::say;
use load::Load;
use progress::Progress;
use schedule::{DECK, Deck, Schedule};
use system::{Plan, System};
use verdict::Verdict;

/// See [`Course::patience`].
const SETTLE_DEADLINE: Duration = Duration::from_mins(2);

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
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
    #[command(subcommand)]
    part: Option<Part>,
}

/// Only a part of what there is to be tortured.
#[derive(clap::Subcommand)]
enum Part {
    /// Let instances come, go and fail on few database connections, and judge whether the connection budget holds
    Budget(budget::Arguments),
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes".to_owned())?;
    if minutes > 0.0 && minutes <= 7.0 * 24.0 * 60.0 { Ok(minutes) } else { Err("above 0, up to a week".to_owned()) }
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=100)
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(Part::Budget(arguments)) = arguments.part {
        return budget::run(arguments).await;
    }
    #[cfg(feature = "mutants")]
    if let Some(mutant) = arguments.mutant {
        return mutants::run(&arguments, mutant).await;
    }
    let seed = arguments.seed.unwrap_or_else(rand::random);
    say(format_args!(
        "seed {seed}: {} APIs, {} workers, {} clients",
        arguments.apis, arguments.workers, arguments.clients
    ));
    let course = Course { seed, deck: &DECK, environment: &[], patience: SETTLE_DEADLINE };
    let verdict = torture(&arguments, &course).await?;
    say(&verdict);
    if !verdict.kept() {
        bail!("promises were broken; repeat with --seed {seed}");
    }
    Ok(())
}

/// What happens in a run.
struct Course<'a> {
    seed: u64,
    deck: &'static Deck,
    /// Further variables for the services.
    environment: &'a [(&'a str, &'a str)],
    /// How long the last outcome may take once everything runs again.
    patience: Duration,
}

/// A whole run.
async fn torture(arguments: &Arguments, course: &Course<'_>) -> anyhow::Result<Verdict> {
    let &Course { seed, deck, environment, patience } = course;
    let (apis, workers) = (arguments.apis, arguments.workers);
    let mut system = System::prepare(&Plan { apis, workers, environment, max_connections: None, role: None }).await?;
    let mut connection = system.database().await?;
    verdict::observe(&mut connection).await?;
    illness::infect(&mut connection).await?;
    connection.close().await?;
    system.heal().await?;
    verdict::subscribe(system.stack.rabbitmq.url()).await?;
    let load = Load::start(system.bases(), arguments.clients, seed)?;
    let mut schedule = Schedule::new(StdRng::seed_from_u64(seed), deck);

    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    let began = Instant::now();
    let mut progress = Progress::new(length.as_secs(), "s");
    while began.elapsed() < length {
        let fault = schedule.next(&mut system, &load).await?;
        let line = format!("{} accepted, {} faults, last: {fault}", load.accepted(), schedule.count());
        progress.tell(began.elapsed().as_secs(), &line);
    }
    progress.finish();

    system.heal().await?;
    illness::cure(&system).await?;
    let promises = load.finish().await;
    let mut verdict = verdict::judge(&system, &promises, patience).await?;
    verdict.add_stuck(system.stop().await?);
    system.end(!verdict.kept()).await?;
    say(format_args!("faults     {} ({})", schedule.count(), schedule.summary()));
    Ok(verdict)
}
