//! `rollcall migrate`: the release step that brings the schema, and the broker if it is given, up to this version.

use std::time::Duration;

use anyhow::ensure;
use clap::Subcommand;
use common::broker::set_up;
use common::config::{BrokerSettings, DatabaseSettings, Reader};
use common::db;
use sqlx::Connection;

use crate::output::say;

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`. With `AMQP_URL`, `run` also does what `rollcall broker apply` does.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every migration that has not run yet, in order; with `AMQP_URL`, declare the exchanges and queues, too
    Run {
        /// Seconds to wait for another migrator
        #[arg(long, default_value_t = 60)]
        patience: u64,
    },
    /// Compare the migrations that have run with those of this version; exit with 1 when `migrate run` has something to do, or
    /// would fail
    Status,
}

impl Arguments {
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, Command::Run { .. })
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    // Where one environment serves every command, one release step is enough.
    let runs = matches!(arguments.command, Command::Run { .. });
    let broker = runs.then(|| BrokerSettings::read_given(&mut reader)).flatten();
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
            if let Some(broker) = broker {
                crate::broker::report(&set_up(&broker).await?);
            }
        }
        Command::Status => {
            let status = db::migration_status(&mut connection).await?;
            for migration in &status.pending {
                say(format_args!("pending {migration}"));
            }
            for migration in &status.edited {
                say(format_args!("edited {migration}: it is not the one that ran here"));
            }
            for migration in &status.unfinished {
                say(format_args!("unfinished {migration}: it began here and did not end"));
            }
            ensure!(
                status.edited.is_empty(),
                "{} migration(s) were edited after they had run here, so `rollcall migrate run` will fail; use the build that \
                 ran them, or another database",
                status.edited.len()
            );
            ensure!(
                status.unfinished.is_empty(),
                "{} migration(s) did not end here, so `rollcall migrate run` will fail; restore the database from before them",
                status.unfinished.len()
            );
            ensure!(
                status.pending.is_empty(),
                "{} migration(s) have not run; run `rollcall migrate run`",
                status.pending.len()
            );
            if status.newer.is_empty() {
                say("every migration has run");
            } else {
                let newer: Vec<String> = status.newer.iter().map(|version| format!("{version:04}")).collect();
                say(format_args!(
                    "every migration of this version has run, and so have newer ones that it does not know: {}",
                    newer.join(", ")
                ));
            }
        }
    }
    connection.close().await?;
    Ok(())
}
