//! One process under measurement: started with its output in a log, awaited, ended.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use local_stack::Stack;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

const READY_DEADLINE: Duration = Duration::from_mins(1);
const END_DEADLINE: Duration = Duration::from_secs(30);

pub(super) struct Process {
    /// As in the table of CPU times.
    pub(super) name: &'static str,
    pub(super) pid: u32,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; the stack ends it, should this process be killed.
    pub(super) fn start(name: &'static str, mut command: Command, log: PathBuf, stack: &Stack) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("failed to start {name}"))?;
        let pid = child.id().context("it ended at once")?;
        stack.adopt(pid, name)?;
        Ok(Self { name, pid, child, log })
    }

    /// Waits until this URL answers with success.
    pub(super) async fn ready(&mut self, url: &str) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + READY_DEADLINE;
        while Instant::now() < deadline {
            if client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", self.name, self.log_tail());
            }
            sleep(Duration::from_millis(50)).await;
        }
        bail!("{} is not ready after {READY_DEADLINE:?}:\n{}", self.name, self.log_tail());
    }

    /// SIGTERM, and the end of it.
    pub(super) async fn end(mut self, stack: &Stack) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).context("a process id is out of range")?;
        kill_process(pid, Signal::TERM)?;
        let status = timeout(END_DEADLINE, self.child.wait()).await;
        if status.is_err() {
            self.child.kill().await?;
        }
        stack.release(self.pid);
        let succeeded = status.is_ok_and(|status| status.is_ok_and(|status| status.success()));
        ensure!(succeeded, "{} did not end as it should:\n{}", self.name, self.log_tail());
        Ok(())
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
