//! PostgreSQL as a caller sees it: a URL, and the faults a test may cause.

mod standby;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, NAME};
use crate::container::{Container, Image};
use crate::error::Error;
use crate::home::Home;
use crate::options::{Options, elapsed};
use crate::ports;
use crate::probe;
use crate::provision::{self, Wanted};
use crate::state::password;
pub use standby::Standby;

/// How PostgreSQL is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// SIGINT: sessions are ended, a checkpoint is written.
    Fast,
    /// SIGQUIT: everything ends at once, as in a crash; the next start recovers.
    Immediate,
}

/// A PostgreSQL with a superuser and a database named `rollcall`.
pub struct Postgres {
    home: Arc<Home>,
    runtime: Runtime,
    url: String,
    port: u16,
}

enum Runtime {
    External,
    Private(Cluster),
    Container(Container, String),
}

const SERVER: &str = "PostgreSQL";

impl Postgres {
    /// A private PostgreSQL with nothing beside it, in a directory of its own. It ends when the value is dropped.
    pub fn start_alone(options: Options) -> Result<Self, Error> {
        let home = Arc::new(Home::exclusive(options)?);
        provision::provide(&home, &[Wanted::Postgres])?;
        Self::open(home)
    }

    /// The URL to connect with, as the superuser `rollcall` unless the URL was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The folder of the client programs (`psql`, `pg_dump`) of the same version, for a private server.
    pub fn bin_dir(&self) -> Option<PathBuf> {
        match &self.runtime {
            Runtime::Private(cluster) => Some(cluster.bin().to_owned()),
            Runtime::External | Runtime::Container(..) => None,
        }
    }

    /// The server's log, for a private server.
    pub fn log(&self) -> Option<PathBuf> {
        match &self.runtime {
            Runtime::Private(_) => Some(self.home.log(NAME)),
            Runtime::External | Runtime::Container(..) => None,
        }
    }

    /// The pid of the server process.
    pub fn pid(&self) -> Result<u32, Error> {
        match self.runtime {
            Runtime::Private(_) => self.home.process(NAME).map(|process| process.pid).ok_or_else(not_running),
            Runtime::External | Runtime::Container(..) => Err(not_ours("looked up by pid")),
        }
    }

    /// Stops the server and waits for its end.
    pub fn stop(&self, mode: StopMode) -> Result<(), Error> {
        match (&self.runtime, mode) {
            (Runtime::External, _) => Err(not_ours("stopped")),
            (Runtime::Private(_), StopMode::Fast) => {
                self.home.end(NAME, "INT", Duration::from_secs(20));
                Ok(())
            }
            (Runtime::Private(_), StopMode::Immediate) => {
                self.home.end(NAME, "QUIT", Duration::from_secs(10));
                Ok(())
            }
            (Runtime::Container(container, _), StopMode::Fast) => container.control(&self.home, &["stop"]),
            (Runtime::Container(container, _), StopMode::Immediate) => container.control(&self.home, &["kill"]),
        }
    }

    /// Starts a stopped server again: same port, same data.
    pub fn start(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours("started")),
            Runtime::Private(_) if self.home.process(NAME).is_some() => Ok(()),
            Runtime::Private(cluster) => cluster.start(&self.home, self.port),
            Runtime::Container(container, password) => run(&self.home, container, self.port, password),
        }
    }

    /// Stops the server and all its sessions in the middle of whatever they do (SIGSTOP): the port accepts, nobody
    /// answers.
    pub fn freeze(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => Err(not_ours("frozen")),
            Runtime::Private(_) => {
                let process = self.home.process(NAME).ok_or_else(not_running)?;
                self.home.freeze(NAME, &process)
            }
            Runtime::Container(container, _) => container.control(&self.home, &["pause"]),
        }
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) -> Result<(), Error> {
        match &self.runtime {
            Runtime::External => return Err(not_ours("thawed")),
            Runtime::Private(_) => self.home.thaw(NAME),
            Runtime::Container(container, _) => container.control(&self.home, &["unpause"])?,
        }
        Ok(())
    }

    /// Finds the running server of this directory, or starts one.
    pub(crate) fn open(home: Arc<Home>) -> Result<Self, Error> {
        if let Some(url) = home.options.database_url.clone() {
            home.options.tell("PostgreSQL: using the one given by its URL");
            return Ok(Self { home, runtime: Runtime::External, url, port: 0 });
        }
        let cluster = Cluster::find(&home)?;
        let mut state = home.state(NAME);
        if cluster.as_ref().is_some_and(Cluster::exists) && state.get("password").is_none() {
            let reason = "PostgreSQL has data, but its password is lost".to_owned();
            return Err(Error::Unusable { reason, dir: home.dir.clone() });
        }
        let password = state.get_or_set("password", password);
        state.write()?;
        let url = |port: u16| format!("postgres://rollcall:{password}@127.0.0.1:{port}/rollcall");
        let container = Container::named(&home, NAME);
        if let Some(port) = state.port("port") {
            let runs = match &cluster {
                Some(_) => home.process(NAME).is_some(),
                None => container.running(&home),
            };
            if runs && probe::postgres(port) {
                let runtime = cluster.map_or_else(|| Runtime::Container(container, password.clone()), Runtime::Private);
                return Ok(Self { runtime, url: url(port), port, home });
            }
        }
        home.end(NAME, "QUIT", Duration::from_secs(10));
        if let Some(cluster) = cluster.as_ref().filter(|cluster| !cluster.exists()) {
            cluster.create(&home, &password)?;
        }
        let mut attempts = provision::ATTEMPTS;
        loop {
            let [port] = ports::choose([state.port("port")]);
            state.set("port", port.to_string());
            if cluster.is_none() {
                state.set("container", container.name.as_str());
            }
            state.write()?;
            let from = home.log_length(NAME);
            let started = match &cluster {
                Some(cluster) => cluster.start(&home, port),
                None => run(&home, &container, port, &password),
            };
            attempts -= 1;
            match started {
                Ok(()) => {
                    let runtime =
                        cluster.map_or_else(|| Runtime::Container(container, password.clone()), Runtime::Private);
                    return Ok(Self { runtime, url: url(port), port, home });
                }
                Err(_) if attempts > 0 && home.port_was_taken(NAME, from) => {}
                Err(failure) => return Err(failure),
            }
        }
    }
}

fn run(home: &Home, container: &Container, port: u16, password: &str) -> Result<(), Error> {
    let began = Instant::now();
    home.options.tell(format!("PostgreSQL: starting with Docker on port {port}"));
    // Details in the log have values of rows in them.
    let mut arguments = ["-c", "log_error_verbosity=terse", "-c"].map(str::to_owned).to_vec();
    arguments.push(format!("max_connections={}", home.options.max_connections));
    for (name, value) in &home.options.postgres_settings {
        arguments.extend(["-c".to_owned(), format!("{name}={value}")]);
    }
    let image = Image { name: NAME, tag: "postgres:17", port: 5432, data: "/var/lib/postgresql/data", arguments };
    let secrets = format!("POSTGRES_USER=rollcall\nPOSTGRES_DB=rollcall\nPOSTGRES_PASSWORD={password}\n");
    container.run(home, &image, port, &secrets)?;
    provision::await_container(home, container, SERVER, || probe::postgres(port))?;
    home.options.tell(format!("PostgreSQL: ready on port {port} after {}", elapsed(began)));
    Ok(())
}

fn not_ours(action: &'static str) -> Error {
    Error::NotOurs { server: SERVER, action }
}

fn not_running() -> Error {
    Error::NotRunning { server: SERVER }
}
