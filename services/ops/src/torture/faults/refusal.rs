//! A process that must not take part: it is never ready, accepts nothing, and says what is wrong with it.

use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::torture::system::Service;

/// For how long it is watched once it has said what is wrong.
const WATCHED: Duration = Duration::from_secs(2);
/// For how long it is tempted once it answers: a broker that it must not use is connected by then.
const TEMPTED: Duration = Duration::from_secs(6);
/// Within which it has to say so, on a machine as busy as this.
const PATIENCE: Duration = Duration::from_secs(45);
const INTERVAL: Duration = Duration::from_millis(50);
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Since when a process must not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Start,
    /// What is wrong with it began while it ran: it may take a moment to notice.
    Now,
}

/// Watches a process that must not take part: it has to end with an error, or to be unready, with one of the words in the
/// log or among the failed checks. Gives what it did instead.
pub(super) async fn watch(service: &mut Service, since: Since, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let http = Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
    let (mut found, mut last) = (Vec::new(), String::new());
    let (began, mut named_at) = (Instant::now(), None);
    loop {
        if let Some(status) = service.exit()? {
            let log = service.last_words();
            if status.success() || !named(&log, words) {
                found.push(format!("ended ({status}) and did not name {words:?}:\n{log}"));
            }
            return Ok(found);
        }
        match readiness(&http, &service.base()).await {
            Some(Ok(())) if since == Since::Start || named_at.is_some() => {
                found.push("was ready".to_owned());
                return Ok(found);
            }
            Some(Err(reasons)) => {
                if named(&reasons, words) {
                    named_at.get_or_insert_with(Instant::now);
                }
                last = reasons;
            }
            Some(Ok(())) | None => {}
        }
        if found.is_empty() && (since == Since::Start || named_at.is_some()) {
            found.extend(accepted(&http, service).await);
        }
        if named_at.is_some_and(|at: Instant| at.elapsed() > WATCHED) {
            return Ok(found);
        }
        if named_at.is_none() && began.elapsed() > PATIENCE {
            found.push(format!("did not name {words:?} within {PATIENCE:?}: {last}"));
            return Ok(found);
        }
        sleep(INTERVAL).await;
    }
}

/// Sends writes to a process that was just started, until it has answered anything for a while. Gives what it did that it
/// must not.
pub(super) async fn tempt(service: &Service) -> anyhow::Result<Option<String>> {
    let http = Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
    let (began, mut answered_at) = (Instant::now(), None);
    while began.elapsed() < PATIENCE && answered_at.is_none_or(|at: Instant| at.elapsed() < TEMPTED) {
        if readiness(&http, &service.base()).await.is_some() {
            answered_at.get_or_insert_with(Instant::now);
        }
        if let Some(accepted) = accepted(&http, service).await {
            return Ok(Some(accepted));
        }
        sleep(INTERVAL).await;
    }
    Ok(None)
}

fn named(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.contains(word))
}

/// The checks that fail, unless it is ready; `None` without an answer.
async fn readiness(http: &Client, base: &str) -> Option<Result<(), String>> {
    let answer = http.get(format!("{base}/readyz")).send().await.ok()?;
    if answer.status().is_success() {
        return Some(Ok(()));
    }
    let report: Value = answer.json().await.ok()?;
    let checks = report["checks"].as_object()?;
    let failed = checks.iter().filter_map(|(name, state)| {
        let reason = state.as_str()?.strip_prefix("failed")?;
        Some(format!("{name}{reason}"))
    });
    Some(Err(failed.collect::<Vec<_>>().join("\n")))
}

/// Sends a create to an API; gives the answer, if it is accepted.
async fn accepted(http: &Client, service: &Service) -> Option<String> {
    if service.role != "api" {
        return None;
    }
    let email = format!("stray-{}@torture.example", Uuid::now_v7());
    let create = http.post(format!("{}/v1/users", service.base())).json(&json!({ "email": email, "name": "Stray" }));
    let status = create.send().await.ok()?.status();
    status.is_success().then(|| format!("answered a write with {status}"))
}
