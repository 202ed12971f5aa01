//! Streaming standby of a private PostgreSQL: a second server on a port of its own, and its promotion.
//!
//! # Promotion
//! The promoted server takes over the port and the data folder of the primary, as one behind a virtual address does. So
//! the URL stays, and [`Postgres`] stops and starts the new primary like the old one. What the old primary held and the
//! standby had not received is gone.
//!
//! # Synchronous replication
//! Is the primary's setting `synchronous_standby_names=*` (see [`Options::postgres_settings`]). The standby inherits it, so
//! that a promoted one commits nothing before it has a standby again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use url::Url;

use super::{Postgres, Runtime, SERVER, StopMode, not_ours, not_running};
use crate::cluster::{self, Cluster};
use crate::error::{Error, IoStep};
use crate::home::Home;
use crate::options::elapsed;
use crate::ports;
use crate::probe;
use crate::process;

/// The name of the process, of its log, and of its data folder.
const NAME: &str = "standby";
/// For one SIGKILL.
const KILLED: Duration = Duration::from_secs(5);

/// A hot standby that streams from a private PostgreSQL. It ends when the value is dropped.
pub struct Standby {
    home: Arc<Home>,
    port: u16,
    primary: Url,
}

impl Standby {
    /// Copies the primary, which runs, and starts the copy as its standby.
    ///
    /// # Errors
    /// [`Error::NotOurs`] for a server that is not a private process of this stack.
    pub fn start(primary: &Postgres) -> Result<Self, Error> {
        let (home, cluster) = (&primary.home, private(primary)?);
        let began = Instant::now();
        let invalid =
            || Error::Command { step: "read the URL of the primary".to_owned(), output: "invalid".to_owned() };
        let url = Url::parse(&primary.url).map_err(|_| invalid())?;
        let [port] = ports::choose([None]);
        let standby = Self { home: Arc::clone(home), port, primary: url };
        let data = folder(cluster);
        let step = || format!("prepare {}", data.display());
        home.end(NAME, "QUIT", KILLED);
        if data.exists() {
            fs::remove_dir_all(&data).step(step)?;
        }
        let mut copy = cluster.command(home, "pg_basebackup");
        copy.arg("--pgdata").arg(&data).args([
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
            "--no-password",
        ]);
        copy.args(["--host=127.0.0.1", "--username=rollcall"]).arg(format!("--port={}", primary.port));
        process::run("copy PostgreSQL for a standby", standby.with_password(&mut copy))?;
        cluster.write(&data.join("standby.signal"), "")?;
        standby.resume(primary)?;
        home.options.tell(format!("{SERVER}: standby ready on port {port} after {}", elapsed(began)));
        Ok(standby)
    }

    /// Stops the standby and waits for its end: the primary has none then.
    pub fn stop(&self, mode: StopMode) {
        let signal = match mode {
            StopMode::Fast => "INT",
            StopMode::Immediate => "QUIT",
        };
        self.home.end(NAME, signal, Duration::from_secs(20));
    }

    /// Starts a stopped standby again; it fetches what it missed.
    ///
    /// # Errors
    /// [`Error::Server`] when it does not become ready.
    pub fn resume(&self, primary: &Postgres) -> Result<(), Error> {
        if self.home.process(NAME).is_some() {
            return Ok(());
        }
        let cluster = private(primary)?;
        let mut command = cluster.server(&self.home, &folder(cluster), self.port);
        // Not in a file of the data folder: once it is promoted and started as the primary, it follows nobody.
        let follows = format!("primary_conninfo=host=127.0.0.1 port={} user=rollcall", primary.port);
        for setting in [follows.as_str(), "hot_standby=on", "wal_retrieve_retry_interval=200ms"] {
            command.arg("-c").arg(setting);
        }
        let from = self.home.log_length(NAME);
        let process = self.home.spawn(NAME, self.with_password(&mut command))?;
        let step = format!("start a standby on port {}", self.port);
        self.home.await_ready(&step, (NAME, from), &process, || probe::postgres(self.port))
    }

    /// Kills the primary with everything that it has not sent, and makes the standby, running or stopped, the primary of
    /// this address.
    ///
    /// # Errors
    /// [`Error`] of the step that failed; the data of both is then left as it is.
    pub fn promote(self, primary: &Postgres) -> Result<(), Error> {
        let cluster = private(primary)?;
        kill(&self.home)?;
        self.stop(StopMode::Fast);
        let (old, new) = (cluster.data(), folder(cluster));
        let step = || format!("put {} in place of {}", new.display(), old.display());
        fs::remove_dir_all(&old).step(step)?;
        fs::rename(&new, &old).step(step)?;
        // Read-only until the promotion.
        cluster.start(&self.home, primary.port)?;
        let mut promotion = cluster.command(&self.home, "pg_ctl");
        promotion.arg("promote").arg("-D").arg(&old).args(["--wait", "--timeout=60"]);
        process::run("promote the standby", &mut promotion).map(drop)
    }

    /// In the environment, where other accounts do not see it.
    fn with_password<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("PGPASSWORD", self.primary.password().unwrap_or_default())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.stop(StopMode::Fast);
    }
}

fn private(primary: &Postgres) -> Result<&Cluster, Error> {
    match &primary.runtime {
        Runtime::Private(cluster) => Ok(cluster),
        Runtime::External | Runtime::Container(..) => Err(not_ours("given a standby")),
    }
}

fn folder(cluster: &Cluster) -> PathBuf {
    cluster.folder().join(Path::new(NAME))
}

/// Ends the primary and its sessions with SIGKILL. Sessions outlive a postmaster that is killed until they look.
fn kill(home: &Home) -> Result<(), Error> {
    home.thaw(cluster::NAME);
    let process = home.process(cluster::NAME).ok_or_else(not_running)?;
    let sessions: Vec<_> = process.children().into_iter().filter_map(process::Process::find).collect();
    process.end("KILL", KILLED);
    for session in &sessions {
        session.end("KILL", KILLED);
    }
    Ok(())
}
