//! `rollcall migrate`: the release step that brings the schema up to this version.

use std::time::Duration;

use clap::Subcommand;
use common::config::{DatabaseSettings, Reader};
use common::db;
use sqlx::Connection;

use crate::say;

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every migration that has not run yet, in order
    Run {
        /// Seconds to wait for another migrator
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// Say which migrations have not run yet; exit with 1 when there are any
    Status,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(settings)?;
    let mut connection = db::connect(&settings, "rollcall-migrate").await?;
    match arguments.command {
        Command::Run { patience } => {
            let migrated = db::migrate(&mut connection, Duration::from_secs(patience)).await?;
            for migration in &migrated.applied {
                say(format_args!("applied {migration}"));
            }
            if migrated.granted > 0 {
                say(format_args!("brought the roles' privileges in line with {} statement(s)", migrated.granted));
            }
            say(format_args!("the schema is at version {}", migrated.version));
        }
        Command::Status => {
            let pending = db::migrations_pending(&mut connection).await?;
            for migration in &pending {
                say(format_args!("pending {migration}"));
            }
            anyhow::ensure!(
                pending.is_empty(),
                "{} migration(s) have not run; run `rollcall migrate run`",
                pending.len()
            );
            say("every migration has run");
        }
    }
    connection.close().await?;
    Ok(())
}
