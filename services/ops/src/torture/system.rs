//! The system under torture: its servers, and the services as child processes that can be harmed one by one.

mod service;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::config::{DatabaseSettings, database_url};
use common::db;
use local_stack::{Options, Stack};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use url::Url;

use super::proxy::Proxy;
use crate::say;
pub(crate) use service::Service;

/// Below the range that clients' ports come from, so that none of them takes the port of a service that is down.
const PORTS: std::ops::Range<u16> = 9_000..10_000;
/// Ports of one run: the first one is held all the time, the others by its services.
const BLOCK: u16 = 250;

/// For a connection of the torture itself.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// Everything.
pub(crate) struct System {
    pub(crate) stack: Arc<Stack>,
    pub(crate) apis: Vec<Service>,
    pub(crate) workers: Vec<Service>,
    folder: TempDir,
    // Keeps other runs away from the ports of services that are down.
    _ports: TcpListener,
}

impl System {
    /// Brings up the servers and every service.
    pub(crate) async fn start(apis: usize, workers: usize, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = Options { install: true, progress: Arc::new(|line| say(line)), ..Options::new(folder.path()) };
        let stack = Arc::new(tokio::task::spawn_blocking(move || Stack::start(options)).await??);
        let mut connection = connect(&stack).await?;
        db::migrate(&mut connection, Duration::from_secs(30)).await?;
        super::verdict::observe(&mut connection).await?;
        super::illness::infect(&mut connection).await?;
        connection.close().await?;
        let (database, broker) = (Url::parse(stack.postgres.url())?, Url::parse(stack.rabbitmq.url())?);
        let bind = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let mut blocks = PORTS.step_by(BLOCK.into());
        let (first, guard) = blocks.find_map(|first| Some((first, bind(first).ok()?))).context("no free ports")?;
        let mut ports = (first + 1..first + BLOCK).filter(|port| bind(*port).is_ok());
        let mut services = Vec::with_capacity(apis + workers);
        for (role, number) in (0..apis).map(|n| ("api", n)).chain((0..workers).map(|n| ("worker", n))) {
            let (database_proxy, broker_proxy) = (Proxy::start(&database).await?, Proxy::start(&broker).await?);
            let port = ports.next().context("no free port")?;
            let mut settings = vec![
                ("DATABASE_URL".to_owned(), database_proxy.url(&database).to_string()),
                ("AMQP_URL".to_owned(), broker_proxy.url(&broker).to_string()),
                ("DRAIN_DELAY_MS".to_owned(), "200".to_owned()),
                // A complaint quotes the end of a log, which a backtrace would fill.
                ("RUST_BACKTRACE".to_owned(), "0".to_owned()),
                // A machine that is busy with all of this may take longer than a deployment should.
                ("STOP_DEADLINE_MS".to_owned(), "20000".to_owned()),
                ("PORT".to_owned(), port.to_string()),
                ("WORKER_LISTEN".to_owned(), format!("127.0.0.1:{port}")),
            ];
            settings.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            let log = folder.path().join(format!("{role}-{number}.log"));
            services.push(Service::new(role, port, log, settings, database_proxy, broker_proxy));
        }
        let workers = services.split_off(apis);
        let mut system = Self { stack, apis: services, workers, folder, _ports: guard };
        system.heal().await?;
        super::verdict::subscribe(system.stack.rabbitmq.url()).await?;
        Ok(system)
    }

    /// The URLs of the APIs.
    pub(crate) fn bases(&self) -> Vec<String> {
        self.apis.iter().map(Service::base).collect()
    }

    /// How often a service ended by itself, and was started again.
    pub(crate) fn ended(&self) -> u32 {
        self.apis.iter().chain(&self.workers).map(|service| service.ended).sum()
    }

    fn services(&mut self) -> impl Iterator<Item = &mut Service> {
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

    /// Ends the servers.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        if let Some(stack) = Arc::into_inner(self.stack) {
            tokio::task::spawn_blocking(move || stack.stop()).await?;
        }
        self.folder.close()?;
        Ok(())
    }
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
