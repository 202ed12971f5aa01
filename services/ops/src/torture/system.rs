//! The system under torture: its servers, and the services as child processes that can be harmed one by one.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use common::config::{DatabaseSettings, database_url};
use common::db;
use local_stack::{Options, Stack};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::say;

const READY_DEADLINE: Duration = Duration::from_mins(1);
const END_DEADLINE: Duration = Duration::from_secs(30);
/// Below the range that clients' ports come from, so that none of them takes the port of a service that is down.
const PORTS: std::ops::Range<u16> = 9_000..10_000;

/// One child process, or the place of one that was killed.
pub(crate) struct Service {
    role: &'static str,
    port: u16,
    log: PathBuf,
    child: Option<Child>,
}

/// Everything.
pub(crate) struct System {
    pub(crate) stack: Arc<Stack>,
    pub(crate) apis: Vec<Service>,
    pub(crate) workers: Vec<Service>,
    folder: TempDir,
}

impl System {
    /// Brings up the servers and every service.
    pub(crate) async fn start(apis: usize, workers: usize) -> anyhow::Result<Self> {
        ensure!(apis > 0 && workers > 0, "give at least one API and one worker");
        let folder = tempfile::tempdir()?;
        let options = Options { install: true, progress: Arc::new(|line| say(line)), ..Options::new(folder.path()) };
        let stack = Arc::new(tokio::task::spawn_blocking(move || Stack::start(options)).await??);
        let mut connection = connect(&stack).await?;
        db::migrate(&mut connection, Duration::from_secs(30)).await?;
        connection.close().await?;
        let mut ports = PORTS.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
        let mut place = |role: &'static str, number: usize| -> anyhow::Result<Service> {
            let port = ports.next().context("no free port")?;
            Ok(Service { role, port, log: folder.path().join(format!("{role}-{number}.log")), child: None })
        };
        let apis = (0..apis).map(|number| place("api", number)).collect::<Result<_, _>>()?;
        let workers = (0..workers).map(|number| place("worker", number)).collect::<Result<_, _>>()?;
        let mut system = Self { stack, apis, workers, folder };
        system.heal().await?;
        Ok(system)
    }

    /// The URLs of the APIs.
    pub(crate) fn bases(&self) -> Vec<String> {
        self.apis.iter().map(Service::base).collect()
    }

    /// Starts whatever is down, and waits until everything is ready.
    pub(crate) async fn heal(&mut self) -> anyhow::Result<()> {
        let stack = Arc::clone(&self.stack);
        for service in self.apis.iter_mut().chain(&mut self.workers) {
            service.start(&stack)?;
        }
        for service in self.apis.iter_mut().chain(&mut self.workers) {
            service.ready(&stack).await?;
        }
        Ok(())
    }

    /// A connection for the verdict.
    pub(crate) async fn database(&self) -> anyhow::Result<PgConnection> {
        connect(&self.stack).await
    }

    /// Ends everything in order; a service that does not end well is a failure of the run.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let stack = Arc::clone(&self.stack);
        for service in self.apis.iter_mut().chain(&mut self.workers) {
            service.terminate(&stack).await?;
        }
        drop(stack);
        if let Some(stack) = Arc::into_inner(self.stack) {
            tokio::task::spawn_blocking(move || stack.stop()).await?;
        }
        self.folder.close()?;
        Ok(())
    }
}

impl Service {
    fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self, stack: &Stack) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child
            && child.try_wait()?.is_none()
        {
            return Ok(());
        }
        let output = File::options().create(true).append(true).open(&self.log)?;
        let child = Command::new(std::env::current_exe()?)
            .arg(self.role)
            .env("DATABASE_URL", stack.postgres.url())
            .env("AMQP_URL", stack.rabbitmq.url())
            .env_remove("DATABASE_URL_FILE")
            .env_remove("DATABASE_CONTROL_URL")
            .env_remove("DATABASE_CONTROL_URL_FILE")
            .env_remove("AMQP_URL_FILE")
            .env("DRAIN_DELAY_MS", "200")
            .env("PORT", self.port.to_string())
            .env("WORKER_LISTEN", format!("127.0.0.1:{}", self.port))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start the {}", self.role))?;
        if let Some(pid) = child.id() {
            stack.adopt(pid, self.role)?;
        }
        self.child = Some(child);
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = self.child.as_ref().and_then(Child::id).context("it does not run")?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id is out of range")?;
        Ok(kill_process(pid, signal)?)
    }

    /// kill -9.
    pub(crate) async fn kill(&mut self, stack: &Stack) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = child.id() {
                stack.release(pid);
            }
            child.kill().await?;
        }
        Ok(())
    }

    /// SIGTERM; it must end with 0 in time.
    pub(crate) async fn terminate(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let Some(pid) = self.child.as_ref().and_then(Child::id) else { return Ok(()) };
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = tokio::time::timeout(END_DEADLINE, child.wait()).await;
        stack.release(pid);
        match status {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(status) => bail!("the {} did not end well ({}); its log:\n{}", self.role, status?, self.words()),
            Err(_) => {
                child.kill().await?;
                bail!("the {} did not end within {END_DEADLINE:?}; its log:\n{}", self.role, self.words())
            }
        }
    }

    /// Waits until it is ready; one that ended by itself is started again, as whatever supervises services does.
    async fn ready(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let url = format!("{}/readyz", self.base());
        let waiting = async {
            loop {
                self.start(stack)?;
                if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(READY_DEADLINE, waiting).await {
            Ok(ready) => ready,
            Err(_) => bail!("the {} is not ready after {READY_DEADLINE:?}; its log:\n{}", self.role, self.words()),
        }
    }

    fn words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

async fn connect(stack: &Stack) -> anyhow::Result<PgConnection> {
    let url = database_url(stack.postgres.url()).map_err(anyhow::Error::msg)?;
    Ok(db::connect(&DatabaseSettings { url, connections: 1 }, "rollcall-torture").await?)
}
