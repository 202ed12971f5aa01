//! `rollcall torture`: faults against a system of its own under load, and a verdict on every promise that it gave.
//!
//! The system is real: the executables of this build, a private PostgreSQL and RabbitMQ, and a proxy between each service
//! and each server. The schedule of faults comes from the seed, so a run can be repeated; what the operating system makes
//! of it differs from run to run. In reading order:
//!
//! 1. `system`: the servers and the services; `proxy`: the network between them.
//! 2. `load`: clients, which remember as `promises` what they were told.
//! 3. `schedule`: which fault comes next, of which groups; `faults`: what it does; `illness`: what makes dead letters, and who replays them.
//! 4. `verdict`: what the rows say of the promises.
//!
//! `budget` is another run on the same system, which looks at nothing but connections; `bench` has a system without proxies and
//! faults, and measures.

mod bench;
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
use schedule::{Fault, Group, Schedule, deck_of};
use system::{Plan, System};
use verdict::Verdict;

/// The faults of a run that chooses none.
const USUAL: [Group; 7] = [
    Group::Processes,
    Group::Servers,
    Group::Network,
    Group::Messages,
    Group::Settings,
    Group::Clocks,
    Group::Policies,
];
/// See [`Course::patience`].
const SETTLE_DEADLINE: Duration = Duration::from_mins(2);

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    /// How long to go on
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// How often every fault of the deck comes, instead of a time
    #[arg(long, conflicts_with = "minutes", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: Option<u32>,
    /// Which faults are in the deck [default: all but standby]
    #[arg(long, value_enum, value_delimiter = ',', hide_default_value = true, default_values_t = USUAL)]
    faults: Vec<Group>,
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
    /// Measure Rollcall beside the tutorial's Express service and the bare servers, and write a report
    Bench(Box<bench::Arguments>),
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number of minutes".to_owned())?;
    if minutes > 0.0 && minutes <= 7.0 * 24.0 * 60.0 { Ok(minutes) } else { Err("above 0, up to a week".to_owned()) }
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=100)
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.part {
        Some(Part::Budget(arguments)) => return budget::run(arguments).await,
        Some(Part::Bench(arguments)) => return bench::run(*arguments).await,
        None => {}
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
    let deck = deck_of(&arguments.faults);
    let course = Course { seed, deck, environment: &[], patience: SETTLE_DEADLINE };
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
    deck: Vec<(Fault, usize)>,
    /// Further variables for the services.
    environment: &'a [(&'a str, &'a str)],
    /// How long the last outcome may take once everything runs again.
    patience: Duration,
}

/// A whole run.
async fn torture(arguments: &Arguments, course: &Course<'_>) -> anyhow::Result<Verdict> {
    let &Course { seed, ref deck, environment, patience } = course;
    let (apis, workers) = (arguments.apis, arguments.workers);
    let standby = arguments.faults.contains(&Group::Standby);
    let plan = Plan { apis, workers, environment, max_connections: None, role: None, standby };
    let mut system = System::prepare(&plan).await?;
    let mut connection = system.database().await?;
    verdict::observe(&mut connection).await?;
    illness::infect(&mut connection).await?;
    connection.close().await?;
    system.heal().await?;
    verdict::subscribe(system.stack.rabbitmq.url()).await?;
    let load = Load::start(system.bases(), arguments.clients, seed)?;
    let mut schedule = Schedule::new(StdRng::seed_from_u64(seed), deck);

    play(arguments, &mut schedule, &mut system, &load).await?;

    system.heal().await?;
    illness::cure(&system).await?;
    let promises = load.finish().await;
    let mut verdict = verdict::judge(&system, &promises, &schedule.expired, patience).await?;
    verdict.add(std::mem::take(&mut schedule.findings));
    verdict.add_stuck(system.stop().await?);
    system.end(!verdict.kept()).await?;
    say(format_args!("faults     {} ({})", schedule.count(), schedule.summary()));
    Ok(verdict)
}

/// Makes faults until it is time to end.
async fn play(arguments: &Arguments, schedule: &mut Schedule, system: &mut System, load: &Load) -> anyhow::Result<()> {
    let began = Instant::now();
    let (end, unit) = match arguments.rounds {
        Some(rounds) => ((schedule.size() * rounds).into(), "faults"),
        None => (Duration::from_secs_f64(arguments.minutes * 60.0).as_secs(), "s"),
    };
    let mut progress = Progress::new(end, unit);
    loop {
        let fault = schedule.next(system, load).await?;
        let count = schedule.count();
        let position = if arguments.rounds.is_some() { count.into() } else { began.elapsed().as_secs() };
        progress.tell(position, &format!("{} accepted, {count} faults, last: {fault}", load.accepted()));
        if position >= end {
            break;
        }
    }
    progress.finish();
    Ok(())
}
