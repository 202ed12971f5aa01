//! Whether this worker reaches the broker: the heartbeat goes to the database and knows nothing of it, and one that does not
//! shall leave its partitions to those that do.

use common::broker::{Link, LinkState};
use common::membership::Holdings;
use common::shutdown::{Phase, Shutdown, Tier};

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
        let up = matches!(*link.borrow_and_update(), LinkState::Up { .. });
        holdings.reaches_broker(up);
        if link.changed().await.is_err() {
            // The link ends after this task.
            return std::future::pending().await;
        }
    }
}
