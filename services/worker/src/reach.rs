//! Whether this worker reaches the broker. One that does not gives its partitions to those that do: the heartbeat goes to the
//! database and knows nothing of it. While nobody reaches the broker nothing moves.

use std::time::Duration;

use common::broker::{Link, LinkState};
use common::membership::Holdings;
use common::shutdown::{Phase, Shutdown, Tier};
use tokio::time::timeout;
use tracing::{info, warn};

/// A broker that is started again, or a connection that is cut, is back before that.
const PATIENCE: Duration = Duration::from_secs(5);

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
    let up = |state: &LinkState| matches!(state, LinkState::Up { .. });
    // The sender lives as long as the process: no wait can fail.
    loop {
        if timeout(PATIENCE, link.wait_for(up)).await.is_err() {
            warn!("the broker is out of reach: other workers shall have the partitions");
            holdings.reaches_broker(false);
            let _ = link.wait_for(up).await;
            info!("the broker is back within reach");
        }
        holdings.reaches_broker(true);
        let _ = link.wait_for(|state| !up(state)).await;
    }
}
