//! The system under torture: its servers, and the services as child processes that can be harmed one by one.

mod service;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::broker::set_up;
use common::command::DEFAULT_PARTITIONS;
use common::config::{BrokerSettings, DatabaseSettings, amqp_url, database_url};
use common::db;
use common::transport::PlaintextHosts;
use local_stack::{Options, Stack, Standby};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;

use super::proxy::Proxy;
use crate::output::say;
pub(crate) use service::Service;

/// Below the range that clients' ports come from, so that none of them takes the port of a service that is down.
const PORTS: std::ops::Range<u16> = 9_000..10_000;
/// Ports of one run: the first one is held all the time, the others by its services.
const BLOCK: u16 = 250;

/// Services beyond the plan at the same time.
pub(crate) const SPARE: usize = 3;

/// For a connection of the torture itself.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// What a system consists of.
pub(crate) struct Plan<'p> {
    pub(crate) apis: usize,
    pub(crate) workers: usize,
    /// Further environment variables for the services.
    pub(crate) environment: &'p [(&'p str, &'p str)],
    /// PostgreSQL's, unless it is the stack's default.
    pub(crate) max_connections: Option<u16>,
    /// Whom the services connect as, with the name as password; else it is the owner, a superuser.
    pub(crate) role: Option<&'static str>,
    /// Whether every commit waits for a standby.
    pub(crate) standby: bool,
}

/// Everything.
pub(crate) struct System {
    pub(crate) stack: Arc<Stack>,
    pub(crate) apis: Vec<Service>,
    pub(crate) workers: Vec<Service>,
    /// PostgreSQL's, if the plan has one.
    pub(crate) standby: Option<Standby>,
    blueprint: Blueprint,
    /// Ports for further services.
    spare: Vec<u16>,
    folder: TempDir,
    // Keeps other runs away from the ports of services that are down.
    _ports: TcpListener,
}

impl System {
    /// Brings up the servers; no service runs yet.
    pub(crate) async fn prepare(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut options =
            Options { install: true, progress: Arc::new(|line| say(line)), ..Options::new(folder.path()) };
        options.max_connections = plan.max_connections.unwrap_or(options.max_connections);
        // With the SQLSTATE.
        options.postgres_settings.push(("log_line_prefix".to_owned(), "%m [%p] %e ".to_owned()));
        if plan.standby {
            options.postgres_settings.push(("synchronous_standby_names".to_owned(), "*".to_owned()));
        }
        let stack = Arc::new(tokio::task::spawn_blocking(move || Stack::start(options)).await??);
        let standby = if plan.standby { Some(start_standby(&stack).await?) } else { None };
        let mut connection = connect(&stack).await?;
        db::migrate(&mut connection, Duration::from_secs(30)).await?;
        let mut database = Url::parse(stack.postgres.url())?;
        if let Some(role) = plan.role {
            create_role(&mut connection, role).await?;
            // Fails only for URLs without a host.
            let _ = (database.set_username(role), database.set_password(Some(role)));
        }
        connection.close().await?;
        let broker = Url::parse(stack.rabbitmq.url())?;
        set_up(&broker_settings(&broker, plan)?).await?;
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let mut blocks = PORTS.step_by(BLOCK.into());
        let (first, guard) = blocks.find_map(|first| Some((first, bind(first).ok()?))).context("no free ports")?;
        let mut ports = (first + 1..first + BLOCK).filter(|port| bind(*port).is_ok());
        let environment = plan.environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let blueprint =
            Blueprint { database, broker, environment: environment.collect(), folder: folder.path().to_owned() };
        let mut services = Vec::with_capacity(plan.apis + plan.workers);
        for (role, number) in (0..plan.apis).map(|n| ("api", n)).chain((0..plan.workers).map(|n| ("worker", n))) {
            let port = ports.next().context("no free port")?;
            services.push(blueprint.service(role, &format!("{role}-{number}"), port).await?);
        }
        let spare: Vec<u16> = ports.take(SPARE).collect();
        let workers = services.split_off(plan.apis);
        Ok(Self { stack, apis: services, workers, standby, blueprint, spare, folder, _ports: guard })
    }

    /// A further service, not started; the number is below [`SPARE`].
    pub(crate) async fn stray(&self, role: &'static str, number: usize) -> anyhow::Result<Service> {
        let port = *self.spare.get(number).context("no spare port")?;
        self.blueprint.service(role, &format!("stray-{}", Uuid::now_v7()), port).await
    }

    /// Makes a standby of the primary, which has none.
    pub(crate) async fn replicate(&mut self) -> anyhow::Result<()> {
        self.standby = Some(start_standby(&self.stack).await?);
        Ok(())
    }

    /// The URLs of the APIs.
    pub(crate) fn bases(&self) -> Vec<String> {
        self.apis.iter().map(Service::base).collect()
    }

    /// How often a service ended by itself, and was started again.
    pub(crate) fn ended(&self) -> u32 {
        self.apis.iter().chain(&self.workers).map(|service| service.ended).sum()
    }

    /// For files of this run.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the servers and the services write their logs.
    pub(crate) fn logs(&self) -> [PathBuf; 2] {
        [self.folder.path().join("logs"), self.folder.path().to_owned()]
    }

    pub(crate) fn services(&mut self) -> impl Iterator<Item = &mut Service> {
        self.apis.iter_mut().chain(&mut self.workers)
    }

    /// Starts whatever is down, and waits until everything is ready; what does not become ready is noted.
    pub(crate) async fn heal(&mut self) -> anyhow::Result<()> {
        let stack = Arc::clone(&self.stack);
        for service in self.services() {
            service.start(&stack)?;
        }
        for service in self.services() {
            service.ready(&stack).await?;
        }
        Ok(())
    }

    /// A connection for the verdict.
    pub(crate) async fn database(&self) -> anyhow::Result<PgConnection> {
        connect(&self.stack).await
    }

    /// Ends every service in order; gives what was wrong with services all along.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<Vec<String>> {
        let stack = Arc::clone(&self.stack);
        let mut complaints = Vec::new();
        for service in self.services() {
            service.terminate(&stack).await?;
            complaints.append(&mut service.complaints);
        }
        Ok(complaints)
    }

    /// Ends the servers. The logs stay when something was found that they may explain, unless it was put there to be found.
    pub(crate) async fn end(self, found: bool) -> anyhow::Result<()> {
        if let Some(standby) = self.standby {
            tokio::task::spawn_blocking(move || drop(standby)).await?;
        }
        if let Some(stack) = Arc::into_inner(self.stack) {
            tokio::task::spawn_blocking(move || stack.stop()).await?;
        }
        if found && !cfg!(feature = "mutants") {
            say(format_args!("the logs of servers and services are in {}", self.folder.keep().display()));
        } else {
            self.folder.close()?;
        }
        Ok(())
    }
}

/// How services of one system are made.
struct Blueprint {
    database: Url,
    broker: Url,
    environment: Vec<(String, String)>,
    folder: PathBuf,
}

impl Blueprint {
    /// Behind proxies of its own; not started.
    async fn service(&self, role: &'static str, name: &str, port: u16) -> anyhow::Result<Service> {
        let (database, broker) = (Proxy::start(&self.database).await?, Proxy::start(&self.broker).await?);
        let mut settings = vec![
            ("DATABASE_URL".to_owned(), database.url(&self.database).to_string()),
            ("AMQP_URL".to_owned(), broker.url(&self.broker).to_string()),
            ("DRAIN_DELAY_MS".to_owned(), "200".to_owned()),
            // Writes are accepted while the database is away, and readiness is looked at from the first moment.
            ("LISTEN_DELAY_MS".to_owned(), "0".to_owned()),
            // A complaint quotes the end of a log, which a backtrace would fill.
            ("RUST_BACKTRACE".to_owned(), "0".to_owned()),
            // More than a service is frozen for between the minting of an id and its publish.
            ("UNKNOWN_AFTER_SECONDS".to_owned(), "30".to_owned()),
            // A machine that is busy with all of this may take longer than a deployment should.
            ("STOP_DEADLINE_MS".to_owned(), "20000".to_owned()),
            ("PORT".to_owned(), port.to_string()),
            ("WORKER_LISTEN".to_owned(), format!("127.0.0.1:{port}")),
        ];
        settings.extend(self.environment.iter().cloned());
        let log = self.folder.join(format!("{name}.log"));
        Ok(Service::new(role, port, log, settings, database, broker))
    }
}

fn broker_settings(broker: &Url, plan: &Plan<'_>) -> anyhow::Result<BrokerSettings> {
    let partitions = plan.environment.iter().find(|(name, _)| *name == "PARTITIONS");
    let partitions = partitions.map_or(Ok(DEFAULT_PARTITIONS), |(_, number)| number.parse())?;
    let url = amqp_url(broker.as_str()).map_err(anyhow::Error::msg)?;
    let plaintext_hosts = PlaintextHosts::default();
    Ok(BrokerSettings { url, file: None, prefix: String::new(), partitions, plaintext_hosts })
}

async fn start_standby(stack: &Arc<Stack>) -> anyhow::Result<Standby> {
    let stack = Arc::clone(stack);
    Ok(tokio::task::spawn_blocking(move || Standby::start(&stack.postgres)).await??)
}

async fn create_role(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    // The owner's rights without being a superuser, who is given the last connections, too.
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD '{role}' IN ROLE rollcall");
    sqlx::query(AssertSqlSafe(create)).execute(connection).await?;
    Ok(())
}

async fn connect(stack: &Stack) -> anyhow::Result<PgConnection> {
    let url = database_url(stack.postgres.url()).map_err(anyhow::Error::msg)?;
    let settings = DatabaseSettings { url, connections: 1 };
    // A server that has just come back, on a machine as busy as this, can be slow to answer.
    let deadline = Instant::now() + CONNECT_DEADLINE;
    loop {
        match db::connect(&settings, "rollcall-torture").await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}
