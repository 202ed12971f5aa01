//! Commands that were accepted and lost outside of the services: their status is final and says so. What waits is never lost.

use std::process::{Command, Stdio};
use std::time::Duration;

use client::types::CommandStatus;
use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use local_stack::{Options, Postgres};
use reqwest::StatusCode;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Process, System, eventually, stack};

/// The margin of the marks and some ticks, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A policy of the shared broker for the queues of one test; it is cleared with the value.
struct Policy(String);

impl Policy {
    async fn set(system: &System, definition: &'static str) -> Self {
        let pattern = format!("^{}", system.prefix.replace('.', "\\."));
        let name = system.prefix.clone();
        let policy = Self(name.clone());
        let setting = move || {
            let broker = &stack().rabbitmq;
            broker.ctl(&["set_policy", "--apply-to", "queues", &name, &pattern, definition]).unwrap();
        };
        tokio::task::spawn_blocking(setting).await.unwrap();
        policy
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        let _ = stack().rabbitmq.ctl(&["clear_policy", &self.0]);
    }
}

async fn accepted(system: &System, api: &Process, number: usize) -> Uuid {
    let body = json!({"email": format!("u{number}@example.org"), "name": "User"});
    let answer = system.post(api, "/v1/users", "respond-async", &body).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let command: Value = answer.json().await.unwrap();
    command["id"].as_str().unwrap().parse().unwrap()
}

/// A server that only this test uses, in a folder that must outlive it.
async fn own_postgres() -> (Postgres, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let server = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
    (server, folder)
}

/// The status that ends a wait for it.
async fn outcome(api: &Process, id: Uuid) -> CommandStatus {
    let client = api.client();
    let outcome = tokio::time::timeout(PATIENCE, client.outcome(id)).await;
    outcome.unwrap_or_else(|_| panic!("no outcome of {id} within {PATIENCE:?}")).unwrap().status
}

/// A line of `/readyz`, whether or not the instance is ready.
async fn check(system: &System, process: &Process, name: &str) -> Option<String> {
    let report: Value = system.get(process, "/readyz").await.json().await.ok()?;
    report["checks"][name].as_str().map(str::to_owned)
}

/// Waits until nothing waits in any queue, without a worker.
async fn all_expired(system: &System) {
    let broker = lapin::Connection::connect(&system.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    eventually("every message expires", async || {
        let mut waiting = 0;
        let partitions = (0..16).map(|partition| format!("commands.{partition}"));
        for queue in partitions.chain(["dead-letters".to_owned()]) {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let queue = format!("{}{queue}", system.prefix);
            waiting +=
                channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count();
        }
        (waiting == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_a_message_ttl_dropped_end_as_unknown() {
    let mut system = System::prepare().await;
    system.set("UNKNOWN_AFTER_SECONDS", "20");
    let api = system.api().await;
    let policy = Policy::set(&system, r#"{"message-ttl":500}"#).await;
    let ids = join_all((0..20).map(|number| accepted(&system, &api, number))).await;
    all_expired(&system).await;
    drop(policy);

    let _worker = system.worker().await;
    for status in join_all(ids.iter().map(|id| outcome(&api, *id))).await {
        assert_eq!(status, CommandStatus::Unknown);
    }
    let line = eventually("the loss is shown", async || {
        check(&system, &api, "commands").await.filter(|line| line.contains("lost, the last"))
    })
    .await;
    assert!(line.starts_with("ok: warning: "), "{line}");
    let metrics = system.get(&api, "/metrics").await.text().await.unwrap();
    let lost = metrics.lines().find(|line| line.starts_with("rollcall_commands_lost_total"));
    assert!(lost.is_some_and(|line| !line.ends_with(" 0")), "{lost:?}");
    assert!(api.output().contains("neither applied nor waiting"));
    let user = system.create(&api, "after@example.org").await;

    // The same after a failover that undid an acknowledged commit.
    let mut database = system.database().await;
    let id: Uuid = user["id"].as_str().unwrap().parse().unwrap();
    let undone: Uuid = sqlx::query_scalar("DELETE FROM commands WHERE user_id = $1 RETURNING id")
        .bind(id)
        .fetch_one(&mut database)
        .await
        .unwrap();
    assert_eq!(outcome(&api, undone).await, CommandStatus::Unknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_reports_the_rows_that_were_lost() {
    let mut system = System::prepare().await;
    system.set("UNKNOWN_AFTER_SECONDS", "20");
    let api = system.api().await;
    let policy = Policy::set(&system, r#"{"message-ttl":500}"#).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.csv");
    std::fs::write(&file, "email,name\nada@example.org,Ada\nbob@example.org,Bob\n").unwrap();
    let import = || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.arg("import").arg(&file).args(["--url", &api.url("")]).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().unwrap()
    };
    let importing = import();
    eventually("both are accepted", async || {
        let metrics = system.get(&api, "/metrics").await.text().await.ok()?;
        let accepted = |line: &str| line.starts_with("rollcall_broker_published_total") && line.contains("accepted");
        metrics.lines().any(|line| accepted(line) && line.ends_with(" 2")).then_some(())
    })
    .await;
    all_expired(&system).await;
    drop(policy);
    let _worker = system.worker().await;
    let imported = tokio::time::timeout(PATIENCE, importing.wait_with_output()).await.expect("an end").unwrap();
    let report = String::from_utf8_lossy(&imported.stdout);
    assert_eq!(report.matches("was accepted and then lost").count(), 2, "{report}");
    assert_eq!(imported.status.code(), Some(1));
    let again = import().wait_with_output().await.unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stdout));
    assert_eq!(system.count("SELECT count(*) FROM users").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_waits_is_never_unknown() {
    let mut system = System::prepare().await;
    system.set("UNKNOWN_AFTER_SECONDS", "20");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let mut lock = system.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE users").execute(&mut lock).await.unwrap();
    let id = accepted(&system, &api, 0).await;
    let mut database = system.database().await;
    eventually("the marks of the other partitions pass it", async || {
        // The time in the id.
        let passed: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM partitions WHERE decided_through > to_timestamp(
                ('x' || translate(left($1::text, 13), '-', ''))::bit(48)::bigint / 1000.0
            )",
        )
        .bind(id)
        .fetch_one(&mut database)
        .await
        .unwrap();
        (passed == 15).then_some(())
    })
    .await;
    let command: Value = system.get(&api, &format!("/v1/commands/{id}")).await.json().await.unwrap();
    assert_eq!(command["status"], "pending");
    sqlx::raw_sql("COMMIT").execute(&mut lock).await.unwrap();
    worker.ready().await;
    assert_eq!(outcome(&api, id).await, CommandStatus::Succeeded);
    let line = check(&system, &api, "commands").await.unwrap();
    assert!(line.contains("no command"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_commits_do_not_wait_for_is_named() {
    let (postgres, _folder) = own_postgres().await;
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let Some(programs) = postgres.bin_dir() else { return };
    let system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let worker = system.worker().await;
    let line = eventually("a look", async || {
        check(&system, &worker, "replication").await.filter(|line| !line.ends_with("not looked yet"))
    })
    .await;
    assert_eq!(line, "ok: no replica is attached");

    // Streams as a replica does.
    let folder = tempfile::tempdir().unwrap();
    let mut replica = Command::new(programs.join("pg_receivewal"));
    replica.arg("--no-loop").arg("--directory").arg(folder.path()).arg("--dbname").arg(postgres.url());
    let mut replica = replica.stdin(Stdio::null()).spawn().unwrap();
    let line = eventually("the replica is named", async || {
        check(&system, &worker, "replication").await.filter(|line| line.contains("1 replica"))
    })
    .await;
    assert!(line.starts_with("ok: warning: ") && line.contains("synchronous_standby_names is empty"), "{line}");
    assert!(worker.output().contains("would not survive a failover"));
    replica.kill().unwrap();
    replica.wait().unwrap();
}
