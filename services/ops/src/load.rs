//! `rollcall load`: creates users through the API as fast as it takes them, and reports what came of it.
//!
//! The figures of applying come from the outcomes themselves (`accepted_at`, `applied_at`), so they need no access to the
//! database; they compare clocks of the API, the database and this machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::builder::RangedU64ValueParser;
use client::types::{Command, CommandStatus, NewUser};
use client::{Client, Error, Written};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::connection::Api;
use crate::output::say;

/// How long the last outcome may take once nothing more is sent.
const SETTLE_DEADLINE: Duration = Duration::from_mins(5);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many users to create
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    creates: u64,
    /// How many connections to use
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    connections: usize,
    #[command(flatten)]
    api: Api,
}

#[derive(Default)]
struct Accepted {
    ids: Vec<Uuid>,
    latencies: Vec<Duration>,
    refused: BTreeMap<String, u64>,
}

struct Outcome {
    accepted_at: OffsetDateTime,
    applied_at: OffsetDateTime,
    succeeded: bool,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    arguments.api.ready().await?;
    // What is refused is counted, not sent again.
    let client = arguments.api.settings()?.retry_for(Duration::ZERO).client()?;

    let started = Instant::now();
    let accepted = create(&client, &arguments).await?;
    let ended_at = OffsetDateTime::now_utc();
    let accepting = started.elapsed();
    let outcomes = settle(&arguments.api.settings()?.client()?, &arguments, &accepted.ids).await?;
    report(&arguments, &accepted, accepting, ended_at, &outcomes);
    Ok(())
}

async fn create(client: &Client, arguments: &Arguments) -> anyhow::Result<Accepted> {
    let bar = bar(arguments.creates, "creating");
    let next = Arc::new(AtomicU64::new(0));
    let run = Uuid::now_v7().simple().to_string();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..arguments.connections {
        let (client, next, run, bar) = (client.clone(), Arc::clone(&next), run.clone(), bar.clone());
        let creates = arguments.creates;
        connections.spawn(async move {
            let mut mine = Accepted::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= creates {
                    return mine;
                }
                let user = NewUser { email: format!("{run}-{number}@load.example"), name: format!("Load {number}") };
                let asked = Instant::now();
                match client.create_user().body(user).send().await.map(client::ResponseValue::into_inner) {
                    Ok(Written::Accepted(command)) => {
                        mine.latencies.push(asked.elapsed());
                        mine.ids.push(command.id);
                    }
                    Ok(Written::Applied(_)) => mine.refuse("not as a command"),
                    Err(error) => match Error::from(error) {
                        Error::Problem(problem) => mine.refuse(&problem.status.to_string()),
                        Error::Foreign(status) => mine.refuse(&status),
                        Error::Transport(_) | Error::Request(_) => mine.refuse("connection failed"),
                    },
                }
                bar.inc(1);
            }
        });
    }
    let mut all = Accepted::default();
    while let Some(mine) = connections.join_next().await {
        let mine = mine?;
        all.ids.extend(mine.ids);
        all.latencies.extend(mine.latencies);
        for (reason, count) in mine.refused {
            *all.refused.entry(reason).or_default() += count;
        }
    }
    bar.finish_and_clear();
    Ok(all)
}

impl Accepted {
    fn refuse(&mut self, reason: &str) {
        *self.refused.entry(reason.to_owned()).or_default() += 1;
    }
}

/// Waits for every outcome.
async fn settle(client: &Client, arguments: &Arguments, ids: &[Uuid]) -> anyhow::Result<Vec<Outcome>> {
    let bar = bar(ids.len() as u64, "waiting for outcomes");
    let bar_of_all = &bar;
    let outcomes = stream::iter(ids)
        .map(|&id| async move {
            let command = client.outcome(id).await.with_context(|| format!("command {id} has no outcome"))?;
            ensure!(
                command.status != CommandStatus::Unknown,
                "command {id} was accepted and lost: it is neither applied nor waiting"
            );
            bar_of_all.inc(1);
            outcome(&command).with_context(|| format!("command {id} has no times"))
        })
        .buffer_unordered(arguments.connections)
        .try_collect();
    let outcomes = timeout(SETTLE_DEADLINE, outcomes).await;
    bar.finish_and_clear();
    outcomes.with_context(|| format!("not every command was decided within {SETTLE_DEADLINE:?}"))?
}

fn outcome(command: &Command) -> Option<Outcome> {
    let succeeded = command.status == CommandStatus::Succeeded;
    Some(Outcome { accepted_at: command.accepted_at.0, applied_at: command.applied_at?.0, succeeded })
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
fn report(
    arguments: &Arguments,
    accepted: &Accepted,
    accepting: Duration,
    ended_at: OffsetDateTime,
    outcomes: &[Outcome],
) {
    let count = accepted.ids.len() as f64;
    say(format_args!("{} creates over {} connections", arguments.creates, arguments.connections));
    say(format_args!("  accepted            {}", accepted.ids.len()));
    for (reason, count) in &accepted.refused {
        say(format_args!("  refused ({reason})       {count}"));
    }
    say(format_args!("  accepted per second {:.0}", count / accepting.as_secs_f64()));
    let mut latencies = accepted.latencies.clone();
    latencies.sort_unstable();
    let quantile =
        |part: usize| latencies.get(latencies.len().saturating_sub(1) * part / 100).copied().unwrap_or_default();
    say(format_args!("  latency             p50 {:.1?}, p99 {:.1?}", quantile(50), quantile(99)));
    say(format_args!("  succeeded           {}", outcomes.iter().filter(|o| o.succeeded).count()));
    let first = outcomes.iter().map(|o| o.accepted_at).min();
    let last = outcomes.iter().map(|o| o.applied_at).max();
    if let (Some(first), Some(last)) = (first, last) {
        say(format_args!("  applied per second  {:.0}", count / (last - first).as_seconds_f64().max(0.001)));
    }
    let oldest = outcomes.iter().filter(|o| o.applied_at > ended_at).map(|o| ended_at - o.accepted_at).max();
    let oldest = oldest.map_or("nothing was left".to_owned(), |age| format!("{:.2} s", age.as_seconds_f64()));
    say(format_args!("  oldest unapplied when accepting ended: {oldest}"));
}

fn bar(length: u64, message: &'static str) -> ProgressBar {
    // The template is fixed and valid; without it the bar still shows, only plainer.
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {per_sec}, {eta} left");
    let bar = ProgressBar::new(length).with_message(message);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
