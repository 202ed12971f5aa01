//! A private RabbitMQ node: its environment, its configuration, its port mapper and its process.
//!
//! Why a port mapper of our own? Without one the node starts `epmd -daemon`, which stays behind when the node ends,
//! and looks for it by starting a second Erlang machine, which takes half of the node's start.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::broker::Permissions;
use serde_json::json;

use crate::account::{self, Account};
use crate::error::{Error, IoStep};
use crate::find;
use crate::home::Home;
use crate::options::{RABBITMQ_BIN, elapsed};
use crate::ports;
use crate::probe;
use crate::process::{self, POLL};
use crate::state::State;

/// The name of the process, of its log, and of its folder.
pub(crate) const NAME: &str = "rabbitmq";
const EPMD: &str = "epmd";
/// The keys of the further users' passwords begin with this.
pub(crate) const USER_PASSWORD: &str = "password_of_";
/// The largest message that the broker takes, in bytes: many times the largest command.
const MOST_MESSAGE_BYTES: u32 = 256 * 1024;
const COOKIE: &str = ".erlang.cookie";
const LOOPBACK: &str = "-kernel inet_dist_use_interface {127,0,0,1}";
/// Schedulers that have nothing to do sleep at once, instead of polling: the processor is shared with everything else.
const NO_BUSY_WAIT: &str = "+sbwt none +sbwtdcpu none +sbwtdio none";

pub(crate) struct Node {
    scripts: PathBuf,
    account: Account,
    folder: PathBuf,
    version: String,
}

/// What one start of the node uses. The name must stay: the data belongs to it.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) password: String,
    /// The further users, with their passwords.
    pub(crate) users: Vec<(String, String)>,
    /// Erlang's: who has it runs code in the node. Its own would be of a weak generator that knows the time of its start.
    pub(crate) cookie: String,
    pub(crate) amqp: u16,
    pub(crate) distribution: u16,
    pub(crate) epmd: u16,
}

impl Identity {
    /// What the state holds, with ports chosen anew where they are missing or taken.
    pub(crate) fn choose(state: &mut State) -> Result<Self, Error> {
        let wanted = ["port", "distribution_port", "epmd_port"].map(|key| state.port(key));
        let [amqp, distribution, epmd] = ports::choose(wanted);
        state.set("port", amqp.to_string());
        state.set("distribution_port", distribution.to_string());
        state.set("epmd_port", epmd.to_string());
        state.write()?;
        Ok(Self::read(state))
    }

    pub(crate) fn read(state: &State) -> Self {
        let text = |key| state.get(key).unwrap_or_default().to_owned();
        let port = |key| state.port(key).unwrap_or_default();
        Self {
            node: text("node"),
            password: text("password"),
            users: state.prefixed(USER_PASSWORD),
            cookie: text("cookie"),
            amqp: port("port"),
            distribution: port("distribution_port"),
            epmd: port("epmd_port"),
        }
    }
}

impl Node {
    /// The programs and the folder for this directory; `None` when no RabbitMQ is installed.
    pub(crate) fn find(home: &Home) -> Result<Option<Self>, Error> {
        let Some(scripts) = find::rabbitmq(&home.options) else { return Ok(None) };
        let account = Account::choose(&["rabbitmq", "nobody"]);
        let (folder, account) = account::place(&home.options, &home.dir, NAME, account)?;
        account.require(&scripts.join("rabbitmq-server"), RABBITMQ_BIN)?;
        let version = find::rabbitmq_version(&scripts).unwrap_or_default();
        Ok(Some(Self { scripts, account, folder, version }))
    }

    pub(crate) fn title(&self) -> String {
        format!("RabbitMQ {}", self.version).trim_end().to_owned()
    }

    pub(crate) fn exists(&self) -> bool {
        self.folder.join("data").exists()
    }

    /// Forgets the data: that of a first start that was cut short, of which nobody knows whether its users were written, or what
    /// nobody wants to keep.
    pub(crate) fn discard(&self) -> Result<(), Error> {
        let data = self.folder.join("data");
        if !data.exists() {
            return Ok(());
        }
        fs::remove_dir_all(&data).step(|| format!("remove {}", data.display()))
    }

    /// A program of the package with the environment of the node.
    pub(crate) fn command(&self, home: &Home, identity: &Identity, program: impl AsRef<Path>) -> Command {
        let folder = |name: &str| self.folder.join(name);
        let mut command = home.command(self.scripts.join(program.as_ref()), self.account);
        command
            .current_dir(&self.folder)
            // Erlang keeps the cookie, which lets rabbitmqctl in, in the home folder.
            .env("HOME", &self.folder)
            .env("LANG", "C.UTF-8")
            .env("RABBITMQ_NODENAME", &identity.node)
            .env("RABBITMQ_BASE", &self.folder)
            .env("RABBITMQ_MNESIA_BASE", folder("data"))
            .env("RABBITMQ_LOG_BASE", folder("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", folder("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_DIST_PORT", identity.distribution.to_string())
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", format!("{NO_BUSY_WAIT} {LOOPBACK}"))
            .env("RABBITMQ_CTL_ERL_ARGS", LOOPBACK)
            .env("ERL_EPMD_PORT", identity.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // With this the start script becomes the Erlang machine instead of a shell in front of it, so that the
            // pid we know is the one to signal.
            .env("RUNNING_UNDER_SYSTEMD", "1");
        command
    }

    /// Starts the node and waits until it speaks AMQP.
    pub(crate) fn start(&self, home: &Home, identity: &Identity) -> Result<(), Error> {
        let began = Instant::now();
        let step = format!("start {} on port {}", self.title(), identity.amqp);
        home.options.tell(format!("{}: starting on port {}", self.title(), identity.amqp));
        self.configure(home, identity)?;
        self.start_epmd(home, identity)?;
        let from = home.log_length(NAME);
        let process = home.spawn(NAME, &mut self.command(home, identity, "rabbitmq-server"))?;
        home.await_ready(&step, (NAME, from), &process, || probe::amqp(identity.amqp))?;
        home.options.tell(format!("{}: ready on port {} after {}", self.title(), identity.amqp, elapsed(began)));
        Ok(())
    }

    fn configure(&self, home: &Home, identity: &Identity) -> Result<(), Error> {
        let mut lines = format!(
            "listeners.tcp.local = 127.0.0.1:{}\ndefault_user = rollcall\ndefault_pass = {}\n\
             disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.relative = 0.4\n\
             max_message_size = {MOST_MESSAGE_BYTES}\n",
            identity.amqp, identity.password
        );
        let definitions = self.folder.join("definitions.json");
        if !home.options.rabbitmq_users.is_empty() {
            // Read before the node listens. With it, the node makes no default user.
            lines.extend(["load_definitions = ", &definitions.to_string_lossy(), "\n"]);
        }
        for (key, value) in &home.options.rabbitmq_settings {
            lines.extend([key.as_str(), " = ", value, "\n"]);
        }
        let text = definitions_of(home, identity);
        for (name, text) in
            [("rabbitmq.conf", lines.as_str()), ("enabled_plugins", "[].\n"), ("definitions.json", &text)]
        {
            self.account.write(&self.folder.join(name), text, 0o600)?;
        }
        self.account.write(&self.folder.join(COOKIE), &identity.cookie, 0o400)
    }

    /// Where Erlang has none in a known place, the node starts its own, which the end of the stack finds by its mark.
    fn start_epmd(&self, home: &Home, identity: &Identity) -> Result<(), Error> {
        if home.process(EPMD).is_some() && probe::listening(identity.epmd) {
            return Ok(());
        }
        home.end(EPMD, "KILL", Duration::from_secs(5));
        let Some(program) = find::epmd(&home.options) else { return Ok(()) };
        let from = home.log_length(EPMD);
        let mut command = self.command(home, identity, program);
        command.args(["-port", &identity.epmd.to_string(), "-address", "127.0.0.1"]);
        let process = home.spawn(EPMD, &mut command)?;
        let step = format!("start Erlang's port mapper on port {}", identity.epmd);
        home.await_ready(&step, (EPMD, from), &process, || probe::listening(identity.epmd))?;
        // Somebody else's mapper on the same port makes ours end a moment later.
        thread::sleep(POLL);
        home.await_ready(&step, (EPMD, from), &process, || true)
    }

    /// Runs the package's `rabbitmqctl` against this node.
    pub(crate) fn ctl(&self, home: &Home, identity: &Identity, arguments: &[&str]) -> Result<String, Error> {
        let step = format!("rabbitmqctl {}", arguments.first().unwrap_or(&""));
        process::run(&step, self.command(home, identity, "rabbitmqctl").args(arguments))
    }
}

/// The administrator and the further users, as the node loads them at each start.
fn definitions_of(home: &Home, identity: &Identity) -> String {
    let all = || ".*".to_owned();
    let (configure, write, read) = (all(), all(), all());
    let administrator = ("rollcall".to_owned(), Permissions { configure, write, read });
    let users: Vec<_> = [&administrator].into_iter().chain(&home.options.rabbitmq_users).collect();
    let password = |name: &str| match identity.users.iter().find(|(known, _)| known == name) {
        Some((_, password)) => password.clone(),
        None => identity.password.clone(),
    };
    let (accounts, permissions): (Vec<_>, Vec<_>) = users
        .into_iter()
        .map(|(name, Permissions { configure, write, read })| {
            let tags = if *name == administrator.0 { "administrator" } else { "" };
            let account = json!({"name": name, "password": password(name), "tags": tags});
            let permission = json!({"user": name, "vhost": "/", "configure": configure, "write": write, "read": read});
            (account, permission)
        })
        .unzip();
    json!({"users": accounts, "vhosts": [{"name": "/"}], "permissions": permissions}).to_string()
}
