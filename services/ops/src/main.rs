//! `rollcall`: one executable for every role, so that an image, a Procfile or a unit file needs one artefact.

mod audit;
mod broker;
mod budget;
mod connection;
mod dead_letters;
mod deployment;
mod export;
mod generate;
mod health;
mod import;
mod keys;
mod load;
mod migrate;
mod output;
mod remedy;
mod roles;
mod spreadsheet;
mod torture;
mod up;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use output::say;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A user directory that does not lose a write
///
/// Without a command it is `rollcall up`.
#[derive(Parser)]
#[command(name = "rollcall", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up the whole system on this machine and say where everything is
    Up(up::Arguments),
    /// Serve HTTP
    #[command(after_help = api::settings::help())]
    Api,
    /// Apply commands
    #[command(after_help = worker::settings::help())]
    Worker,
    /// Bring the database's schema up to this version
    Migrate(migrate::Arguments),
    /// Give each part of the system a database role of its own, with no more rights and connections than it needs
    Roles(roles::Arguments),
    /// Declare the exchanges and queues, and print the rights that each part of the system needs at the broker
    Broker(broker::Arguments),
    /// Make API keys for clients, list and revoke them
    Keys(keys::Arguments),
    /// Look at commands that could not be applied; replay or discard them
    DeadLetters(dead_letters::Arguments),
    /// Show which instance has how many of the database's connections
    Budget(budget::Arguments),
    /// Show what all processes of the deployment have in common, or change it
    Deployment(deployment::Arguments),
    /// Ask a service whether it is well; for container health checks
    Health(health::Arguments),
    /// Create a user for each row of a file, and say what became of each
    Import(import::Arguments),
    /// Write every user to a file, as they all were at one moment
    Export(export::Arguments),
    /// Create many users and report how fast that went
    Load(load::Arguments),
    /// Torture a system of its own with faults under load, and judge whether it kept its promises
    Torture(torture::Arguments),
    /// Write the generated files: the contract and the sample settings
    Generate(generate::Arguments),
    /// Print every setting with its documentation, as a sample environment file
    Settings,
}

#[tokio::main]
async fn main() -> ExitCode {
    common::process::exit_code(run().await.map_err(remedy::with_remedy))
}

async fn run() -> anyhow::Result<()> {
    let chosen = Arguments::parse().command;
    // Parsed as well, because `up` reads variables.
    let command = chosen.or_else(|| Arguments::parse_from(["rollcall", "up"]).command).context("no command")?;
    let changes = command.changes();
    output::end(command.run().await, changes)
}

impl Command {
    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Up(arguments) => up::run(arguments).await,
            Self::Api => api::process::main().await,
            Self::Worker => worker::process::main().await,
            Self::Migrate(arguments) => migrate::run(arguments).await,
            Self::Roles(arguments) => roles::run(arguments).await,
            Self::Broker(arguments) => broker::run(arguments).await,
            Self::Keys(arguments) => keys::run(arguments).await,
            Self::DeadLetters(arguments) => dead_letters::run(arguments).await,
            Self::Budget(arguments) => budget::run(arguments).await,
            Self::Deployment(arguments) => deployment::run(arguments).await,
            Self::Health(arguments) => health::run(arguments).await,
            Self::Import(arguments) => import::run(arguments).await,
            Self::Export(arguments) => export::run(arguments).await,
            Self::Load(arguments) => load::run(arguments).await,
            Self::Torture(arguments) => torture::run(arguments).await,
            Self::Generate(arguments) => generate::run(&arguments),
            Self::Settings => {
                say(generate::sample().trim_end());
                Ok(())
            }
        }
    }

    /// Whether it does more than show something.
    fn changes(&self) -> bool {
        match self {
            Self::Migrate(arguments) => arguments.changes(),
            Self::Broker(arguments) => arguments.changes(),
            Self::Roles(arguments) => arguments.changes(),
            Self::Keys(arguments) => arguments.changes(),
            Self::DeadLetters(arguments) => arguments.changes(),
            Self::Deployment(arguments) => arguments.changes(),
            Self::Up(_) | Self::Import(_) | Self::Export(_) | Self::Load(_) | Self::Torture(_) | Self::Generate(_) => {
                true
            }
            Self::Api | Self::Worker | Self::Budget(_) | Self::Health(_) | Self::Settings => false,
        }
    }
}
