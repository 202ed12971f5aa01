//! The system behind a PgBouncer that lends the server's sessions by the transaction.

use std::process::Command;
use std::sync::Arc;

use futures_util::StreamExt;
use local_stack::Options;
use local_stack::testing::{Lends, Pooler};
use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::{Process, System, Writers, eventually};

const READS: usize = 10_000;
const CLIENTS: usize = 64;

struct Pooled {
    system: System,
    direct: String,
    _pooler: Pooler,
    _folder: tempfile::TempDir,
}

impl Pooled {
    async fn prepare() -> Self {
        let mut system = System::prepare().await;
        let direct = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
        let folder = tempfile::tempdir().unwrap();
        let options = Options { install: true, progress: Arc::new(|_| {}), ..Options::new(folder.path()) };
        let server = direct.clone();
        let start = move || Pooler::start(options, &server, Lends::Transactions);
        let pooler = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        system.set("DATABASE_URL", pooler.url());
        Self { system, direct, _pooler: pooler, _folder: folder }
    }

    /// What a command of the operator prints, on both streams.
    async fn rollcall(&self, arguments: &[&'static str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args(arguments).env_clear().envs(self.system.environment.iter().cloned());
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

async fn budget_line(process: &Process) -> Option<String> {
    let report: Value = reqwest::get(process.url("/readyz")).await.ok()?.json().await.ok()?;
    report["checks"]["budget"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_reads_and_the_writes_beside_them_go_through_a_pooler_without_an_error() {
    let mut pooled = Pooled::prepare().await;
    let direct = pooled.direct.clone();
    pooled.system.set("DATABASE_URL_DIRECT", &direct);
    let system = &pooled.system;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "reader@example.org").await;
    let paths =
        [format!("/v1/users/{}", user["id"].as_str().unwrap()), "/v1/users".to_owned(), "/v1/users?limit=1".to_owned()];
    let writers = Writers::start(4, &[api.url("")]);
    let reads = futures_util::stream::iter(0..READS).map(|n| system.get(&api, &paths[n % 3]));
    let others: Vec<StatusCode> = reads
        .buffer_unordered(CLIENTS)
        .map(|answer| answer.status())
        .filter(|status| std::future::ready(*status != StatusCode::OK))
        .collect()
        .await;
    assert!(others.is_empty(), "{} reads failed: {:?}", others.len(), others.first());
    writers.progress(50).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(system).await;

    eventually("the share does not move", async || {
        budget_line(&api).await.filter(|line| line.contains("connections to a pooler"))
    })
    .await;
    let (shown, table) = pooled.rollcall(&["budget"]).await;
    assert!(shown && table.contains("pooler"), "{table}");
    let commands: [&[&'static str]; 5] = [
        &["migrate", "status"],
        &["dead-letters", "list"],
        &["keys", "list"],
        &["roles", "plan", "--budget", "20"],
        &["export", "-", "--format", "csv"],
    ];
    for command in commands {
        let (done, output) = pooled.rollcall(command).await;
        assert!(done, "{command:?}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_past_the_pooler_the_services_work_and_the_commands_say_what_they_need() {
    let pooled = Pooled::prepare().await;
    let system = &pooled.system;
    let (api, first, second) = tokio::join!(system.api(), system.worker(), system.worker());
    let writers = Writers::start(4, &[api.url("")]);
    writers.progress(50).await;
    // Nobody sees that its session is gone; the clock tells.
    first.kill();
    writers.progress(50).await;
    let promises = writers.finish().await;
    promises.kept(system).await;
    let warnings = api.output().matches("set DATABASE_URL_DIRECT").count();
    assert_eq!(warnings, 1, "{}", api.output());
    assert!(second.terminate().await.success());
    let (shown, reason) = pooled.rollcall(&["migrate", "status"]).await;
    assert!(!shown && reason.contains("set DATABASE_URL_DIRECT"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_no_arrival_waits_for_a_share() {
    let pooled = Pooled::prepare().await;
    // If each kept the others waiting for ten seconds, the last ones would exceed the patience of a test.
    let mut processes = vec![pooled.system.worker_unready()];
    processes.extend((0..5).map(|_| pooled.system.api_unready()));
    futures_util::future::join_all(processes.iter().map(Process::ready)).await;
}
