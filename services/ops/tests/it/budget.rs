//! The connection budget: never exceeded, nobody refused, whatever comes and goes.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use local_stack::{Options, Postgres, StopMode};
use reqwest::{Response, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::task::{JoinHandle, JoinSet};

use crate::harness::{Process, System, Writers, eventually, problem, stack};
use crate::proxy::Proxy;

/// Of 20 connections, of which PostgreSQL keeps 3 for superusers; the test itself needs some.
const BUDGET: i64 = 14;

/// Far less than any hang, and far more than the deadlines of reads (under 2 seconds), for a busy machine.
const PROMPT: Duration = Duration::from_secs(30);

/// A server with few connections for one test, used by a role that is no superuser.
struct Small {
    system: System,
    postgres: Arc<Postgres>,
    folder: tempfile::TempDir,
}

impl Small {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state_in_log = ("log_line_prefix".to_owned(), "%m [%p] %e ".to_owned());
        let options =
            Options { max_connections: 20, postgres_settings: vec![state_in_log], ..Options::new(folder.path()) };
        let postgres = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
        let shared = tokio::task::spawn_blocking(stack).await.unwrap();
        let mut system = System::on(postgres.url(), shared.rabbitmq.url()).await;
        let mut connection = system.database().await;
        sqlx::query("CREATE ROLE app LOGIN PASSWORD 'app' IN ROLE rollcall").execute(&mut connection).await.unwrap();
        let (_, url) = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap();
        let mut url = url::Url::parse(url).unwrap();
        url.set_username("app").unwrap();
        url.set_password(Some("app")).unwrap();
        system.set("DATABASE_URL", url.as_str());
        // What is computed leaves out the sessions of the test itself.
        system.set("DATABASE_CONNECTION_BUDGET", &BUDGET.to_string());
        Self { system, postgres: Arc::new(postgres), folder }
    }

    async fn restart(&self) {
        let postgres = Arc::clone(&self.postgres);
        let restarting = move || postgres.stop(StopMode::Fast).and_then(|()| postgres.start());
        tokio::task::spawn_blocking(restarting).await.unwrap().unwrap();
    }

    /// Lines of the server's log about connections that it refused for their number.
    fn refusals(&self) -> Vec<String> {
        let log = fs::read_to_string(self.folder.path().join("logs/postgres.log")).unwrap();
        log.lines().filter(|line| line.contains(" 53300 ")).map(str::to_owned).collect()
    }
}

/// Counts the deployment's sessions all the time.
struct Witness {
    stop: Arc<AtomicBool>,
    most: JoinHandle<i64>,
}

impl Witness {
    async fn start(system: &System) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut connection) = (Arc::clone(&stop), system.database().await);
        let most = tokio::spawn(async move {
            let mut most = 0;
            while !stopped.load(Ordering::SeqCst) {
                most = most.max(sessions(&mut connection).await);
            }
            most
        });
        Self { stop, most }
    }

    async fn most(self) -> i64 {
        self.stop.store(true, Ordering::SeqCst);
        self.most.await.unwrap()
    }
}

async fn sessions(connection: &mut PgConnection) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    sqlx::query_scalar(count).fetch_one(connection).await.unwrap()
}

/// The line of the budget's check, and whether it holds.
async fn standing(process: &Process) -> Option<(bool, String)> {
    let answer = reqwest::get(process.url("/readyz")).await.ok()?;
    let ready = answer.status() == StatusCode::OK;
    let report: Value = answer.json().await.ok()?;
    let line = report["checks"]["budget"].as_str()?.to_owned();
    Some((ready, line))
}

#[tokio::test(flavor = "multi_thread")]
async fn twelve_instances_that_start_at_once_on_twenty_connections_are_ready_or_say_why_and_none_is_refused() {
    let small = Small::start().await;
    let system = &small.system;
    let witness = Witness::start(system).await;
    let mut instances: Vec<Process> = Vec::new();
    for number in 0..12 {
        instances.push(if number % 3 == 2 { system.worker_unready() } else { system.api_unready() });
    }
    let mut ready = Vec::new();
    for process in &instances {
        let fed = eventually("ready, or a reason", async || {
            let (ready, line) = standing(process).await?;
            (ready || line.contains("feeds no more")).then_some(ready)
        })
        .await;
        if fed {
            ready.push(process.url(""));
        }
    }
    assert_eq!(ready.len(), 6, "a control connection and one more each, and two places for arrivals");
    let mut connection = system.database().await;
    let roles: Vec<(String, i64)> = sqlx::query_as("SELECT service, count(*) FROM members GROUP BY service")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let roles: BTreeMap<String, i64> = roles.into_iter().collect();
    assert!(roles.contains_key("api") && roles.contains_key("worker"), "{roles:?}");

    let apis: Vec<String> = instances
        .iter()
        .enumerate()
        .filter(|(number, process)| number % 3 != 2 && ready.contains(&process.url("")))
        .map(|(_, process)| process.url(""))
        .collect();
    let writers = Writers::start(8, &apis);
    writers.progress(300).await;
    let promises = writers.finish().await;
    assert!(promises.others.is_empty(), "{:?}", promises.others);
    promises.kept(system).await;
    let most = witness.most().await;
    assert!(small.refusals().is_empty(), "{:?}", small.refusals());
    assert!(most <= BUDGET, "{most} sessions at once");
    drop(instances);
}

/// What all instances were granted together, and how many there are.
async fn granted(connection: &mut PgConnection) -> (i64, i64) {
    let sum = "SELECT coalesce(sum(granted), 0), count(*) FROM members";
    sqlx::query_as(sum).fetch_one(connection).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_moves_when_its_instance_leaves_is_killed_or_freezes() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "16");
    let mut connection = system.database().await;
    let mut shared = async |instances: i64| {
        // Two places are kept for arrivals, and each instance has a control connection.
        let expected = (16 - 2 - instances, instances);
        let what = format!("{instances} instances share everything");
        eventually(&what, async || (granted(&mut connection).await == expected).then_some(())).await;
    };
    let (stays, leaves, dies, freezes) = tokio::join!(system.api(), system.api(), system.api(), system.api());
    shared(4).await;
    assert!(leaves.terminate().await.success());
    shared(3).await;
    dies.kill();
    shared(2).await;
    freezes.signal(Signal::STOP);
    shared(1).await;
    freezes.signal(Signal::CONT);
    shared(2).await;
    tokio::join!(stays.ready(), freezes.ready());
}

/// Reads again and again, many at once, whatever comes of them.
fn crowd(system: &System, api: &Process) -> JoinSet<()> {
    let mut reads = JoinSet::new();
    for _ in 0..16 {
        let (client, url) = (system.client.clone(), api.url("/v1/users"));
        reads.spawn(async move {
            loop {
                let _ = client.get(&url).send().await;
            }
        });
    }
    reads
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sleeps_through_a_restart_does_not_wake_with_rights_that_others_have_by_then() {
    let small = Small::start().await;
    let system = &small.system;
    // Its lease shall still run when it wakes, on any machine.
    sqlx::query("UPDATE membership SET time_to_live = '1 minute'").execute(&mut system.database().await).await.unwrap();
    let (sleeps, stays) = tokio::join!(system.api(), system.api());
    let mut connection = system.database().await;
    eventually("both have a share", async || (granted(&mut connection).await == (BUDGET - 2 - 2, 2)).then_some(()))
        .await;
    sleeps.signal(Signal::STOP);
    small.restart().await;
    let mut connection = system.database().await;
    eventually("one has all", async || (granted(&mut connection).await == (BUDGET - 2 - 1, 1)).then_some(())).await;

    let mut locking = system.database().await;
    let mut tx = locking.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *tx).await.unwrap();
    let _wanted = crowd(system, &stays);
    let _late = crowd(system, &sleeps);
    let witness = Witness::start(system).await;
    // With what the sleeper had, five and a control connection, that is more than the budget. On a busy machine not all is open
    // at any one moment: reads that wait for the lock end at their deadline, and their connections are opened again.
    eventually("most is open", async || (sessions(&mut connection).await >= BUDGET - 4).then_some(())).await;
    sleeps.signal(Signal::CONT);
    eventually("it noticed", async || standing(&sleeps).await.filter(|(ready, _)| !ready)).await;
    eventually("it is a member again", async || (granted(&mut connection).await.1 == 2).then_some(())).await;
    let most = witness.most().await;
    tx.rollback().await.unwrap();
    assert!(most <= BUDGET, "{most} sessions at once");
    assert!(small.refusals().is_empty(), "{:?}", small.refusals());
    sleeps.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_hangs_ends_at_its_deadline_and_the_pool_is_whole_afterwards() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "8");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "reader@example.org").await;
    let paths = [format!("/v1/users/{}", user["id"].as_str().unwrap()), "/v1/users".to_owned()];
    let (mut holder, mut witness) = (system.database().await, system.database().await);
    let mut tx = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE").execute(&mut *tx).await.unwrap();
    for _ in 0..3 {
        for answer in read_twelve_times(&system, &api, &paths).await {
            assert!(answer.headers().contains_key("retry-after"));
            problem(answer, 503, "database-unavailable").await;
            let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^rollcall(-control)?/' AND datname = current_database()";
            let sessions: i64 = sqlx::query_scalar(count).fetch_one(&mut witness).await.unwrap();
            assert!(sessions <= 8, "{sessions} sessions at once");
        }
    }
    tx.rollback().await.unwrap();
    for path in &paths {
        eventually("reads are answered again", async || {
            (system.get(&api, path).await.status() == StatusCode::OK).then_some(())
        })
        .await;
    }
    eventually("nothing is in use or waits", async || {
        let busy = "SELECT coalesce(sum(in_use + waiting), 0) FROM members WHERE service = 'api'";
        let busy: i64 = sqlx::query_scalar(busy).fetch_one(&mut witness).await.unwrap();
        (busy == 0).then_some(())
    })
    .await;
}

/// Twelve reads at once, none of which takes longer than it should.
async fn read_twelve_times(system: &System, api: &Process, paths: &[String; 2]) -> Vec<Response> {
    let reads = (0..12).map(|n| system.client.get(api.url(&paths[n % 2])).timeout(PROMPT).send());
    futures_util::future::try_join_all(reads).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_network_ends_reads_at_their_deadline_and_the_pool_is_whole_afterwards() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "8");
    let direct = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.parse().unwrap();
    let network = Proxy::start(&direct).await.unwrap();
    let worker = system.worker().await;
    system.set("DATABASE_URL", network.url(&direct).as_str());
    let api = system.api().await;
    let user = system.create(&api, "reader@example.org").await;
    let paths = [format!("/v1/users/{}", user["id"].as_str().unwrap()), "/v1/users".to_owned()];
    let mut witness = system.database().await;
    // Shorter than the lease, and longer: then the others take its share, and it must join again.
    for (rounds, beyond_lease) in [(1, false), (2, true)] {
        for answer in read_twelve_times(&system, &api, &paths).await {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        network.silence();
        for _ in 0..rounds {
            for answer in read_twelve_times(&system, &api, &paths).await {
                assert!(answer.headers().contains_key("retry-after"));
                problem(answer, 503, "database-unavailable").await;
            }
        }
        if beyond_lease {
            // The worker is left with everything but its control connection and two places for arrivals.
            eventually("the share has moved", async || (granted(&mut witness).await == (5, 1)).then_some(())).await;
        }
        network.open();
        api.ready().await;
        eventually("nothing is in use or waits, and everything is granted", async || {
            let busy = "SELECT coalesce(sum(in_use + waiting), 0) FROM members WHERE service = 'api'";
            let busy: i64 = sqlx::query_scalar(busy).fetch_one(&mut witness).await.unwrap();
            (busy == 0 && granted(&mut witness).await == (4, 2)).then_some(())
        })
        .await;
    }
    for answer in read_twelve_times(&system, &api, &paths).await {
        assert_eq!(answer.status(), StatusCode::OK);
    }
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_the_server_cannot_give_is_refused_with_the_arithmetic() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "5000");
    let mut api = system.api_unready();
    assert_eq!(api.ended().await.code(), Some(1));
    let output = api.output();
    let reason =
        "DATABASE_CONNECTION_BUDGET is 5000, but the server gives less (max_connections 200 - 3 reserved: 197 usable)";
    assert!(output.contains(reason), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_limit_ends_no_running_process() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "20");
    let (mut api, mut worker) = tokio::join!(system.api(), system.worker());
    let mut admin = system.database().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut admin).await.unwrap();
    let mut lower = async |connections: i64| {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name LIKE 'rollcall%'";
        let limit = format!("ALTER DATABASE {name} CONNECTION LIMIT {connections}");
        sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&mut admin).await.unwrap();
        sqlx::query(end).execute(&mut admin).await.unwrap();
    };
    // Enough for them, and then too little for anybody.
    lower(12).await;
    eventually("they share what is left", async || {
        let total = system.count("SELECT budget::bigint FROM membership").await;
        (total == 12 && system.count("SELECT count(*) FROM members WHERE granted > 0").await == 2).then_some(())
    })
    .await;
    tokio::join!(api.ready(), worker.ready());
    lower(5).await;
    for process in [&api, &worker] {
        eventually("it says why it has nothing", async || {
            process.unready("budget").await.contains("5 usable").then_some(())
        })
        .await;
    }
    assert!(api.running() && worker.running());
    lower(-1).await;
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "ada@example.org").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_command_shows_every_instance_and_the_total() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "plan-50");
    let (_api, _worker) = tokio::join!(system.api(), system.worker());
    let url = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.clone();
    let rollcall = async |arguments: &'static [&'static str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args(arguments).env_clear().env("DATABASE_URL", &url);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&rollcall(&["budget", "--json"]).await).unwrap();
    assert_eq!((&shown["budget"], &shown["kept_for_arrivals"]), (&json!(45), &json!(2)));
    assert_eq!(shown["instances"].as_array().unwrap().len(), 2);
    for instance in shown["instances"].as_array().unwrap() {
        assert!(instance["granted"].as_i64().unwrap() >= 1, "{shown}");
        assert!(instance["heartbeat_age_seconds"].as_f64().unwrap() < 5.0, "{shown}");
    }
    let table = rollcall(&["budget"]).await;
    assert!(table.contains("api") && table.contains("worker") && table.contains("taken of 45"), "{table}");
}
