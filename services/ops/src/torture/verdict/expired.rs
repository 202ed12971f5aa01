//! Commands that were accepted and that the broker let expire: none of them is pending for good.

use std::time::{Duration, Instant};

use reqwest::Client;
use tokio::time::sleep;
use uuid::Uuid;

use super::{Broken, Verdict};
use crate::torture::faults::status;
use crate::torture::schedule::Expiry;

/// Each has an outcome, or a status that says that it has none. One that became a dead letter was replayed.
pub(super) async fn judge(
    verdict: &mut Verdict,
    bases: &[String],
    expired: &[(Uuid, Expiry)],
    patience: Duration,
) -> anyhow::Result<()> {
    let http = Client::builder().no_proxy().build()?;
    let deadline = Instant::now() + patience;
    let mut left = expired.to_vec();
    loop {
        let mut pending = Vec::new();
        for ((id, expiry), base) in left.into_iter().zip(bases.iter().cycle()) {
            match (status(&http, base, id).await.as_deref(), expiry) {
                (Some("succeeded"), _) | (Some("unknown"), Expiry::Everywhere) => {}
                (status, _) => pending.push((id, expiry, status.unwrap_or("without").to_owned())),
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            for (id, _, status) in pending {
                let what = format!("command {id}, which expired in the broker, is {status} and nobody says so");
                verdict.found(Broken::Lost, what);
            }
            return Ok(());
        }
        left = pending.into_iter().map(|(id, expiry, _)| (id, expiry)).collect();
        sleep(Duration::from_millis(300)).await;
    }
}
