//! Bench site: private servers, a database for each contender, and the processes of a stage.

mod databases;
mod peers;

use std::fs::Permissions;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use common::broker::{Topology, set_up};
use common::command::DEFAULT_PARTITIONS;
use common::config::{BrokerSettings, amqp_url};
use common::db;
use common::transport::PlaintextHosts;
use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use local_stack::{Options, Stack};
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};
use tempfile::TempDir;
use tokio::process::Command;

use self::databases::{Seed, connect, seed_express, url_of};
use super::Arguments;
use super::process::Process;
use super::work::{self, Work};
use super::workload::Stage;
use crate::output::say;

/// Paths that wrk reads from; more than a connection loader could answer from one batch.
const PATHS: i64 = 20_000;
/// As in the peers' scripts.
const PEERS_QUEUE: &str = "bench.node";
/// Makes the server count statements.
const STATEMENTS: &str = "pg_stat_statements";

pub(super) struct Site {
    pub(super) stack: Arc<Stack>,
    /// A connection to Rollcall's database, to count what was applied.
    pub(super) rollcall: PgConnection,
    /// The same for the peers' database.
    pub(super) express: PgConnection,
    /// Versions of Node.js and of the packages of the peers; empty when no workload needs them.
    pub(super) peers: Vec<String>,
    stage: Stage,
    processes: Vec<Process>,
    /// Of the services that take requests.
    pub(super) bases: Vec<String>,
    apis: usize,
    workers: usize,
    statements: bool,
    settings: Vec<(String, String)>,
    broker: BrokerSettings,
    folder: TempDir,
}

impl Site {
    /// Brings up the servers, makes and fills the databases, and installs the peers if they are needed.
    pub(super) async fn prepare(arguments: &Arguments, needs_node: bool) -> anyhow::Result<Self> {
        // The servers' accounts have to reach their data in it: elsewhere it would outlive the run.
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir()?;
        let peers = if needs_node { peers::install(folder.path()).await? } else { Vec::new() };
        let mut options =
            Options { install: true, progress: Arc::new(|line| say(line)), ..Options::new(folder.path()) };
        options.max_connections = 300;
        if arguments.statements {
            options.postgres_settings.push(("shared_preload_libraries".to_owned(), STATEMENTS.to_owned()));
        }
        let stack = tokio::task::spawn_blocking(move || Stack::start(options)).await?;
        let stack = stack.with_context(|| {
            let hint = format!(" (--statements needs the library {STATEMENTS} of PostgreSQL)");
            format!("failed to start the servers{}", if arguments.statements { &hint } else { "" })
        })?;
        let stack = Arc::new(stack);
        let mut rollcall = connect(&stack, "rollcall").await?;
        db::migrate(&mut rollcall, Duration::from_secs(30)).await?;
        if arguments.statements {
            work::count_statements(&mut rollcall).await?;
        }
        let broker = broker_settings(&stack, &arguments.settings())?;
        set_up(&broker).await?;
        for database in ["express", "bare"] {
            rollcall.execute(AssertSqlSafe(format!("CREATE DATABASE {database}"))).await?;
        }
        let mut bare = connect(&stack, "bare").await?;
        db::migrate(&mut bare, Duration::from_secs(30)).await?;
        bare.execute("SELECT make_command_day((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 1) AS n")
            .await?;
        bare.close().await?;
        let mut express = connect(&stack, "express").await?;
        say(format_args!("seeding {} users in each directory", arguments.users));
        seed_express(&mut express, arguments.users).await?;
        let seed = Seed::new(arguments.users);
        seed.users(&mut rollcall).await?;
        if arguments.commands > 0 {
            say(format_args!("seeding {} rows of commands", arguments.commands));
            seed.commands(&mut rollcall, arguments.commands).await?;
        }
        rollcall.execute("CHECKPOINT").await?;
        let site = Self {
            stack,
            rollcall,
            express,
            peers,
            stage: Stage::Servers,
            processes: Vec::new(),
            bases: Vec::new(),
            apis: arguments.apis,
            workers: arguments.workers,
            statements: arguments.statements,
            settings: arguments.settings(),
            broker,
            folder,
        };
        site.write_paths(&seed)?;
        Ok(site)
    }

    fn write_paths(&self, seed: &Seed) -> anyhow::Result<()> {
        let users: Vec<i64> = (0..PATHS).map(|_| rand::random_range(1..=seed.count)).collect();
        let paths: Vec<String> = users.iter().map(|user| format!("/v1/users/{}", seed.id(*user))).collect();
        std::fs::write(self.paths(Stage::Rollcall), paths.join("\n"))?;
        let paths: Vec<String> = users.iter().map(|user| format!("/users/{user}")).collect();
        std::fs::write(self.paths(Stage::Express), paths.join("\n"))?;
        Ok(())
    }

    /// The file of paths to read in this stage.
    pub(super) fn paths(&self, stage: Stage) -> PathBuf {
        self.folder.path().join(if stage == Stage::Express { "express.paths" } else { "rollcall.paths" })
    }

    /// Partitions of Rollcall.
    pub(super) fn partitions(&self) -> u16 {
        self.broker.partitions
    }

    /// Ends what another stage needed, and starts what this one needs.
    pub(super) async fn enter(&mut self, stage: Stage) -> anyhow::Result<()> {
        if self.stage == stage {
            return Ok(());
        }
        self.clear().await?;
        self.purge().await?;
        match stage {
            Stage::Express => self.start_node("express", "express.js").await?,
            Stage::QueueApi => self.start_node("queue-api", "queue_api.js").await?,
            Stage::Queue => {
                self.start_node("queue-worker", "queue_worker.js").await?;
                self.start_node("queue-api", "queue_api.js").await?;
                // The worker takes no requests.
                self.bases.remove(0);
            }
            Stage::Api => self.start_apis().await?,
            Stage::Rollcall => {
                self.start_apis().await?;
                self.start_workers(self.workers).await?;
            }
            Stage::Servers => {}
        }
        self.stage = stage;
        Ok(())
    }

    /// Ends the processes of the stage; the first failure is given once all have ended.
    pub(super) async fn clear(&mut self) -> anyhow::Result<()> {
        (self.stage, self.bases) = (Stage::Servers, Vec::new());
        let mut end = Ok(());
        for process in self.processes.drain(..) {
            end = end.and(process.end(&self.stack).await);
        }
        end
    }

    /// Drops what waits in every queue: one stage applies nothing that another one accepted.
    async fn purge(&self) -> anyhow::Result<()> {
        let (connection, channel) = self.channel().await?;
        let topology = Topology::new(&self.broker);
        for partition in 0..self.broker.partitions {
            let queue = topology.partition_queue(partition);
            channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await?;
        }
        // Fails when no peer has declared it yet, which ends the channel.
        let _ = channel.queue_purge(PEERS_QUEUE.into(), QueuePurgeOptions::default()).await;
        Ok(connection.close(200, "done".into()).await?)
    }

    /// Everything ends.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.clear().await?;
        self.rollcall.close().await?;
        self.express.close().await?;
        if let Some(stack) = Arc::into_inner(self.stack) {
            tokio::task::spawn_blocking(move || stack.stop()).await?;
        }
        Ok(self.folder.close()?)
    }

    /// Process trees by name, the servers included.
    pub(super) fn pids(&self) -> anyhow::Result<Vec<(&'static str, Vec<u32>)>> {
        let mut pids: Vec<(&'static str, Vec<u32>)> =
            vec![("postgresql", vec![self.stack.postgres.pid()?]), ("rabbitmq", vec![self.stack.rabbitmq.pid()?])];
        for process in &self.processes {
            match pids.iter_mut().find(|(name, _)| *name == process.name) {
                Some((_, pids)) => pids.push(process.pid),
                None => pids.push((process.name, vec![process.pid])),
            }
        }
        Ok(pids)
    }

    /// Work of PostgreSQL so far.
    pub(super) async fn work(&mut self) -> sqlx::Result<Work> {
        Work::now(&mut self.rollcall, self.statements).await
    }

    /// The URL of one of the databases.
    pub(super) fn database(&self, name: &str) -> anyhow::Result<String> {
        url_of(&self.stack, name)
    }

    /// Commands in the partitions' queues that no worker has received, by a connection that stays open between looks.
    pub(super) async fn waiting(&self, (_, channel): &(Connection, Channel)) -> anyhow::Result<u64> {
        let topology = Topology::new(&self.broker);
        let mut waiting = 0;
        for partition in 0..self.broker.partitions {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = topology.partition_queue(partition);
            let queue = channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await?;
            waiting += u64::from(queue.message_count());
        }
        Ok(waiting)
    }

    pub(super) async fn channel(&self) -> anyhow::Result<(Connection, Channel)> {
        let url = self.stack.rabbitmq.url();
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }

    async fn start_node(&mut self, name: &'static str, script: &str) -> anyhow::Result<()> {
        let port = free_port()?;
        let mut command = Command::new("node");
        command
            .current_dir(self.folder.path())
            .arg(script)
            .env("NODE_ENV", "production")
            .env("DATABASE_URL", self.database("express")?)
            .env("AMQP_URL", self.stack.rabbitmq.url())
            .env("PORT", port.to_string());
        let base = self.start(name, command, port, "/healthz").await?;
        self.bases.push(base);
        Ok(())
    }

    async fn start_apis(&mut self) -> anyhow::Result<()> {
        for _ in 0..self.apis {
            let port = free_port()?;
            let own = [("PORT", port.to_string()), ("SHED_AFTER_SECONDS", "0".to_owned())];
            let command = self.service("api", own)?;
            let base = self.start("api", command, port, "/readyz").await?;
            self.bases.push(base);
        }
        Ok(())
    }

    /// Starts so many of Rollcall's workers.
    pub(super) async fn start_workers(&mut self, count: usize) -> anyhow::Result<()> {
        for _ in 0..count {
            let port = free_port()?;
            let command = self.service("worker", [("WORKER_LISTEN", format!("127.0.0.1:{port}"))])?;
            self.start("worker", command, port, "/readyz").await?;
        }
        Ok(())
    }

    /// Ends Rollcall's workers.
    pub(super) async fn stop_workers(&mut self) -> anyhow::Result<()> {
        let (workers, others): (Vec<_>, Vec<_>) =
            self.processes.drain(..).partition(|process| process.name == "worker");
        self.processes = others;
        for worker in workers {
            worker.end(&self.stack).await?;
        }
        Ok(())
    }

    fn service<const N: usize>(&self, role: &str, own: [(&str, String); N]) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env_clear()
            .arg(role)
            .env("DATABASE_URL", self.database("rollcall")?)
            .env("AMQP_URL", self.stack.rabbitmq.url())
            .env("DRAIN_DELAY_MS", "0")
            .env("LOG", "warn")
            .envs(own)
            .envs(self.settings.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Starts a process and gives its base URL once it is ready.
    async fn start(&mut self, name: &'static str, command: Command, port: u16, probe: &str) -> anyhow::Result<String> {
        let log = self.folder.path().join(format!("{name}-{port}.log"));
        let mut process = Process::start(name, command, log, &self.stack)?;
        let base = format!("http://127.0.0.1:{port}");
        let ready = process.ready(&format!("{base}{probe}")).await;
        self.processes.push(process);
        ready.map(|()| base)
    }
}

fn broker_settings(stack: &Stack, settings: &[(String, String)]) -> anyhow::Result<BrokerSettings> {
    let partitions = settings.iter().find(|(name, _)| name == "PARTITIONS");
    let partitions = partitions.map_or(Ok(DEFAULT_PARTITIONS), |(_, number)| number.parse())?;
    let url = amqp_url(stack.rabbitmq.url()).map_err(anyhow::Error::msg)?;
    let plaintext_hosts = PlaintextHosts::default();
    Ok(BrokerSettings { url, file: None, prefix: String::new(), partitions, plaintext_hosts })
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
