//! What the caller decides about a stack.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::broker::Permissions;

/// Names in the environment a folder with `postgres` and `initdb`.
pub const POSTGRES_BIN: &str = "ROLLCALL_POSTGRES_BIN";
/// Names in the environment a folder with `rabbitmq-server` and `rabbitmq-env`.
pub const RABBITMQ_BIN: &str = "ROLLCALL_RABBITMQ_BIN";

/// Receives one line when a step begins and one, with the elapsed time, when it ends.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// What the caller decides about a stack. Begin with [`Options::new`].
#[derive(Clone)]
pub struct Options {
    /// Where everything of this stack lives: data, logs, ports, passwords.
    pub dir: PathBuf,
    /// A PostgreSQL to use as it is, instead of a private one.
    pub database_url: Option<String>,
    /// A RabbitMQ to use as it is, instead of a private one.
    pub amqp_url: Option<String>,
    /// Whether a missing server may be installed with the system's package manager.
    pub install: bool,
    /// PostgreSQL's `max_connections`.
    pub max_connections: u16,
    /// Further PostgreSQL settings, by name.
    pub postgres_settings: Vec<(String, String)>,
    /// Further lines for `rabbitmq.conf`, by key.
    pub rabbitmq_settings: Vec<(String, String)>,
    /// Further users of a private RabbitMQ, each with what it may do in the virtual host `/`.
    pub rabbitmq_users: Vec<(String, Permissions)>,
    /// Whether what is in RabbitMQ outlives its run.
    pub keep_messages: bool,
    /// How long one server may take to become ready.
    pub start_timeout: Duration,
    /// How long a shared stack stays up after its last user has ended, in whole seconds.
    pub linger: Duration,
    /// Where programs are looked for, as in `PATH`.
    pub path: OsString,
    /// The folder of PostgreSQL's programs, instead of the newest that is found; [`POSTGRES_BIN`] unless it is set here.
    pub postgres_bin: Option<PathBuf>,
    /// The folder of RabbitMQ's scripts, instead of the first that is found; [`RABBITMQ_BIN`] unless it is set here.
    pub rabbitmq_bin: Option<PathBuf>,
    /// Where the steps are told.
    pub progress: Progress,
}

impl Options {
    /// Private servers in `dir`, nothing installed, nothing told.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let variable = |wanted: &str| std::env::vars_os().find(|(name, _)| name == wanted).map(|(_, value)| value);
        Self {
            dir: dir.into(),
            database_url: None,
            amqp_url: None,
            install: false,
            max_connections: 200,
            postgres_settings: Vec::new(),
            rabbitmq_settings: Vec::new(),
            rabbitmq_users: Vec::new(),
            keep_messages: true,
            start_timeout: Duration::from_mins(3),
            linger: Duration::from_secs(30),
            path: variable("PATH").unwrap_or_default(),
            postgres_bin: variable(POSTGRES_BIN).map(PathBuf::from),
            rabbitmq_bin: variable(RABBITMQ_BIN).map(PathBuf::from),
            progress: Arc::new(|_| {}),
        }
    }

    pub(crate) fn tell(&self, line: impl AsRef<str>) {
        (self.progress)(line.as_ref());
    }

    /// `PATH` followed by the folders that a service manager's or a cron job's short `PATH` lacks.
    pub(crate) fn search_path(&self) -> OsString {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(":");
        }
        path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin");
        path
    }
}

impl fmt::Debug for Options {
    // The URLs hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("dir", &self.dir).field("install", &self.install).finish_non_exhaustive()
    }
}

/// The time since `began`, for a progress line.
pub(crate) fn elapsed(began: Instant) -> String {
    format!("{:.1} s", began.elapsed().as_secs_f64())
}
