//! `rollcall`: one executable for every role, so that an image, a Procfile or a unit file needs one artefact.

mod budget;
mod connection;
mod dead_letters;
mod export;
mod generate;
mod health;
mod import;
mod keys;
mod load;
mod migrate;
mod roles;
mod torture;
mod up;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

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
    /// Make API keys for clients, list and revoke them
    Keys(keys::Arguments),
    /// Look at commands that could not be applied; replay or discard them
    DeadLetters(dead_letters::Arguments),
    /// Show which instance has how many of the database's connections
    Budget(budget::Arguments),
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
    common::process::exit_code(run().await)
}

async fn run() -> anyhow::Result<()> {
    let chosen = Arguments::parse().command;
    // Parsed as well, because `up` reads variables.
    match chosen.or_else(|| Arguments::parse_from(["rollcall", "up"]).command).context("no command")? {
        Command::Up(arguments) => up::run(arguments).await,
        Command::Api => api::process::main().await,
        Command::Worker => worker::process::main().await,
        Command::Migrate(arguments) => migrate::run(arguments).await,
        Command::Roles(arguments) => roles::run(arguments).await,
        Command::Keys(arguments) => keys::run(arguments).await,
        Command::DeadLetters(arguments) => dead_letters::run(arguments).await,
        Command::Budget(arguments) => budget::run(arguments).await,
        Command::Health(arguments) => health::run(arguments).await,
        Command::Import(arguments) => import::run(arguments).await,
        Command::Export(arguments) => export::run(arguments).await,
        Command::Load(arguments) => load::run(arguments).await,
        Command::Torture(arguments) => torture::run(arguments).await,
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Settings => {
            say(generate::sample().trim_end());
            Ok(())
        }
    }
}

/// Prints a line for the person at the terminal.
#[expect(clippy::print_stdout, reason = "this is the command line")]
fn say(line: impl std::fmt::Display) {
    println!("{line}");
}
