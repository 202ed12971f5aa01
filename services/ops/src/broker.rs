//! `rollcall broker`: declares the exchanges and queues, and prints the rights that each part needs.

use anyhow::ensure;
use clap::Subcommand;
use common::broker::{BrokerUser, DeclaredObject, Permissions, set_up, subscriber_permissions};
use common::config::{BrokerSettings, Reader};
use serde_json::json;

use crate::output::say;

const HELP: &str = "\
The users, each PREFIX_ and its name:
  setup   declares exchanges and queues: rollcall broker apply, rollcall migrate run
  api     publishes commands and receives replies: the API's AMQP_URL
  worker  consumes commands, publishes events and replies: the worker's AMQP_URL
A subscriber to the events has a user of its own name, for queues whose names are NAME or begin with NAME and a dot.

`plan` prints commands and connects to nothing; `rabbitmqctl add_user` asks for the password. `apply` declares what is
missing; a queue or exchange that exists with other arguments is an error with the remedy. It can be run again at any time.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the commands that make the users and give them their rights
    #[command(after_help = HELP)]
    Plan(Options),
    /// Declare the exchanges and queues at `AMQP_URL`, under `BROKER_PREFIX`
    #[command(after_help = HELP)]
    Apply,
}

#[derive(clap::Args)]
struct Options {
    /// In front of each user's name
    #[arg(long, default_value = "rollcall")]
    users: String,
    /// The virtual host
    #[arg(long, default_value = "/")]
    vhost: String,
    /// In front of the name of every exchange and queue
    #[arg(long, env = "BROKER_PREFIX", default_value = "")]
    broker_prefix: String,
    /// A user that receives the change events in queues of its own; can be given several times
    #[arg(long = "subscriber", value_name = "NAME")]
    subscribers: Vec<String>,
    /// Write the permissions as a part of RabbitMQ's definitions
    #[arg(long)]
    json: bool,
}

impl Arguments {
    pub(crate) fn changes(&self) -> bool {
        matches!(self.command, Command::Apply)
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Plan(options) => say(options.plan()?),
        Command::Apply => {
            let mut reader = Reader::from_process();
            let settings = BrokerSettings::read(&mut reader);
            report(&set_up(&reader.finish(settings)?).await?);
        }
    }
    Ok(())
}

/// Says of each exchange and queue that it was created, and of the others how many they are.
pub(crate) fn report(declared: &[DeclaredObject]) {
    for DeclaredObject { kind, name, .. } in declared.iter().filter(|object| object.created) {
        say(format_args!("created the {kind} {name}"));
    }
    let unchanged = declared.iter().filter(|object| !object.created).count();
    if unchanged > 0 {
        say(format_args!("{unchanged} of {} exchanges and queues were there, as they must be", declared.len()));
    }
}

impl Options {
    fn plan(&self) -> anyhow::Result<String> {
        let prefix = &self.broker_prefix;
        for name in [&self.users, prefix].into_iter().chain(&self.subscribers) {
            let fits = name.len() <= 100 && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            ensure!(fits, "{name:?} is no name; use at most 100 of a-z, A-Z, 0-9, \".\", \"_\", \"-\"");
        }
        let parts = BrokerUser::ALL.map(|user| (user.name(&self.users), user.permissions(prefix)));
        let mut users = Vec::from(parts);
        for name in &self.subscribers {
            let own = ["commands", "events", "replies", "dead-letters", "deployment", "arrivals"];
            let rest = name.strip_prefix(prefix.as_str()).unwrap_or_default();
            let taken = own.iter().any(|own| rest == *own || rest.starts_with(&format!("{own}.")));
            ensure!(!taken && !name.is_empty(), "a subscriber cannot have the name {name:?}; take one such as billing");
            users.push((name.clone(), subscriber_permissions(name, prefix)));
        }
        if self.json {
            let permissions = users.iter().map(|(user, Permissions { configure, write, read })| {
                json!({"user": user, "vhost": self.vhost, "configure": configure, "write": write, "read": read})
            });
            return Ok(json!({"permissions": permissions.collect::<Vec<_>>()}).to_string());
        }
        let lines = users.iter().map(|(user, Permissions { configure, write, read })| {
            let vhost = &self.vhost;
            format!(
                "rabbitmqctl add_user {user}\n\
                 rabbitmqctl set_permissions -p {vhost} {user} '{configure}' '{write}' '{read}'"
            )
        });
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }
}
