//! All routes and middleware.

use std::sync::Arc;

use std::time::Duration;

use bytes::Bytes;
use common::broker::{Link, LinkState, PublisherPool, Topology};
use common::command::{CommandIdKey, CommandKeys, DEFAULT_PARTITIONS};
use common::config::{BrokerSettings, DatabaseSettings, Retention, database_url};
use common::db::{DatabaseClock, Pool};
use common::health::{Health, ReadyWhen};
use common::http::probes;
use common::shutdown::Shutdown;
use common::transport::PlaintextHosts;
use poem::{Endpoint, EndpointExt, Response, get};
use secrecy::SecretString;
use tokio::sync::watch;
use uuid::Uuid;

use crate::accept::Acceptor;
use crate::auth::Guard;
use crate::backlog::Backlog;
use crate::commands;
use crate::contract;
use crate::cors::Origins;
use crate::edge::Edge;
use crate::fixed::Fixed;
use crate::limits::Limits;
use crate::loader::Loader;
use crate::problem;
use crate::query::KnownQuery;
use crate::users::{self, User};
use crate::waiting::Waiting;

/// Confirm channels, so that a slow confirm holds up only its share of the partitions.
const PUBLISHERS: u16 = 4;

/// What the operations work with.
#[derive(Debug)]
pub struct Api {
    /// Point reads of users.
    pub(crate) users: Loader<User>,
    /// Publishes commands and waits for their outcomes.
    pub(crate) acceptor: Acceptor,
    /// For lists.
    pub(crate) pool: Pool,
    /// How long outcomes are kept.
    pub(crate) retention: Retention,
}

impl Api {
    /// An API without servers behind it: enough to write the contract and to refuse what is not valid. Every read and
    /// every accepted command ends with 503.
    ///
    /// # Errors
    /// None in practice; the placeholder URL is valid.
    pub fn unconnected(shutdown: &Shutdown) -> anyhow::Result<Self> {
        let url = database_url("postgres://nobody@127.0.0.1:1/nothing").map_err(anyhow::Error::msg)?;
        let database = DatabaseSettings { url, connections: 1 };
        let url = SecretString::from("amqp://nobody@127.0.0.1:1/");
        let broker = BrokerSettings {
            url,
            file: None,
            prefix: String::new(),
            partitions: DEFAULT_PARTITIONS,
            plaintext_hosts: PlaintextHosts::default(),
        };
        let (_, link) = watch::channel(LinkState::Down("not connected".to_owned()));
        let pool = Pool::new(&database, "rollcall", &[])?;
        let health = Health::new(ReadyWhen::default(), shutdown.clone());
        let (clock, retention) = (DatabaseClock::default(), Retention(Duration::from_hours(720)));
        let (_, command_ids) = watch::channel(Some(CommandIdKey::of_deployment(Uuid::nil())));
        Ok(Self::over(shutdown, &health, pool, &broker, link, clock, command_ids, retention, &Limits::default()))
    }

    /// An API over its servers.
    #[expect(clippy::too_many_arguments, reason = "each is a part that an API stands on")]
    pub fn over(
        shutdown: &Shutdown,
        health: &Health,
        pool: Pool,
        broker: &BrokerSettings,
        link: Link,
        clock: DatabaseClock,
        command_ids: watch::Receiver<Option<CommandIdKey>>,
        retention: Retention,
        limits: &Limits,
    ) -> Self {
        let decisions = Loader::start(shutdown, &pool, commands::decided);
        let backlog = Backlog::start(shutdown, health, &decisions, limits.shed_after);
        let acceptor = Acceptor::new(
            PublisherPool::start(shutdown, &link, PUBLISHERS),
            Topology::new(broker),
            Waiting::start(shutdown, link, limits.waiting),
            decisions,
            backlog,
            clock,
            command_ids,
            shutdown.clone(),
        );
        Self { users: Loader::start(shutdown, &pool, users::by_ids), acceptor, pool, retention }
    }

    /// The same, with commands that are signed if there are keys.
    #[must_use]
    pub fn signing(mut self, keys: CommandKeys) -> Self {
        self.acceptor.sign_with(keys);
        self
    }
}

/// Everything the service answers; the guard stands before the operations, and nothing else.
pub fn routes(api: Api, guard: Guard, health: &Health, origins: Origins) -> impl Endpoint<Output = Response> + use<> {
    let service = contract::service(&Arc::new(api));
    let document = contract::mended(&service);
    let (allowed, known) = (contract::allowed_methods(&document), KnownQuery::new(&document));
    let document = Bytes::from(contract::text(&document));
    probes(health)
        .at("/", get(Fixed::front()))
        .at("/openapi.json", get(Fixed::contract(document.clone())))
        .at("/docs", get(Fixed::page(document)))
        .at("/problems", get(problem::list))
        .at("/problems/:name", get(problem::describe))
        .nest_no_strip("/v1", service.data(guard.clone()).with(known))
        .with(Edge::new(allowed, origins, Some(guard)))
}
