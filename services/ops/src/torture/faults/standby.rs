//! PostgreSQL's synchronous standby is lost, or promoted in place of the primary.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use local_stack::{Standby, StopMode};
use reqwest::Client;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::torture::schedule::{Schedule, Target};
use crate::torture::system::System;
use crate::torture::verdict::Broken;

/// Longer than a heartbeat may take, in milliseconds.
const AWAY: std::ops::Range<u64> = 4_000..8_000;
/// For partitions of a worker that was killed to change hands, in milliseconds.
const MOVED: std::ops::Range<u64> = 1_500..3_500;
/// Within which an API answers a read on a machine as busy as this.
const READ_DEADLINE: Duration = Duration::from_secs(30);

impl Schedule {
    /// Writes wait for the standby; reads go on.
    pub(super) async fn lose_standby(&mut self, system: &mut System) -> anyhow::Result<&'static str> {
        system.heal().await?;
        with_standby(system, |standby, _| {
            standby.stop(StopMode::Immediate);
            Ok(())
        })
        .await?;
        self.pause(AWAY.start, AWAY.end).await;
        for base in system.bases() {
            if !reads(&base).await? {
                let what = format!("{base} is not ready, or answers no reads, while the standby is away");
                self.findings.push((Broken::Stuck, what));
            }
        }
        with_standby(system, |standby, stack| standby.resume(&stack.postgres)).await?;
        Ok("standby lost")
    }

    /// The primary is killed, and the standby is the new one, with a standby of its own. To one that is behind, what waits
    /// for no standby never happened: partitions that changed hands are back where they were.
    pub(super) async fn promote(&mut self, system: &mut System, behind: bool) -> anyhow::Result<&'static str> {
        system.heal().await?;
        if behind {
            with_standby(system, |standby, _| {
                standby.stop(StopMode::Immediate);
                Ok(())
            })
            .await?;
            let stack = Arc::clone(&system.stack);
            self.pick(system, Target::Worker).kill(&stack).await?;
            self.pause(MOVED.start, MOVED.end).await;
        }
        let standby = system.standby.take().context("the system has no standby")?;
        let stack = Arc::clone(&system.stack);
        spawn_blocking(move || standby.promote(&stack.postgres)).await??;
        system.replicate().await?;
        system.heal().await?;
        Ok(if behind { "standby promoted that was behind" } else { "standby promoted" })
    }
}

/// Does something to the standby that blocks.
async fn with_standby(
    system: &mut System,
    act: impl FnOnce(&Standby, &local_stack::Stack) -> Result<(), local_stack::Error> + Send + 'static,
) -> anyhow::Result<()> {
    let standby = system.standby.take().context("the system has no standby")?;
    let stack = Arc::clone(&system.stack);
    let (standby, done) = spawn_blocking(move || {
        let done = act(&standby, &stack);
        (standby, done)
    })
    .await?;
    system.standby = Some(standby);
    Ok(done?)
}

/// Whether the API is ready and answers a read.
async fn reads(base: &str) -> anyhow::Result<bool> {
    let http = Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let deadline = Instant::now() + READ_DEADLINE;
    while Instant::now() < deadline {
        let mut well = true;
        for path in ["/readyz", "/v1/users?limit=1"] {
            well &= http.get(format!("{base}{path}")).send().await.is_ok_and(|answer| answer.status().is_success());
        }
        if well {
            return Ok(true);
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(false)
}
