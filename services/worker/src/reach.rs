//! Whether this worker reaches the broker: the heartbeat goes to the database and knows nothing of it, and one that does not
//! shall leave its partitions to those that do.

use common::broker::{Link, LinkState};
use common::membership::Holdings;
use common::shutdown::{Phase, Shutdown, Tier};
use tracing::warn;

/// The name in the readiness report.
const CHANNELS: &str = "channels";
/// For the broker's dead letters, and to declare the topology.
const OTHER_CHANNELS: u16 = 2;

/// Starts the task that tells; it ends when the process closes.
pub(crate) fn start(shutdown: &Shutdown, link: Link, holdings: Holdings) {
    let closing = shutdown.clone();
    shutdown.supervise("reach", Tier::Back, async move {
        tokio::select! {
            () = closing.reached(Phase::Closing) => {}
            () = tell(link, &holdings) => {}
        }
        Ok(())
    });
}

async fn tell(mut link: Link, holdings: &Holdings) {
    loop {
        let up = match &*link.borrow_and_update() {
            LinkState::Up { connection, reports, .. } => {
                let allowed = connection.configuration().channel_max();
                let problem = too_few(allowed, reports.topology().partitions());
                if reports.auxiliary(CHANNELS, problem.clone().map(Into::into))
                    && let Some(reason) = problem
                {
                    warn!(reason, "too few channels");
                }
                true
            }
            LinkState::Down(_) | LinkState::Blocked(_) => false,
        };
        holdings.reaches_broker(up);
        if link.changed().await.is_err() {
            // The link ends after this task.
            return std::future::pending().await;
        }
    }
}

/// What is wrong with the limit of channels for a worker that owns every partition.
fn too_few(allowed: u16, partitions: u16) -> Option<String> {
    let needed = partitions.saturating_add(OTHER_CHANNELS);
    (allowed < needed).then(|| {
        format!(
            "the broker allows {allowed} on a connection, and a worker that owns all {partitions} partitions needs {needed}; \
             raise `channel_max` in rabbitmq.conf, or take channel_max out of AMQP_URL"
        )
    })
}
