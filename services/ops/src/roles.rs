//! `rollcall roles`: what the server would have to be told, and telling it.

mod credentials;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use common::config::{DatabaseSettings, DatabaseUrl, Reader};
use common::db;
use common::db::roles::{Plan, ServerRole, Wanted, apply, plan};
use secrecy::SecretString;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use self::credentials::Credentials;
use crate::audit;
use crate::output::{closed, say};

const HELP: &str = "\
The roles, each PREFIX_ and its name:
  migrator        owns the schema: rollcall migrate, rollcall dead-letters
  api             reads what requests read: the API's DATABASE_URL
  worker          applies commands: the worker's DATABASE_URL
  control_api     heartbeats and readiness of the API: its DATABASE_CONTROL_URL
  control_worker  the same of the worker: its DATABASE_CONTROL_URL
  backup          reads everything, for dumps
  monitor         reads statistics and the membership, no user's data

DATABASE_URL names a role that may create roles and owns the database. With --urls, DIR gets a file with a URL for each
role, with a fresh password, for DATABASE_URL_FILE; the server gets only its SCRAM verifier. A role whose file is there
keeps its password: to replace one, delete its file and apply again. Without --urls no password is set, for servers that
know their clients by certificate or socket, or for `\\password`.

What `plan` shows is all that `apply` does, in one transaction; applied twice, the second finds nothing to do, but for what
the server does not allow. New tables of a release get their privileges from `rollcall migrate run` as the migrator.

The roles protect integrity, not availability: each may change its own password and settings, end sessions of its own role,
and hold locks on what it may lock.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the SQL that is needed, and change nothing
    #[command(after_help = HELP)]
    Plan(Options),
    /// Execute it
    #[command(after_help = HELP)]
    Apply {
        #[command(flatten)]
        options: Options,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(clap::Args)]
struct Options {
    /// Pooled connections of the whole deployment; the API and the worker may each hold that many, because shares move
    /// between them
    #[arg(long, value_name = "N", env = "DATABASE_CONNECTION_BUDGET", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    budget: u32,
    /// In front of each role's name, so that several deployments can share a server
    #[arg(long, default_value = "rollcall")]
    prefix: String,
    /// Keep a file with a URL for each role there
    #[arg(long, value_name = "DIR")]
    urls: Option<PathBuf>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, Command::Apply { .. })
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut reader = Reader::from_process();
    let settings = DatabaseSettings::read_direct(&mut reader);
    let settings = reader.finish(settings)?;
    let mut conn = db::connect(&settings, "rollcall-roles").await?;
    match arguments.command {
        Command::Plan(options) => {
            let credentials = Credentials::look(options.urls.as_deref(), &options.prefix, &settings.url)?;
            let plan = options.plan(&mut conn, &credentials).await?;
            say(shown(&plan, options.json));
            if !plan.permitted && !options.json {
                say(NOT_PERMITTED);
            }
        }
        Command::Apply { options, yes } => {
            let mut credentials = Credentials::look(options.urls.as_deref(), &options.prefix, &settings.url)?;
            let plan = options.plan(&mut conn, &credentials).await?;
            if plan.statements.is_empty() {
                say(shown(&plan, options.json));
                return Ok(());
            }
            ensure!(plan.permitted, NOT_PERMITTED);
            if !yes && !agreed(&plan)? {
                bail!("nothing was changed");
            }
            let details =
                json!({ "prefix": options.prefix, "budget": options.budget, "statements": plan.statements.len() });
            audit::record(&mut conn, "roles apply", details).await?;
            // Before the server knows a password, it is written down; a run that ends in between uses it again.
            credentials.write()?;
            apply(&mut conn, &plan).await?;
            credentials.keep()?;
            say(shown(&plan, options.json));
            // Looked up again: a REVOKE by a role without the right to it succeeds, and revokes nothing.
            let left = options.plan(&mut conn, &credentials).await?;
            for statement in left.statements.iter().filter(|_| !options.json) {
                let shown = &statement.shown;
                say(format_args!("-- the server does not allow {shown}; everything else works without it"));
            }
        }
    }
    conn.close().await?;
    Ok(())
}

/// The URLs of a deployment's roles, in files of a folder.
pub(crate) struct RoleUrls(Vec<(ServerRole, SecretString)>);

impl RoleUrls {
    /// Makes the server's roles what they must be, as its owner, and the files in the folder lead to this server.
    pub(crate) async fn ensure(owner: &DatabaseUrl, folder: &Path) -> anyhow::Result<Self> {
        let settings = DatabaseSettings { url: owner.clone(), connections: 1 };
        let mut conn = db::connect(&settings, "rollcall-roles").await?;
        let query = "SELECT current_setting('max_connections')::integer
            - current_setting('superuser_reserved_connections')::integer";
        // All that the server gives: the deployment computes its budget from that.
        let most: i32 = sqlx::query_scalar(query).fetch_one(&mut conn).await?;
        let options = Options {
            budget: most.try_into()?,
            prefix: "rollcall".to_owned(),
            urls: Some(folder.to_owned()),
            json: false,
        };
        let mut credentials = Credentials::look(Some(folder), &options.prefix, owner)?;
        credentials.lead_to(owner)?;
        let plan = options.plan(&mut conn, &credentials).await?;
        credentials.write()?;
        apply(&mut conn, &plan).await?;
        credentials.keep()?;
        conn.close().await?;
        Ok(Self(credentials.urls()))
    }

    /// That of one role.
    pub(crate) fn of(&self, role: ServerRole) -> anyhow::Result<&SecretString> {
        let found = self.0.iter().find(|(known, _)| *known == role);
        Ok(&found.with_context(|| format!("no URL of {}", role.name("")))?.1)
    }
}

const NOT_PERMITTED: &str = "-- this role may not create roles. One DATABASE_URL for everything works, too: then only the \
    deployment itself keeps its connection budget, and every part may do what that role may.";

impl Options {
    async fn plan(&self, conn: &mut PgConnection, credentials: &Credentials) -> anyhow::Result<Plan> {
        let mut wanted = Wanted { prefix: self.prefix.clone(), budget: self.budget, verifiers: credentials.fresh() };
        let first = plan(conn, &wanted).await?;
        let known = credentials.known(&first.missing);
        if known.is_empty() {
            return Ok(first);
        }
        // A role that is made anew gets the password that its file has kept.
        wanted.verifiers.extend(known);
        Ok(plan(conn, &wanted).await?)
    }
}

fn shown(plan: &Plan, as_json: bool) -> String {
    if as_json {
        let statements: Vec<_> =
            plan.statements.iter().map(|s| json!({"sql": s.shown, "optional": s.optional})).collect();
        return json!({"permitted": plan.permitted, "statements": statements}).to_string();
    }
    if plan.statements.is_empty() {
        return "-- nothing to do".to_owned();
    }
    let lines: Vec<String> = plan.statements.iter().map(|statement| format!("{};", statement.shown)).collect();
    lines.join("\n")
}

fn agreed(plan: &Plan) -> anyhow::Result<bool> {
    ensure!(
        std::io::stdin().is_terminal(),
        "nobody can be asked here; say --yes, or `rollcall roles plan` to look first"
    );
    say(shown(plan, false));
    say(format_args!("Execute {} statement(s)? [y/N]", plan.statements.len()));
    ensure!(!closed(), "the plan cannot be shown here; say --yes, or `rollcall roles plan` to look first");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("no answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
