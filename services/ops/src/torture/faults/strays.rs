//! Further processes whose settings are not those of the others: none may take part, nor harm those that do.

use std::sync::Arc;

use rand::seq::SliceRandom;
use sqlx::PgConnection;
use url::Url;

use super::refusal::{self, Since};
use crate::torture::schedule::Schedule;
use crate::torture::system::{SPARE, Service, System};
use crate::torture::verdict::Broken;

/// Another virtual host of the same broker.
const VHOST: &str = "another";

/// How a process differs from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::torture) struct Difference {
    role: &'static str,
    variable: &'static str,
    value: &'static str,
    /// Whether the database is away when it starts.
    away: bool,
}

const fn difference(role: &'static str, variable: &'static str, value: &'static str) -> Difference {
    Difference { role, variable, value, away: false }
}

/// All of them.
const DIFFERENCES: [Difference; 9] = [
    difference("api", "PARTITIONS", "32"),
    Difference { away: true, ..difference("api", "PARTITIONS", "32") },
    difference("worker", "PARTITIONS", "8"),
    difference("api", "BROKER_PREFIX", "another."),
    difference("worker", "BROKER_PREFIX", "another."),
    difference("worker", "AMQP_URL", VHOST),
    difference("api", "DATABASE_CONNECTION_BUDGET", "6"),
    difference("worker", "COMMAND_RETENTION_DAYS", "7"),
    difference("worker", "IDEMPOTENCY_WINDOW_HOURS", "1"),
];

impl Difference {
    /// One of these in the log or among the failed checks explains the refusal.
    fn words(self) -> Vec<&'static str> {
        match self.variable {
            // What is there differs, not how it is named.
            "AMQP_URL" => vec!["AMQP_URL", "virtual host", "another broker"],
            variable => vec![variable],
        }
    }

    fn describe(self) -> String {
        let Self { role, variable, value, away } = self;
        let when = if away { ", while the database was away," } else { "" };
        format!("a further {role} with {variable}={value}{when}")
    }
}

impl Schedule {
    /// Some at once.
    pub(super) async fn differ(&mut self, system: &mut System) -> anyhow::Result<&'static str> {
        system.heal().await?;
        let mut database = system.database().await?;
        let before = budget(&mut database).await?;
        let mut some = Vec::with_capacity(SPARE);
        for number in 0..SPARE {
            let difference = self.difference();
            some.push((difference, stray(system, number, difference).await?));
        }
        let watched = some.into_iter().map(async |(difference, mut stray)| {
            let found = watch(system, difference, &mut stray).await;
            stray.kill(&system.stack).await?;
            let found = found?.into_iter().map(|found| format!("{} {found}", difference.describe()));
            anyhow::Ok(found.collect::<Vec<_>>())
        });
        for found in futures_util::future::join_all(watched).await {
            self.findings.extend(found?.into_iter().map(|found| (Broken::Admitted, found)));
        }
        let after = budget(&mut database).await?;
        if before != after {
            let found = format!("a process that was not admitted changed the budget from {before} to {after}");
            self.findings.push((Broken::Admitted, found));
        }
        system.heal().await?;
        Ok("settings differed")
    }

    /// Each comes once before any comes again.
    fn difference(&mut self) -> Difference {
        if self.differences.is_empty() {
            self.differences = DIFFERENCES.to_vec();
            self.differences.shuffle(&mut self.random);
        }
        self.differences.pop().unwrap_or(DIFFERENCES[0])
    }
}

/// Not started.
async fn stray(system: &System, number: usize, difference: Difference) -> anyhow::Result<Service> {
    let Difference { role, variable, value, away } = difference;
    let mut stray = system.stray(role, number).await?;
    let value = if variable == "AMQP_URL" { vhost(system, &stray).await? } else { value.to_owned() };
    stray.differ(vec![(variable.to_owned(), value)]);
    if away {
        stray.database.silence();
    }
    Ok(stray)
}

async fn watch(system: &System, difference: Difference, stray: &mut Service) -> anyhow::Result<Vec<String>> {
    stray.start(&system.stack)?;
    let mut found = Vec::new();
    if difference.away {
        found.extend(refusal::tempt(stray).await?);
        stray.database.open();
    }
    found.extend(refusal::watch(stray, Since::Start, &difference.words()).await?);
    Ok(found)
}

/// The URL of the other virtual host, which is made if need be.
async fn vhost(system: &System, stray: &Service) -> anyhow::Result<String> {
    let stack = Arc::clone(&system.stack);
    let make = move || {
        if !stack.rabbitmq.ctl(&["-q", "list_vhosts"])?.lines().any(|name| name == VHOST) {
            stack.rabbitmq.ctl(&["-q", "add_vhost", VHOST])?;
            stack.rabbitmq.ctl(&["-q", "set_permissions", "-p", VHOST, "rollcall", ".*", ".*", ".*"])?;
        }
        Ok::<_, local_stack::Error>(())
    };
    tokio::task::spawn_blocking(make).await??;
    let mut url = stray.broker.url(&Url::parse(system.stack.rabbitmq.url())?);
    url.set_path(VHOST);
    Ok(url.into())
}

async fn budget(database: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT budget FROM membership").fetch_one(database).await
}
