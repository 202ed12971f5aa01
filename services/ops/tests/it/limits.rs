//! What one instance bears: many that wait, a backlog that grows, callers without measure.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Process, System, eventually, problem};

const WAITERS: usize = 1000;
/// Of memory, a connection and its request included; 61 were measured in a debug build, with 5,000 that wait.
const KIB_PER_WAITER: usize = 100;
/// For a read beside the waiters, on a busy machine; without any it takes milliseconds.
const PROMPT: Duration = Duration::from_secs(30);

/// Resident memory in KiB.
fn memory(process: &Process) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_wait_and_each_is_answered_when_the_instance_stops() {
    let system = System::prepare().await;
    // Nobody applies anything.
    let mut api = system.api().await;
    let before = memory(&api);
    // A connection for each.
    let client = Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..WAITERS {
        let body = json!({ "email": format!("waiter{number}@example.org"), "name": "Waiter" });
        waiting.spawn(client.post(api.url("/v1/users")).header("prefer", "wait=30").json(&body).send());
    }
    eventually("everybody waits", async || {
        let metrics = system.get(&api, "/metrics").await.text().await.ok()?;
        let gauge = metrics.lines().find(|line| line.starts_with("rollcall_api_waiting"))?;
        (gauge.rsplit(' ').next()?.parse() == Ok(WAITERS)).then_some(())
    })
    .await;
    let per_waiter = memory(&api).saturating_sub(before) / WAITERS;
    assert!(per_waiter < KIB_PER_WAITER, "{per_waiter} KiB for each that waits");
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(system.get(&api, "/v1/users").await.status(), StatusCode::OK);
        assert!(began.elapsed() < PROMPT, "a read took {:?}", began.elapsed());
    }
    api.signal(rustix::process::Signal::TERM);
    let mut accepted = 0;
    while let Some(answer) = waiting.join_next().await {
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        accepted += 1;
    }
    assert_eq!(accepted, WAITERS);
    assert!(api.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_instance_drains_nobody_begins_to_wait_and_nobody_is_told_so() {
    let mut system = System::prepare().await;
    system.set("DRAIN_DELAY_MS", "15000");
    // Nobody applies anything.
    let mut api = system.api().await;
    api.signal(rustix::process::Signal::TERM);
    eventually("it drains", async || (system.get(&api, "/readyz").await.status() == 503).then_some(())).await;
    let body = json!({ "email": "late@example.org", "name": "Late" });
    let answer = system.post(&api, "/v1/users", "wait=30", &body).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert!(!answer.headers().contains_key("preference-applied"), "no wait was granted");
    assert!(api.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_nobody_waits_and_everybody_has_the_promise() {
    let mut system = System::prepare().await;
    system.set("MAX_WAITING", "1");
    let api = system.api().await;
    let create = async |number: usize| {
        let body = json!({ "email": format!("waiter{number}@example.org"), "name": "Waiter" });
        let answer = system.post(&api, "/v1/users", "wait=10", &body).await;
        (answer.status(), answer.headers().contains_key("preference-applied"))
    };
    let answers = join_all((0..3).map(create)).await;
    let applied = answers.iter().filter(|(status, applied)| *status == StatusCode::ACCEPTED && *applied).count();
    assert_eq!((answers.len(), applied), (3, 1), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_applied_in_time_sheds_what_comes_until_it_is() {
    let mut system = System::prepare().await;
    system.set("SHED_AFTER_SECONDS", "1");
    system.set("PARTITIONS", "1");
    let api = system.api().await;
    let create = async |number: usize| {
        let body = json!({ "email": format!("late{number}@example.org"), "name": "Late" });
        system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap()
    };
    let mut number = 0;
    let refused = eventually("a write is refused", async || {
        number += 1;
        let answer = create(number).await;
        (answer.status() != StatusCode::ACCEPTED).then_some(answer)
    })
    .await;
    assert_eq!(refused.headers()["retry-after"], "5");
    problem(refused, 503, "overloaded").await;
    let read: Value = system.get(&api, "/v1/users").await.json().await.unwrap();
    assert_eq!(read["items"], json!([]), "reads go on");

    let _worker = system.worker().await;
    eventually("writes are accepted again, one like the other", async || {
        number += 2;
        let (first, second) = (create(number).await.status(), create(number + 1).await.status());
        ((first, second) == (StatusCode::ACCEPTED, StatusCode::ACCEPTED)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_without_measure_is_refused_and_others_are_served() {
    let mut system = System::prepare().await;
    system.set("RATE_LIMIT_PER_MINUTE", "10");
    system.set("TRUSTED_PROXIES", "1");
    let api = system.api().await;
    let ask = async |address: &str| {
        system.client.get(api.url("/v1/users")).header("x-forwarded-for", address).send().await.unwrap()
    };
    for left in (0..10).rev() {
        let answer = ask("192.0.2.1").await;
        let shown = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert_eq!(answer.status(), StatusCode::OK);
        // One more is allowed every six seconds.
        assert!((left..10).any(|left| shown.contains(&format!("r={left};"))), "{shown}, {left} left");
    }
    let refused = join_all((0..10).map(|_| ask("192.0.2.1"))).await;
    let refused = refused.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).unwrap();
    problem(refused, 429, "too-many-requests").await;
    assert_eq!(ask("192.0.2.2").await.status(), StatusCode::OK);
}
