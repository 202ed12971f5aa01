//! One service: a child process behind proxies of its own, or the place of one that was killed.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context;
use api::auth::settings::VARIABLES as AUTH_VARIABLES;
use common::files;
use local_stack::Stack;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::torture::proxy::Proxy;

const READY_DEADLINE: Duration = Duration::from_mins(1);
const END_DEADLINE: Duration = Duration::from_secs(30);
/// Lines of a log that a complaint quotes.
const QUOTED: usize = 20;

pub(crate) struct Service {
    pub(crate) role: &'static str,
    port: u16,
    log: PathBuf,
    settings: Vec<(String, String)>,
    /// Further variables, until they are others.
    differences: Vec<(String, String)>,
    child: Option<Child>,
    /// How often it ended by itself.
    pub(super) ended: u32,
    /// Between it and PostgreSQL.
    pub(crate) database: Proxy,
    /// Between it and RabbitMQ.
    pub(crate) broker: Proxy,
    /// What it should not have done.
    pub(super) complaints: Vec<String>,
}

impl Service {
    pub(super) fn new(
        role: &'static str,
        port: u16,
        log: PathBuf,
        settings: Vec<(String, String)>,
        database: Proxy,
        broker: Proxy,
    ) -> Self {
        let (differences, complaints) = (Vec::new(), Vec::new());
        Self { role, port, log, settings, differences, child: None, ended: 0, database, broker, complaints }
    }

    pub(crate) fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From its next start on it differs from the others in these variables.
    pub(crate) fn differ(&mut self, differences: Vec<(String, String)>) {
        self.differences = differences;
    }

    /// How it ended, if it did so by itself; that is no complaint.
    pub(crate) fn exit(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// The last lines that it wrote.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(QUOTED)..].join("\n")
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self, stack: &Stack) -> anyhow::Result<()> {
        if let Some(child) = &mut self.child {
            if child.try_wait()?.is_none() {
                return Ok(());
            }
            self.ended += 1;
        }
        let output = files::open(&self.log, OpenOptions::new().append(true))?;
        let mut command = Command::new(std::env::current_exe()?);
        for variable in AUTH_VARIABLES {
            command.env_remove(variable.name);
        }
        let child = command
            .arg(self.role)
            .env_remove("DATABASE_URL_FILE")
            .env_remove("DATABASE_URL_DIRECT")
            .env_remove("DATABASE_URL_DIRECT_FILE")
            .env_remove("DATABASE_CONTROL_URL")
            .env_remove("DATABASE_CONTROL_URL_FILE")
            .env_remove("AMQP_URL_FILE")
            .envs(self.settings.iter().chain(&self.differences).map(|(name, value)| (name, value)))
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

    /// Whether it runs; one that ended by itself does not, and is a complaint.
    pub(crate) fn running(&mut self) -> anyhow::Result<bool> {
        let Some(child) = &mut self.child else { return Ok(false) };
        let Some(status) = child.try_wait()? else { return Ok(true) };
        self.child = None;
        self.ended += 1;
        self.complain(&format!("ended by itself ({status})"));
        Ok(false)
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

    /// SIGTERM; one that does not end with 0 in time is a complaint.
    pub(crate) async fn terminate(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let Some(pid) = self.child.as_ref().and_then(Child::id) else { return Ok(()) };
        self.signal(Signal::TERM)?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = timeout(END_DEADLINE, child.wait()).await;
        stack.release(pid);
        if let Ok(status) = status {
            let status = status?;
            if !status.success() {
                self.complain(&format!("did not end well ({status})"));
            }
        } else {
            child.kill().await?;
            self.complain(&format!("did not end within {END_DEADLINE:?}"));
        }
        Ok(())
    }

    /// Waits until it is ready, or complains; one that ended by itself is started again, as whatever supervises services
    /// does.
    pub(crate) async fn ready(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let url = format!("{}/readyz", self.base());
        let waiting = async {
            loop {
                self.start(stack)?;
                if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                    return Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        if let Ok(ready) = timeout(READY_DEADLINE, waiting).await {
            return ready;
        }
        self.complain(&format!("is not ready after {READY_DEADLINE:?}"));
        Ok(())
    }

    fn complain(&mut self, what: &str) {
        let last = self.last_words();
        self.complaints.push(format!("the {} on port {} {what}; its log:\n{last}", self.role, self.port));
    }
}
