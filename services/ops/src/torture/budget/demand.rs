//! Reads and writes that want every connection there is: now and then, many at once to each API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Client;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

/// Reads at once to one API: each takes a connection, and more than its share.
const READS: usize = 12;
/// Writes at once, for the workers.
const WRITES: usize = 3;
/// Between two bursts. What was opened stays open, so they need not be close.
const PAUSE: Duration = Duration::from_millis(400);
/// For an answer. An instance that is frozen gives none.
const ANSWER_DEADLINE: Duration = Duration::from_secs(4);

/// The clients at work; they end with the value.
pub(super) struct Demand {
    counts: Arc<Counts>,
    _clients: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Demand {
    pub(super) fn start(bases: Vec<String>) -> anyhow::Result<Self> {
        let http = Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
        let counts = Arc::new(Counts::default());
        let mut clients = JoinSet::new();
        for base in bases {
            clients.spawn(ask(http.clone(), format!("{base}/v1/users"), Arc::clone(&counts)));
        }
        Ok(Self { counts, _clients: clients })
    }

    /// Requests that were answered, and those that the service refused for now.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.answered.load(Ordering::Relaxed), self.counts.refused.load(Ordering::Relaxed))
    }
}

async fn ask(http: Client, users: String, counts: Arc<Counts>) {
    loop {
        let reads = (0..READS).map(|_| http.get(format!("{users}?limit=3")));
        let writes = (0..WRITES).map(|_| {
            let user = json!({ "email": format!("{}@soak.example", Uuid::now_v7()), "name": "Soak" });
            http.post(&users).json(&user)
        });
        for answer in join_all(reads.chain(writes).map(reqwest::RequestBuilder::send)).await {
            // An instance that does not run gives none.
            let Ok(answer) = answer else { continue };
            let count = if answer.status().is_success() { &counts.answered } else { &counts.refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        sleep(PAUSE).await;
    }
}
