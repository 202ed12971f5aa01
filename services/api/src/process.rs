//! How the API's parts are put together.

use common::broker::supervise;
use common::config::Reader;
use common::db::{Pool, Role, monitor, observe_pool};
use common::health::{Ability, Health};
use common::http;
use common::membership::{API, Member};
use common::shutdown::Shutdown;
use poem::EndpointExt;
use tracing::info;

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
    common::process::run("rollcall-api", &service, async |shutdown| start(shutdown, settings).await).await?;
    Ok(())
}

/// Starts every part; the pool is closed last.
async fn start(shutdown: &Shutdown, settings: ApiSettings) -> anyhow::Result<Pool> {
    let (service, limits) = (settings.service, settings.limits.possible());
    // First: a port that is taken ends the process before any other part has begun.
    let listener = http::bind(settings.listen).await?;
    let health = Health::new(settings.ready_when, shutdown.clone());
    // The API never writes to the database, and its sessions could not.
    let (member, _, pool) = Member::new(API, &service, None, &[("default_transaction_read_only", "on")])?;
    let (identity, clock) = (member.identity(), member.clock());
    observe_pool(&pool);
    monitor(shutdown, &health, Ability::Read, service.control.clone(), Role::Member(Box::new(member)));
    let link = supervise(shutdown, &health, "broker", &service.broker, Some(identity));
    let api = Api::over(shutdown, &health, pool.clone(), &service.broker, link, clock, service.retention, &limits);
    let guard = Guard::start(shutdown, &health, &pool, settings.auth, limits.rate)?;
    info!(address = %listener.local_addr()?, "API listens");
    let routes = app::routes(api, guard, &health, limits.origins).boxed();
    http::serve(shutdown, "http", listener, limits.connections, routes);
    Ok(pool)
}
