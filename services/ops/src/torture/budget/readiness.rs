//! What an instance says of itself.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// The budget feeds no more instances.
    NoRoom,
    /// For another reason.
    Unready(String),
    /// It does not answer.
    Silent,
}

/// Asks the instance at this URL.
pub(super) async fn ask(base: &str) -> Readiness {
    let answer = async {
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
        let answer = client.get(format!("{base}/readyz")).send().await?;
        Ok::<_, reqwest::Error>((answer.status().is_success(), answer.json::<Value>().await?))
    };
    match answer.await {
        Err(_) => Readiness::Silent,
        Ok((true, _)) => Readiness::Ready,
        Ok((false, report)) => {
            let budget = report["checks"]["budget"].as_str().unwrap_or_default();
            if budget.contains("feeds no more") { Readiness::NoRoom } else { Readiness::Unready(report.to_string()) }
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::NoRoom => f.write_str("no room"),
            Self::Unready(report) => write!(f, "not ready: {report}"),
            Self::Silent => f.write_str("no answer"),
        }
    }
}
