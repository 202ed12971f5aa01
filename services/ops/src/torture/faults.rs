//! What each fault does, and how it is mended.

mod clock;
mod policy;
mod refusal;
mod standby;
mod strays;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::command::DEFAULT_PARTITIONS;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use local_stack::StopMode;
use rand::RngExt;
use rustix::process::Signal;
use sqlx::PgConnection;
use tokio::time::sleep;
use uuid::Uuid;

use super::illness::{self, OPERATOR_DEADLINE};
use super::load::Load;
use super::schedule::{Fault, Schedule, Target};
use super::system::System;
pub(super) use policy::status;
pub(super) use strays::Difference;

/// The age at which a quorum queue survives a kill of its broker.
const SETTLED: Duration = Duration::from_secs(10);
/// For partitions to change hands.
const SHARED_OUT: Duration = Duration::from_secs(5);
/// For a partition to be drained once nobody sends.
const DRAINED: Duration = Duration::from_secs(10);

impl Schedule {
    pub(super) async fn make(
        &mut self,
        fault: Fault,
        system: &mut System,
        load: &Load,
    ) -> anyhow::Result<&'static str> {
        match fault {
            Fault::Kill(target) => self.kill(system, target).await,
            Fault::Terminate(target) => self.terminate(system, target).await,
            Fault::Freeze(target) => self.freeze(system, target).await,
            Fault::FreezeBeyondLease => self.freeze_beyond_lease(system, false).await,
            Fault::FreezeAndCut => self.freeze_beyond_lease(system, true).await,
            Fault::StopPostgres => self.stop_postgres(system).await,
            Fault::KillRabbitMq => self.kill_rabbitmq(system).await,
            Fault::CutSessions => cut_sessions(system).await,
            Fault::CutConnections => Ok(self.cut_connections(system)),
            Fault::Blackhole => Ok(self.blackhole(system).await),
            Fault::SlowNetwork => Ok(self.slow_network(system).await),
            Fault::DeleteQueue => self.delete_queue(system, load).await,
            Fault::RepeatMessages => {
                load.repeat_some(system.stack.rabbitmq.url()).await?;
                Ok("messages repeated")
            }
            Fault::Operate => self.operate(system).await,
            Fault::DifferentSettings => self.differ(system).await,
            Fault::SkewClock(target) => self.skew_clock(system, target).await,
            Fault::Expire(expiry) => self.expire(system, load, expiry).await,
            Fault::LoseStandby => self.lose_standby(system).await,
            Fault::Promote => self.promote(system, false).await,
            Fault::PromoteBehind => self.promote(system, true).await,
        }
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
        let stack = Arc::clone(&system.stack);
        let length = self.random.random_range(300..2500);
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

    /// A busy worker wakes with commands in its hands that are no longer its own. As long as its broker connection stands,
    /// nobody else is given them; once that is cut, somebody else has applied them by then, or is just about to.
    async fn freeze_beyond_lease(&mut self, system: &mut System, cut: bool) -> anyhow::Result<&'static str> {
        system.heal().await?;
        shared_out(system).await?;
        self.pause(500, 1000).await;
        let (length, rest) = (self.random.random_range(6000..7500), self.random.random_range(1..500));
        let service = self.pick(system, Target::Worker);
        service.signal(Signal::STOP)?;
        sleep(Duration::from_millis(length)).await;
        if cut {
            service.broker.cut();
            sleep(Duration::from_millis(rest)).await;
        }
        service.signal(Signal::CONT)?;
        Ok(if cut { "worker frozen beyond its lease and cut off" } else { "worker frozen beyond its lease" })
    }

    async fn stop_postgres(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.stop(StopMode::Immediate)).await??;
        self.pause(100, 2000).await;
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.postgres.start()).await??;
        Ok("PostgreSQL stopped")
    }

    async fn kill_rabbitmq(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let stack = Arc::clone(&system.stack);
        // A broker that is killed within seconds of the birth of a quorum queue can come back with that queue for ever without
        // a leader (seen with RabbitMQ 3.10.8): no fault of the services, and nothing that they could mend.
        let settled = self.created_at.elapsed() > SETTLED;
        let end = move || if settled { stack.rabbitmq.kill() } else { stack.rabbitmq.stop() };
        tokio::task::spawn_blocking(end).await??;
        self.pause(100, 1000).await;
        let stack = Arc::clone(&system.stack);
        tokio::task::spawn_blocking(move || stack.rabbitmq.start()).await??;
        Ok(if settled { "RabbitMQ killed" } else { "RabbitMQ stopped" })
    }

    /// A kill leaves some letters replayed and the others to the next operator.
    async fn operate(&mut self, system: &System) -> anyhow::Result<&'static str> {
        let (killed, after) = (self.random.random_bool(0.3), self.random.random_range(20..800));
        illness::operate(system, if killed { Duration::from_millis(after) } else { OPERATOR_DEADLINE }).await
    }

    fn cut_connections(&mut self, system: &mut System) -> &'static str {
        let both = self.random.random_range(0..3);
        let service = self.any(system);
        if both != 1 {
            service.database.cut();
        }
        if both != 0 {
            service.broker.cut();
        }
        "connections cut"
    }

    async fn blackhole(&mut self, system: &mut System) -> &'static str {
        let (broker, cut) = (self.random.random_bool(0.5), self.random.random_bool(0.5));
        let long = self.random.random_bool(0.5);
        let length = if long { self.random.random_range(5500..7500) } else { self.random.random_range(500..2500) };
        let service = self.any(system);
        let proxy = if broker { &service.broker } else { &service.database };
        proxy.silence();
        sleep(Duration::from_millis(length)).await;
        if cut {
            proxy.cut();
        }
        // Otherwise what was held back arrives now.
        proxy.open();
        "connections blackholed"
    }

    async fn slow_network(&mut self, system: &mut System) -> &'static str {
        let (by, length) = (self.random.random_range(5..60), self.random.random_range(1000..3000));
        let service = self.any(system);
        for proxy in [&service.database, &service.broker] {
            proxy.slow(Duration::from_millis(by));
        }
        sleep(Duration::from_millis(length)).await;
        for proxy in [&service.database, &service.broker] {
            proxy.open();
        }
        "network slowed"
    }

    /// Deletes the queue of a partition that owes nothing: with it nothing that was promised may be lost. The services have
    /// to make it again, and promise nothing before they have.
    async fn delete_queue(&mut self, system: &mut System, load: &Load) -> anyhow::Result<&'static str> {
        system.heal().await?;
        let partition = self.random.random_range(0..DEFAULT_PARTITIONS);
        let queue = format!("commands.{partition}");
        let broker = Connection::connect(system.stack.rabbitmq.url(), ConnectionProperties::default()).await?;
        let channel = broker.create_channel().await?;
        let mut database = system.database().await?;
        let quiet = load.quiet().await;
        let drained = drained(&channel, &mut database, &queue, &load.promised(partition), DRAINED).await?;
        if drained {
            channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
            self.created_at = Instant::now();
        }
        drop(quiet);
        broker.close(200, "deleted".into()).await?;
        Ok(if drained { "queue deleted" } else { "queue spared" })
    }
}

/// Waits until each worker has its share of the partitions.
async fn shared_out(system: &System) -> anyhow::Result<()> {
    let mut database = system.database().await?;
    let deadline = Instant::now() + SHARED_OUT;
    while Instant::now() < deadline {
        let (owners, moving): (i64, bool) =
            sqlx::query_as("SELECT count(DISTINCT owner), bool_or(owner IS NULL OR heir IS NOT NULL) FROM partitions")
                .fetch_one(&mut database)
                .await?;
        if !moving && usize::try_from(owners)? == system.workers.len() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Waits until nothing is in the queue, nor in a worker's hands.
async fn drained(
    channel: &Channel,
    database: &mut PgConnection,
    queue: &str,
    promised: &[Uuid],
    patience: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let asked = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        if asked.message_count() == 0 {
            let decided: i64 = sqlx::query_scalar("SELECT count(*) FROM commands WHERE id = ANY($1)")
                .bind(promised)
                .fetch_one(&mut *database)
                .await?;
            if usize::try_from(decided)? == promised.len() {
                return Ok(true);
            }
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

/// Ends every session of the services in the database, control connections included.
async fn cut_sessions(system: &System) -> anyhow::Result<&'static str> {
    let mut connection = system.database().await?;
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'rollcall%' AND pid <> pg_backend_pid()")
        .execute(&mut connection)
        .await?;
    Ok("sessions cut")
}
