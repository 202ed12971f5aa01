//! Which fault comes next, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use local_stack::StopMode;
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use tokio::time::sleep;

use super::load::Load;
use super::system::{Service, System};

/// The age at which a quorum queue survives a kill of its broker.
const SETTLED: Duration = Duration::from_secs(10);

/// A seeded stream of faults.
pub(crate) struct Schedule {
    random: StdRng,
    began: Instant,
    done: BTreeMap<&'static str, u32>,
}

#[derive(Clone, Copy)]
enum Target {
    Api,
    Worker,
}

impl Schedule {
    pub(crate) fn new(random: StdRng) -> Self {
        Self { random, began: Instant::now(), done: BTreeMap::new() }
    }

    /// How many faults there were.
    pub(crate) fn count(&self) -> u32 {
        self.done.values().sum()
    }

    /// How many of each.
    pub(crate) fn summary(&self) -> String {
        self.done.iter().map(|(fault, count)| format!("{fault} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// Makes one fault and mends it; the load goes on meanwhile.
    pub(crate) async fn next(&mut self, system: &mut System, load: &Load) -> anyhow::Result<&'static str> {
        self.pause(100, 700).await;
        let fault = match self.random.random_range(0..100) {
            0..22 => self.kill(system, Target::Worker).await?,
            22..38 => self.kill(system, Target::Api).await?,
            38..50 => self.terminate(system, Target::Worker).await?,
            50..60 => self.terminate(system, Target::Api).await?,
            60..72 => self.freeze(system, Target::Worker).await?,
            72..78 => self.freeze(system, Target::Api).await?,
            78..84 => self.postgres(system).await?,
            84..88 => self.rabbitmq(system).await?,
            88..93 => self.cut_sessions(system).await?,
            _ => {
                load.repeat_some(system.stack.rabbitmq.url()).await?;
                "messages repeated"
            }
        };
        *self.done.entry(fault).or_default() += 1;
        Ok(fault)
    }

    async fn pause(&mut self, from: u64, to: u64) {
        sleep(Duration::from_millis(self.random.random_range(from..to))).await;
    }

    fn pick<'s>(&mut self, system: &'s mut System, target: Target) -> &'s mut Service {
        let services = match target {
            Target::Api => &mut system.apis,
            Target::Worker => &mut system.workers,
        };
        let number = self.random.random_range(0..services.len());
        &mut services[number]
    }

    async fn kill(&mut self, system: &mut System, target: Target) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        let away = self.random.random_range(0..800);
        let service = self.pick(system, target);
        service.kill(&stack).await?;
        sleep(Duration::from_millis(away)).await;
        service.start(&stack)?;
        Ok(match target {
            Target::Api => "API killed",
            Target::Worker => "worker killed",
        })
    }

    async fn terminate(&mut self, system: &mut System, target: Target) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        // One that just came up has its handlers set, so that SIGTERM means what it should.
        system.heal().await?;
        let service = self.pick(system, target);
        service.terminate(&stack).await?;
        service.start(&stack)?;
        Ok(match target {
            Target::Api => "API terminated",
            Target::Worker => "worker terminated",
        })
    }

    async fn freeze(&mut self, system: &mut System, target: Target) -> anyhow::Result<&'static str> {
        let long = self.random.random_bool(0.3);
        let length = if long { self.random.random_range(5500..7500) } else { self.random.random_range(300..2500) };
        let stack = Arc::clone(&system.stack);
        let service = self.pick(system, target);
        // One that ended by itself is started again.
        service.start(&stack)?;
        service.signal(Signal::STOP)?;
        sleep(Duration::from_millis(length)).await;
        service.signal(Signal::CONT)?;
        Ok(match target {
            Target::Api => "API frozen",
            Target::Worker => "worker frozen",
        })
    }

    async fn postgres(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.stop(StopMode::Immediate)).await??;
        self.pause(100, 2000).await;
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.start()).await??;
        Ok("PostgreSQL stopped")
    }

    async fn rabbitmq(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        // A broker that is killed within seconds of the birth of a quorum queue can come back with that queue for ever without
        // a leader (seen with RabbitMQ 3.10.8): no fault of the services, and nothing that they could mend.
        let settled = self.began.elapsed() > SETTLED;
        let end = move || if settled { stack.rabbitmq.kill() } else { stack.rabbitmq.stop() };
        tokio::task::spawn_blocking(end).await??;
        self.pause(100, 1000).await;
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.rabbitmq.start()).await??;
        Ok(if settled { "RabbitMQ killed" } else { "RabbitMQ stopped" })
    }

    /// Ends every session of the services in the database, control connections included.
    async fn cut_sessions(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let mut connection = system.database().await?;
        sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rollcall%' AND pid <> pg_backend_pid()")
            .execute(&mut connection)
            .await?;
        Ok("sessions cut")
    }
}
