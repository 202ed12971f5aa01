//! Load generators: closed loop by wrk, where each connection sends as soon as it has its answer; open loop by this process,
//! where the time of each request is fixed beforehand and its latency counts from that time (no coordinated omission).

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use tempfile::NamedTempFile;
use tokio::process::Command;
use tokio::task::{JoinSet, spawn_blocking};

use super::figure;

const SCRIPT: &str = include_str!("wrk.lua");
/// Of wrk, unless there are fewer connections.
const THREADS: usize = 2;
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// What a load came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    /// Requests that were answered with the expected status.
    pub(super) answers: u64,
    pub(super) seconds: f64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
    /// Answers with another status, and requests without an answer.
    pub(super) errors: u64,
}

/// wrk with its version.
pub(super) async fn wrk_version() -> anyhow::Result<String> {
    let output = Command::new("wrk").arg("-v").stderr(Stdio::null()).output().await;
    let output = output.context("wrk cannot be run; install it, for example: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next().unwrap_or_default();
    Ok(line.split(" [").next().unwrap_or_default().to_owned())
}

/// What wrk sends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'r> {
    /// The URL as it is.
    Constant,
    /// One of the paths in this file.
    Read(&'r Path),
    /// A new user.
    Create,
    /// A new user, and the answer is the outcome.
    Waited,
}

/// How much wrk sends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Volume {
    pub(super) connections: usize,
    pub(super) length: Duration,
    /// Requests per second at most.
    pub(super) limit: Option<f64>,
}

/// Closed loop against one or several instances, each with an equal part of the connections. The 50th percentile of several
/// is the mean of theirs, the 99th the highest.
pub(super) async fn closed(urls: &[String], request: Request<'_>, volume: Volume) -> anyhow::Result<Load> {
    let instances = figure(urls.len() as u64);
    let share = Volume {
        connections: (volume.connections / urls.len().max(1)).max(1),
        limit: volume.limit.map(|limit| limit / instances),
        ..volume
    };
    let loads = try_join_all(urls.iter().map(|url| wrk(url, request, share))).await?;
    let mean = loads.iter().filter_map(|load| load.p50_ms).sum::<f64>() / instances;
    Ok(Load {
        answers: loads.iter().map(|load| load.answers).sum(),
        seconds: loads.iter().map(|load| load.seconds).fold(0.0, f64::max),
        p50_ms: Some(mean),
        p99_ms: loads.iter().filter_map(|load| load.p99_ms).reduce(f64::max),
        errors: loads.iter().map(|load| load.errors).sum(),
    })
}

async fn wrk(url: &str, request: Request<'_>, volume: Volume) -> anyhow::Result<Load> {
    let script = NamedTempFile::with_suffix(".lua")?;
    std::fs::write(script.path(), SCRIPT)?;
    let threads = volume.connections.min(THREADS);
    let (kind, source) = match request {
        // wrk drops empty arguments.
        Request::Constant => ("constant", "-".to_owned()),
        Request::Read(paths) => ("read", paths.display().to_string()),
        Request::Create => ("create", prefix()),
        Request::Waited => ("waited", prefix()),
    };
    let limit = volume.limit.unwrap_or_default();
    let output = Command::new("wrk")
        .arg(format!("-t{threads}"))
        .arg(format!("-c{}", volume.connections))
        .arg(format!("-d{}s", volume.length.as_secs()))
        .arg(format!("--timeout={}s", ANSWER_DEADLINE.as_secs()))
        .arg("-s")
        .arg(script.path())
        .args([url, "--", kind, &source, &format!("{limit:.3}"), &threads.to_string()])
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("rollcall-bench "));
    let Some(line) = line else { bail!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)) };
    let figures: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let &[requests, micros, p50, p99, refused, unanswered] = figures.as_slice() else {
        bail!("wrk reported: {line}");
    };
    Ok(Load {
        answers: requests.saturating_sub(refused),
        seconds: figure(micros) / 1e6,
        p50_ms: Some(figure(p50) / 1e3),
        p99_ms: Some(figure(p99) / 1e3),
        errors: refused + unanswered,
    })
}

/// Open loop: creates, so many per second.
pub(super) async fn paced(url: &str, waited: bool, per_second: u32, length: Duration) -> anyhow::Result<Load> {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_DEADLINE).build()?;
    let (prefix, url) = (prefix(), url.to_owned());
    let count = u32::try_from(length.as_secs())? * per_second;
    let began = Instant::now();
    // On a thread that sleeps by the system's clock: the runtime's timer is late by up to a millisecond.
    let requests = spawn_blocking(move || {
        let mut requests = JoinSet::new();
        for number in 0..count {
            let due = began + Duration::from_secs(1) * number / per_second;
            let body = format!(r#"{{"name":"Ada Lovelace","email":"{prefix}-{number}@bench.example"}}"#);
            let mut request = client.post(&url).header("content-type", "application/json").body(body);
            if waited {
                request = request.header("prefer", "wait=10");
            }
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            requests.spawn(async move {
                let answer = request.send().await.ok()?;
                let created = answer.status() == reqwest::StatusCode::CREATED;
                answer.bytes().await.ok()?;
                created.then(|| due.elapsed())
            });
        }
        requests
    });
    let ends = requests.await?.join_all().await;
    let seconds = began.elapsed().as_secs_f64();
    let mut latencies: Vec<Duration> = ends.iter().copied().flatten().collect();
    ensure!(!latencies.is_empty(), "no request was answered with success");
    latencies.sort_unstable();
    Ok(Load {
        answers: latencies.len() as u64,
        seconds,
        p50_ms: Some(quantile(&latencies, 50)),
        p99_ms: Some(quantile(&latencies, 99)),
        errors: (ends.len() - latencies.len()) as u64,
    })
}

/// In milliseconds, of latencies in order.
pub(super) fn quantile(latencies: &[Duration], percent: usize) -> f64 {
    latencies.get(latencies.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default().as_secs_f64() * 1e3
}

/// Of addresses that no other load has.
fn prefix() -> String {
    format!("b{:016x}", rand::random::<u64>())
}
