//! `rollcall torture budget`: instances come, go and fail on a server with few connections, and the server's own view of
//! them decides whether the connection budget held. In reading order:
//!
//! 1. `deck`: which event comes next; `course`: what it does; `harm`: what ends again; `demand`: who wants the connections.
//! 2. `witness`: what the server shows; `shares`: what the rows say; `readiness`: what the instances say.
//! 3. `verdict`: whether that is what was promised.

mod course;
mod deck;
mod demand;
mod harm;
#[cfg(feature = "mutants")]
mod mutants;
mod readiness;
mod shares;
mod verdict;
mod witness;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Instant;

use anyhow::bail;
#[cfg(feature = "mutants")]
use anyhow::ensure;
use clap::builder::RangedU64ValueParser;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::progress::Progress;
use super::system::{Plan, System};
use crate::output::say;
use course::Course;
use demand::Demand;
use verdict::Verdict;
use witness::Witness;

/// Whom the services connect as.
const ROLE: &str = "soak";
/// What an instance needs: its control connection and one more.
const EACH: i32 = 2;
/// Beyond the budget: those that PostgreSQL keeps for superusers, the witness, the observer, the one that locks, and
/// one for an excess to be seen in.
const BEYOND: i32 = 7;
/// Events between two looks whether everything is used.
const REST_AFTER: u32 = 20;
/// What a refusal for the number of connections looks like in the server's log and in the services'.
const REFUSAL: [&str; 4] = [" 53300 ", "too many connections", "too many clients", "connection slots"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many events
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    events: u32,
    /// What decides the events; printed, and chosen at random when left out
    #[arg(long)]
    seed: Option<u64>,
    /// Instances at most, a third of them workers
    #[arg(long, default_value_t = 12, value_parser = RangedU64ValueParser::<usize>::new().range(4..=40))]
    instances: usize,
    /// Connections that the budget has [default: two for each instance, so that the last one finds no room]
    #[arg(long, value_parser = clap::value_parser!(i32).range(8..=400))]
    connections: Option<i32>,
    /// A fault that the protocol is given, and that must be found: then the run succeeds
    #[cfg(feature = "mutants")]
    #[arg(long, value_parser = mutants::parse)]
    mutant: Option<&'static str>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let budget = arguments.connections.unwrap_or(i32::try_from(arguments.instances)? * EACH);
    say(format_args!("seed {seed}: {} instances at most on {budget} connections", arguments.instances));
    let verdict = soak(&arguments, seed, budget).await?;
    say(&verdict);
    #[cfg(feature = "mutants")]
    if arguments.mutant.is_some() {
        ensure!(!verdict.kept(), "the mutant was not found");
        return Ok(());
    }
    if !verdict.kept() {
        bail!("the budget did not hold; repeat with --seed {seed}");
    }
    Ok(())
}

async fn soak(arguments: &Arguments, seed: u64, budget: i32) -> anyhow::Result<Verdict> {
    let workers = arguments.instances / 3;
    let wanted = budget.to_string();
    let environment = [("DATABASE_CONNECTION_BUDGET", wanted.as_str()), ("DRAIN_DELAY_MS", "0"), ("LOG", "warn")];
    let system = System::prepare(&Plan {
        apis: arguments.instances - workers,
        workers,
        environment: &environment,
        max_connections: Some(u16::try_from(budget + BEYOND)?),
        role: Some(ROLE),
        standby: false,
    })
    .await?;
    #[cfg(feature = "mutants")]
    if let Some(mutant) = arguments.mutant {
        mutants::infect(&mut system.database().await?, mutant).await?;
    }
    let witness = Witness::start(&system, budget).await?;
    let demand = Demand::start(system.apis.iter().map(super::system::Service::base).collect())?;
    let mut course = Course::new(system, witness, StdRng::seed_from_u64(seed));
    let began = Instant::now();
    let mut progress = Progress::new(arguments.events.into(), "events");
    while course.record.count() < arguments.events {
        let Some(event) = course.next().await? else { continue };
        let count = course.record.count();
        progress.tell(count.into(), &format!("last: {event}"));
        if count.is_multiple_of(REST_AFTER) || count == arguments.events {
            course.rest().await?;
        }
    }
    progress.finish();
    let took = began.elapsed();
    let (answered, refused) = demand.counts();
    drop(demand);
    let Course { mut system, witness, mut record, .. } = course;
    record.unwell.append(&mut system.stop().await?);
    let sessions = witness.finish().await?;
    let mut refusals = Vec::new();
    for folder in system.logs() {
        refusals.append(&mut refusals_in(&folder)?);
    }
    let verdict = Verdict { record, seen: sessions, budget, answered, refused, took, refusals };
    system.end(!verdict.kept()).await?;
    Ok(verdict)
}

/// Lines of the logs in a folder, with the names of the files.
fn refusals_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // An old part of a log has a number behind.
        if !path.is_file() || !name.contains(".log") {
            continue;
        }
        for line in BufReader::new(std::fs::File::open(&path)?).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            if REFUSAL.iter().any(|sign| line.contains(sign)) {
                found.push(format!("{name}: {line}"));
            }
        }
    }
    Ok(found)
}
