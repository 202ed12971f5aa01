//! `rollcall dead-letters`: what could not be applied, and what to do about it.

mod act;
mod print;

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use common::config::{DatabaseSettings, IdempotencyWindow, Reader};
use common::db;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;
use worker::dead_letters::{Filter, Letter, Terms, behind, find, list};

use crate::audit;
use crate::output::say;

/// Limits of the session; the server ends it beyond them.
const SESSION: &str =
    "SET lock_timeout = '5s'; SET statement_timeout = '10s'; SET idle_in_transaction_session_timeout = '10s'";
/// The most letters that one call replays or discards; the next call takes the next.
const MOST: i64 = 10_000;

/// Reads `DATABASE_URL_DIRECT` or, without it, `DATABASE_URL`; and `IDEMPOTENCY_WINDOW_HOURS`.
///
/// A command that could not be applied is a dead letter. The later commands of its user are parked behind it, in order,
/// until the letter is replayed or discarded; then they follow. Every letter keeps its message as it came, and a replay
/// reads that again. A message whose user cannot be read blocks nothing.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List open letters, oldest first, each with the number of commands that wait behind it
    List {
        #[command(flatten)]
        filter: Filters,
        /// List at most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
        /// Write JSON, one letter a line
        #[arg(long)]
        json: bool,
    },
    /// Show one letter with its message and what waits behind it
    Show {
        /// The number of the letter, or the id of its command
        id: Id,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply letters again, each with what waits behind it, in order, until one fails; exit with 1 when one did
    Replay(Chosen),
    /// Give letters up for good, and apply what waits behind them
    Discard {
        #[command(flatten)]
        chosen: Chosen,
        /// Give up what waits behind them too, instead of applying it
        #[arg(long)]
        with_followers: bool,
    },
}

#[derive(clap::Args, Default)]
struct Filters {
    /// Only this user's
    #[arg(long, value_name = "UUID")]
    user: Option<Uuid>,
    /// Only commands of this type, like users.create
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only those with this text in their reason
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only those with this SQLSTATE, like 23514
    #[arg(long, value_parser = sqlstate)]
    sqlstate: Option<String>,
    /// Only those that failed since then: a time like 2026-11-22T08:00:00Z, or an age like 90s, 15m, 2h, 7d
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<OffsetDateTime>,
}

#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Chosen {
    /// Numbers of letters, or ids of their commands
    #[arg(
        required_unless_present_any = ["all", "user", "kind", "reason", "sqlstate", "since"],
        conflicts_with_all = ["user", "kind", "reason", "sqlstate", "since"]
    )]
    ids: Vec<Id>,
    /// Every open letter
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    #[command(flatten)]
    filter: Filters,
    /// Try it, say what would come of it, and change nothing; of a user with many letters the first hundred are tried
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Write JSON, one letter a line
    #[arg(long)]
    json: bool,
}

/// A letter as an operator names it.
#[derive(Clone)]
enum Id {
    Letter(i64),
    Command(Uuid),
}

impl std::str::FromStr for Id {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.parse().map(Self::Letter);
        number.or_else(|_| text.parse().map(Self::Command)).map_err(|_| "neither a number nor a command's id")
    }
}

impl Filters {
    fn filter(&self) -> Filter {
        Filter {
            user_id: self.user,
            kind: self.kind.clone(),
            reason: self.reason.clone(),
            sqlstate: self.sqlstate.clone(),
            since: self.since,
        }
    }
}

impl Arguments {
    pub(crate) fn changes(&self) -> bool {
        match &self.command {
            Command::List { .. } | Command::Show { .. } => false,
            Command::Replay(chosen) | Command::Discard { chosen, .. } => !chosen.dry_run,
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let database = DatabaseSettings::read_direct(&mut reader);
    let window = IdempotencyWindow::read(&mut reader);
    let (settings, window) = reader.finish(database.zip(window))?;
    let mut conn = db::connect(&settings, "rollcall-dead-letters").await?;
    // Workers wait for whoever replays: not for one that was put to sleep.
    sqlx::raw_sql(SESSION).execute(&mut conn).await?;
    match arguments.command {
        Command::List { filter, limit, json } => {
            let letters = list(&mut conn, &filter.filter(), limit).await?;
            for letter in &letters {
                say(print::line(letter, json));
            }
            if letters.is_empty() && !json {
                say("no open dead letters");
            }
        }
        Command::Show { id, json } => {
            let letter = named(&mut conn, &id).await?;
            let behind = behind(&mut conn, &letter).await?;
            say(print::whole(&letter, &behind, json));
        }
        Command::Replay(chosen) => {
            let letters = chosen.letters(&mut conn).await?;
            // Named letters are deliberate; a filter can fit more than one thought.
            if chosen.ids.is_empty() && !chosen.agreed("Apply", "apply", &letters)? {
                bail!("nothing was replayed");
            }
            let terms = Terms { window, dry_run: chosen.dry_run };
            record(&mut conn, "dead-letters replay", &letters, json!({}), terms).await?;
            let failed = act::replay(&mut conn, &letters, terms, chosen.json).await?;
            ensure!(failed == 0, "{failed} letter(s) failed again");
        }
        Command::Discard { chosen, with_followers } => {
            let letters = chosen.letters(&mut conn).await?;
            let behind = if with_followers { "give up" } else { "APPLY" };
            if !chosen.agreed("Give up", behind, &letters)? {
                bail!("nothing was discarded");
            }
            let terms = Terms { window, dry_run: chosen.dry_run };
            let details = json!({ "with_followers": with_followers });
            record(&mut conn, "dead-letters discard", &letters, details, terms).await?;
            let failed = act::discard(&mut conn, &letters, with_followers, terms, chosen.json).await?;
            ensure!(failed == 0, "{failed} letter(s) were not discarded, or what waited behind them failed");
        }
    }
    conn.close().await?;
    Ok(())
}

/// The audit line of what is about to be done about these letters, by their numbers.
async fn record(
    conn: &mut PgConnection,
    action: &str,
    letters: &[Letter],
    mut details: Value,
    terms: Terms,
) -> anyhow::Result<()> {
    if terms.dry_run || letters.is_empty() {
        return Ok(());
    }
    details["letters"] = letters.iter().map(|letter| letter.id).collect();
    audit::record(conn, action, details).await
}

impl Chosen {
    async fn letters(&self, conn: &mut PgConnection) -> anyhow::Result<Vec<Letter>> {
        let mut letters = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            letters.push(named(conn, id).await?);
        }
        if self.ids.is_empty() {
            letters = list(conn, &self.filter.filter(), MOST).await?;
        }
        Ok(letters)
    }

    /// Whether the operator agrees, or does not have to be asked.
    fn agreed(&self, verb: &str, of_others: &str, letters: &[Letter]) -> anyhow::Result<bool> {
        if self.yes || self.dry_run || letters.is_empty() {
            return Ok(true);
        }
        ensure!(std::io::stdin().is_terminal(), "nobody can be asked here; say --yes, or --dry-run to look first");
        let behind: i64 = act::by_user(letters).iter().map(|(_, letters)| waiting(letters)).sum();
        let question = format!(
            "{verb} {} letter(s), and {of_others} the {behind} command(s) that wait behind? [y/N] ",
            letters.len()
        );
        // Not to the output, which may be JSON.
        let mut terminal = std::io::stderr();
        terminal.write_all(question.as_bytes())?;
        terminal.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }
}

/// How many of a user's letters wait behind the first of these and are none of them.
fn waiting(letters: &[&Letter]) -> i64 {
    let behind = letters.first().map_or(0, |first| first.behind);
    behind - i64::try_from(letters.len().saturating_sub(1)).unwrap_or_default()
}

async fn named(conn: &mut PgConnection, id: &Id) -> anyhow::Result<Letter> {
    let (found, name) = match id {
        Id::Letter(number) => (find(conn, Some(*number), None).await?, number.to_string()),
        Id::Command(id) => (find(conn, None, Some(*id)).await?, id.to_string()),
    };
    found.with_context(|| format!("there is no dead letter {name}"))
}

fn sqlstate(text: &str) -> Result<String, &'static str> {
    let fits = text.len() == 5 && text.chars().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase());
    if fits { Ok(text.to_owned()) } else { Err("not five letters and digits like 23514 or 22P02") }
}

fn since(text: &str) -> Result<OffsetDateTime, &'static str> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let fault = "neither a time like 2026-11-22T08:00:00Z nor an age like 90s, 15m, 2h, 7d";
    let unit = text.chars().last().ok_or(fault)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(fault),
    };
    let number: i32 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| fault)?;
    OffsetDateTime::now_utc().checked_sub(time::Duration::seconds(i64::from(number) * seconds)).ok_or(fault)
}
