//! `rollcall deployment`: what all processes of a deployment have in common.

mod change;

use clap::Subcommand;
use common::config::{DatabaseSettings, Reader};
use common::db;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use self::change::Change;
use crate::audit;
use crate::say;

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`; with roles, as the migrator.
///
/// The first process that joins writes its settings down, and every other one must have the same: one that differs ends with both
/// values. What may change is changed here first; then each process is given the new value and started again.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the settings, and by which exchange the broker is known
    Show {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Change settings, all or none
    ///
    /// `budget=N` or `budget=computed` (`DATABASE_CONNECTION_BUDGET`): running processes obey at once. `retention=DAYS`
    /// (`COMMAND_RETENTION_DAYS`), `window=HOURS` (`IDEMPOTENCY_WINDOW_HOURS`), `event-source=URI` (`EVENT_SOURCE`): running
    /// processes keep theirs until they are started again with the new value. `partitions=N` and `prefix=PREFIX`: only while no
    /// process runs and no command was applied; queues under the old names are not looked at. `broker`: forget by which exchange
    /// the broker is known; the next process marks the one that it reaches.
    Set {
        /// For example budget=40
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = change::parse)]
        changes: Vec<Change>,
    },
}

impl Arguments {
    /// Whether it does more than show something.
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, Command::Set { .. })
    }
}

/// The row.
struct Row {
    id: Uuid,
    partitions: i32,
    broker_prefix: String,
    command_retention_days: i32,
    idempotency_window_hours: i32,
    database_connection_budget: Option<i32>,
    event_source: Option<String>,
    broker_mark: Option<Uuid>,
    budget: i32,
    arithmetic: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(settings)?;
    let mut conn = db::connect(&settings, "rollcall-deployment").await?;
    match arguments.command {
        Command::Show { json } => {
            let row = row(&mut conn).await?;
            say(match (row, json) {
                (Some(row), true) => row.object().to_string(),
                (Some(row), false) => row.table(),
                (None, true) => Value::Null.to_string(),
                (None, false) => "no process has joined yet; the first one writes its settings down".to_owned(),
            });
        }
        Command::Set { changes } => {
            let texts: Vec<String> = changes.iter().map(Change::to_string).collect();
            audit::record(&mut conn, "deployment set", json!(texts)).await?;
            for line in change::apply(&mut conn, &changes).await? {
                say(line);
            }
        }
    }
    conn.close().await?;
    Ok(())
}

async fn row(conn: &mut PgConnection) -> Result<Option<Row>, sqlx::Error> {
    sqlx::query_as!(
        Row,
        r#"
        SELECT
            deployment.id, partitions, broker_prefix, command_retention_days, idempotency_window_hours,
            database_connection_budget, event_source, broker_mark, budget, arithmetic
        FROM deployment, membership
        "#
    )
    .fetch_optional(conn)
    .await
}

impl Row {
    /// The exchange by which the broker is known.
    fn exchange(&self) -> Option<String> {
        self.broker_mark.map(|mark| format!("{}deployment.{mark}", self.broker_prefix))
    }

    fn table(&self) -> String {
        let shown = |value: &str| if value.is_empty() { "not set".to_owned() } else { value.to_owned() };
        let budget = self.database_connection_budget.map_or_else(|| "not set".to_owned(), |budget| budget.to_string());
        let event_source = self.event_source.as_deref().unwrap_or("no worker has joined yet");
        let broker = self.exchange().unwrap_or_else(|| "not marked yet".to_owned());
        let lines = [
            ("id", self.id.to_string()),
            ("PARTITIONS", self.partitions.to_string()),
            ("BROKER_PREFIX", shown(&self.broker_prefix)),
            ("COMMAND_RETENTION_DAYS", self.command_retention_days.to_string()),
            ("IDEMPOTENCY_WINDOW_HOURS", self.idempotency_window_hours.to_string()),
            ("DATABASE_CONNECTION_BUDGET", budget),
            ("EVENT_SOURCE", event_source.to_owned()),
            ("budget in force", format!("{} ({})", self.budget, self.arithmetic)),
            ("exchange of the broker", broker),
        ];
        lines.map(|(name, value)| format!("{name:<26}  {value}")).join("\n")
    }

    fn object(&self) -> Value {
        json!({
            "id": self.id,
            "partitions": self.partitions,
            "broker_prefix": self.broker_prefix,
            "command_retention_days": self.command_retention_days,
            "idempotency_window_hours": self.idempotency_window_hours,
            "database_connection_budget": self.database_connection_budget,
            "event_source": self.event_source,
            "budget_in_force": self.budget,
            "budget_arithmetic": self.arithmetic,
            "broker_exchange": self.exchange(),
        })
    }
}
