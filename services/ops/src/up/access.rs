//! Access of the services to the servers: roles and users of their own at private servers, the given URLs at others.

use std::path::Path;
use std::time::Duration;

use common::broker::{BrokerUser, set_up};
use common::config::{BrokerSettings, DatabaseSettings, DatabaseUrl, Reader, database_url, given_database_url};
use common::db;
use common::db::roles::ServerRole;
use local_stack::Stack;
use secrecy::ExposeSecret;
use sqlx::Connection;

use crate::output::say;
use crate::roles::RoleUrls;

/// For another migrator to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Environment variables that say how a service reaches the servers.
type Variables = Vec<(&'static str, String)>;

/// What each part connects with.
pub(super) struct Access {
    pub(super) api: Variables,
    pub(super) worker: Variables,
    /// The database's URL for the operator's commands.
    pub(super) operator: String,
}

impl Access {
    /// Makes the roles where the server is a private one, migrates, and declares the exchanges and queues.
    pub(super) async fn prepare(stack: &Stack, folder: &Path, direct: Option<&DatabaseUrl>) -> anyhow::Result<Self> {
        let owned = given_database_url(&mut Reader::from_process()).is_none();
        let mut access = if owned { Self::roles(stack, folder).await? } else { Self::given(stack, direct) };
        migrate(direct.map_or(access.operator.as_str(), DatabaseUrl::expose)).await?;
        for (user, variables) in [(BrokerUser::Api, &mut access.api), (BrokerUser::Worker, &mut access.worker)] {
            variables.push(("AMQP_URL", broker_url(stack, user)));
        }
        let url = broker_url(stack, BrokerUser::Setup);
        let given = Reader::from_process();
        let shared = ["BROKER_PREFIX", "PARTITIONS", "PLAINTEXT_HOSTS"]
            .map(|name| (name.to_owned(), given.raw(name).unwrap_or_default().to_owned()));
        let mut reader = Reader::new([("AMQP_URL".to_owned(), url)].into_iter().chain(shared));
        let settings = BrokerSettings::read(&mut reader);
        let declared = set_up(&reader.finish(settings)?).await?;
        say(format_args!("Broker: {} exchanges and queues", declared.len()));
        Ok(access)
    }

    /// Everything with the URL that was given.
    fn given(stack: &Stack, direct: Option<&DatabaseUrl>) -> Self {
        let url = ("DATABASE_URL", stack.postgres.url().to_owned());
        let direct = direct.map(|url| ("DATABASE_URL_DIRECT", url.expose().to_owned()));
        let variables: Variables = [url].into_iter().chain(direct).collect();
        Self { api: variables.clone(), worker: variables, operator: stack.postgres.url().to_owned() }
    }

    async fn roles(stack: &Stack, folder: &Path) -> anyhow::Result<Self> {
        let owner = database_url(stack.postgres.url()).map_err(|fault| anyhow::anyhow!("DATABASE_URL {fault}"))?;
        let urls = RoleUrls::ensure(&owner, &folder.join("roles")).await?;
        let url = |role| anyhow::Ok(urls.of(role)?.expose_secret().to_owned());
        let service = |service, control| {
            anyhow::Ok(vec![("DATABASE_URL", url(service)?), ("DATABASE_CONTROL_URL", url(control)?)])
        };
        Ok(Self {
            api: service(ServerRole::Api, ServerRole::ControlApi)?,
            worker: service(ServerRole::Worker, ServerRole::ControlWorker)?,
            operator: url(ServerRole::Migrator)?,
        })
    }
}

async fn migrate(url: &str) -> anyhow::Result<()> {
    let url = database_url(url).map_err(|fault| anyhow::anyhow!("DATABASE_URL {fault}"))?;
    let settings = DatabaseSettings { url, connections: 1 };
    let mut connection = db::connect(&settings, "rollcall-migrate").await?;
    let migrated = db::migrate(&mut connection, PATIENCE).await?;
    connection.close().await?;
    say(format_args!("Schema: version {}, {} migration(s) applied now", migrated.version, migrated.applied.len()));
    Ok(())
}

/// The URL of the user of its own, or the one for everything.
fn broker_url(stack: &Stack, user: BrokerUser) -> String {
    stack.rabbitmq.user_url(&user.name("rollcall")).unwrap_or_else(|| stack.rabbitmq.url().to_owned())
}
