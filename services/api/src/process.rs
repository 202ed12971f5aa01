//! How the API's parts are put together.

use common::broker::supervise;
use common::config::Reader;
use common::db::{Pool, Role, monitor, observe_pool};
use common::health::{Ability, Health};
use common::http;
use common::membership::{API, Member};
use common::shutdown::Shutdown;
use poem::EndpointExt;

use crate::app::{self, Api};
use crate::auth::Guard;
use crate::settings::ApiSettings;

/// Runs the API until a signal or a failure.
///
/// # Errors
/// When the settings are faulty, it cannot start, or it does not end well.
pub async fn main() -> anyhow::Result<()> {
    let settings = ApiSettings::read(Reader::from_process())?;
    let service = settings.service.clone();
    common::process::run("rollcall-api", &service, async |shutdown| start(shutdown, settings)).await?;
    Ok(())
}

/// Starts every part; the pool is closed last. What can fail comes first: the broker's client has threads of its own, which
/// do not survive the end of the runtime.
fn start(shutdown: &Shutdown, settings: ApiSettings) -> anyhow::Result<Pool> {
    let socket = http::bind(settings.listen)?;
    let (service, limits) = (settings.service, settings.limits.possible());
    let health = Health::new(settings.ready_when, shutdown.clone());
    // The API never writes to the database, and its sessions could not.
    let (member, _, pool) = Member::new(API, &service, None, &[("default_transaction_read_only", "on")])?;
    let (identity, clock, command_ids) = (member.identity(), member.clock(), member.command_ids());
    let guard = Guard::start(shutdown, &health, &pool, settings.auth, limits.rate)?;
    observe_pool(&pool);
    monitor(shutdown, &health, Ability::Read, service.control.clone(), Role::Member(Box::new(member)));
    let link = supervise(shutdown, &health, "broker", &service.broker, Some(identity));
    let retention = service.retention;
    let api = Api::over(shutdown, &health, pool.clone(), &service.broker, link, clock, command_ids, retention, &limits);
    let connections = limits.of_connections();
    let routes = app::routes(api, guard, &health, limits.origins).boxed();
    http::serve_when_ready(shutdown, "http", socket, connections, routes, (&health, settings.listen_delay));
    Ok(pool)
}
