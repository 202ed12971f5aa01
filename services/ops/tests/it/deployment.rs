//! What all processes of a deployment must have in common: settings, broker, clock.

use std::process::Output;

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use local_stack::RabbitMq;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Process, System, Writers, eventually, problem, stack};
use crate::proxy::Proxy;

impl System {
    /// Runs `rollcall deployment` with these arguments.
    async fn deployment(&self, arguments: &[&str]) -> Output {
        tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .arg("deployment")
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .output()
            .await
            .unwrap()
    }

    async fn deployment_row(&self) -> Value {
        let shown = self.deployment(&["show", "--json"]).await;
        assert!(shown.status.success(), "{shown:?}");
        serde_json::from_slice(&shown.stdout).unwrap()
    }
}

/// Creates a user without waiting; gives the status.
async fn create(system: &System, api: &Process, email: &str) -> StatusCode {
    let body = json!({ "email": email, "name": "Test" });
    system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_with_another_setting_ends_and_changes_nothing() {
    let mut system = System::prepare().await;
    system.set("DATABASE_CONNECTION_BUDGET", "20");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let grants = "SELECT sum(target) FROM members";
    let before = eventually("everything is shared", async || {
        let sum = system.count(grants).await;
        (sum == 20 - 2 - 2).then_some(sum)
    })
    .await;
    for (name, value, reason) in [
        ("DATABASE_CONNECTION_BUDGET", "6", "DATABASE_CONNECTION_BUDGET is 6 here, but this deployment has 20"),
        ("COMMAND_RETENTION_DAYS", "7", "COMMAND_RETENTION_DAYS is 7 here, but this deployment has 30"),
        ("IDEMPOTENCY_WINDOW_HOURS", "2", "IDEMPOTENCY_WINDOW_HOURS is 2 here, but this deployment has 24"),
        ("BROKER_PREFIX", "typo.", "BROKER_PREFIX is typo. here, but this deployment has"),
        ("PARTITIONS", "32", "PARTITIONS is 32 here, but this deployment has 16; set PARTITIONS=16"),
        ("EVENT_SOURCE", "/other", "EVENT_SOURCE is /other here, but this deployment has /rollcall"),
    ] {
        let usual = system.environment.clone();
        system.set(name, value);
        let mut stray = system.worker_unready();
        system.environment = usual;
        assert_eq!(stray.ended().await.code(), Some(1), "{name}");
        let output = stray.output();
        assert!(output.contains(reason), "{output}");
    }
    assert_eq!(system.count(grants).await, before);
    tokio::join!(api.ready(), worker.ready());
    system.create(&api, "ada@example.org").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_accepts_nothing_before_its_first_join() {
    let mut system = System::prepare().await;
    let _worker = system.worker().await;
    let direct = system.environment.iter().find(|(name, _)| name == "DATABASE_URL").unwrap().1.parse().unwrap();
    let network = Proxy::start(&direct).await.unwrap();
    network.silence();
    system.set("DATABASE_URL", network.url(&direct).as_str());
    let usual = system.environment.clone();
    system.set("PARTITIONS", "32");
    let mut stray = system.api_unready();
    system.environment = usual;
    let fitting = system.api_unready();
    for api in [&stray, &fitting] {
        let line = api.unready("broker").await;
        assert!(line.contains("waits until this process has joined its deployment"), "{line}");
        let body = json!({"email": "early@example.org", "name": "Early"});
        let refused = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
        assert!(refused.headers().contains_key("retry-after"));
        problem(refused, 503, "broker-unavailable").await;
    }
    network.open();
    assert_eq!(stray.ended().await.code(), Some(1));
    assert!(stray.output().contains("PARTITIONS is 32 here, but this deployment has 16"), "{}", stray.output());
    // Once it was a member it accepts without the database.
    fitting.ready().await;
    network.silence();
    network.cut();
    fitting.unready("database").await;
    assert_eq!(create(&system, &fitting, "late@example.org").await, StatusCode::ACCEPTED);
    network.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_process_decides_for_the_deployment() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "32");
    let api = system.api().await;
    assert_eq!(create(&system, &api, "ada@example.org").await, StatusCode::ACCEPTED);
    system.set("PARTITIONS", "16");
    let mut stray = system.worker_unready();
    assert_eq!(stray.ended().await.code(), Some(1));
    assert!(stray.output().contains("PARTITIONS is 16 here, but this deployment has 32"), "{}", stray.output());
    system.set("PARTITIONS", "32");
    let _worker = system.worker().await;
    eventually("it is applied", async || (system.count("SELECT count(*) FROM users").await == 1).then_some(())).await;
    let row = system.deployment_row().await;
    assert_eq!((&row["partitions"], &row["broker_prefix"]), (&json!(32), &json!(system.prefix)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_at_another_virtual_host_costs_no_command() {
    let mut system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let vhost = format!("w{}", uuid::Uuid::now_v7().simple());
    let made = vhost.clone();
    let ctl = move |command: &[&str]| stack().rabbitmq.ctl(command).unwrap();
    tokio::task::spawn_blocking(move || {
        ctl(&["add_vhost", &made]);
        ctl(&["set_permissions", "-p", &made, "rollcall", ".*", ".*", ".*"]);
    })
    .await
    .unwrap();
    let usual = system.amqp_url.clone();
    let mut other: url::Url = usual.parse().unwrap();
    other.set_path(&vhost);
    system.set("AMQP_URL", other.as_str());
    let stray = system.worker_unready();
    eventually("it says which broker it wants", async || {
        let line = stray.unready("broker, consuming").await;
        line.contains("rollcall deployment set broker").then_some(())
    })
    .await;
    let writers = Writers::start(8, &[api.url("")]);
    writers.progress(100).await;
    let promises = writers.finish().await;
    promises.kept(&system).await;
    worker.ready().await;
    let broker = Connection::connect(other.as_str(), ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let queue = format!("{}commands.0", system.prefix);
    let look = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    assert!(
        channel.queue_declare(queue.into(), look, FieldTable::default()).await.is_err(),
        "nothing is declared there"
    );
    drop((stray, broker));
    let removed = move || stack().rabbitmq.ctl(&["delete_vhost", &vhost]).unwrap();
    tokio::task::spawn_blocking(removed).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_the_mark_waits_for_an_operator() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "before@example.org").await;
    let mark = eventually("the broker is marked", async || {
        system.deployment_row().await["broker_exchange"].as_str().map(str::to_owned)
    })
    .await;
    assert!(mark.starts_with(&format!("{}deployment.", system.prefix)), "{mark}");
    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    channel.exchange_delete(mark.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    // One that is connected already does not ask again.
    system.create(&api, "between@example.org").await;
    let late = system.api_unready();
    eventually("it misses the mark", async || late.unready("broker").await.contains(&mark).then_some(())).await;
    let body = json!({"email": "late@example.org", "name": "Late"});
    let refused = system.client.post(late.url("/v1/users")).json(&body).send().await.unwrap();
    problem(refused, 503, "broker-unavailable").await;

    let set = system.deployment(&["set", "broker"]).await;
    assert!(set.status.success(), "{set:?}");
    tokio::join!(late.ready(), api.ready(), worker.ready());
    system.create(&late, "after@example.org").await;
    let next = system.deployment_row().await["broker_exchange"].clone();
    assert!(next.is_string() && next != mark, "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_changes_what_may_change_and_nothing_else() {
    let mut system = System::prepare().await;
    let nothing = system.deployment(&["set", "budget=20"]).await;
    assert!(!nothing.status.success());
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no process has joined yet"), "{nothing:?}");
    system.set("DATABASE_CONNECTION_BUDGET", "20");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
    for (changes, reason) in [
        (&["budget=9999"][..], "more than the server gives"),
        (&["window=720", "retention=7"], "the window exceeds the retention"),
        (&["partitions=8"], "processes run"),
        (&["prefix=x."], "processes run"),
        (&["colour=blue"], "expected budget=N"),
    ] {
        let refused = system.deployment(&[&["set"], changes].concat()).await;
        assert!(!refused.status.success(), "{changes:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(reason), "{refused:?}");
    }
    let set = system.deployment(&["set", "budget=30", "retention=60", "window=48"]).await;
    assert!(set.status.success(), "{set:?}");
    let shared = "SELECT sum(target) FROM members";
    eventually("running processes obey", async || (system.count(shared).await == 30 - 2 - 2).then_some(())).await;
    let row = system.deployment_row().await;
    assert_eq!((&row["budget_in_force"], &row["command_retention_days"]), (&json!(30), &json!(60)));
    tokio::join!(api.ready(), worker.ready());
    let mut old = system.api_unready();
    assert_eq!(old.ended().await.code(), Some(1));
    let output = old.output();
    for setting in
        ["DATABASE_CONNECTION_BUDGET is 20", "COMMAND_RETENTION_DAYS is 30", "IDEMPOTENCY_WINDOW_HOURS is 24"]
    {
        assert!(output.contains(setting), "{output}");
    }
    system.set("DATABASE_CONNECTION_BUDGET", "30");
    system.set("COMMAND_RETENTION_DAYS", "60");
    system.set("IDEMPOTENCY_WINDOW_HOURS", "48");
    drop((system.api().await, api, worker));
    // They were killed: what is left of them in the rows counts only as long as a heartbeat.
    eventually("commands are in the way", async || {
        let refused = system.deployment(&["set", "partitions=8"]).await;
        String::from_utf8_lossy(&refused.stderr).contains("commands were applied").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_number_of_partitions_can_be_corrected_at_first() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "3");
    assert!(system.worker().await.terminate().await.success());
    let set = system.deployment(&["set", "partitions=4"]).await;
    assert!(set.status.success(), "{set:?}");
    system.set("PARTITIONS", "4");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "ada@example.org").await;
}

/// A broker of its own goes with its test.
#[tokio::test(flavor = "multi_thread")]
async fn processes_on_a_new_broker_agree_on_one_mark() {
    let folder = tempfile::tempdir().unwrap();
    let options = local_stack::Options::new(folder.path());
    let rabbitmq = tokio::task::spawn_blocking(move || RabbitMq::start_alone(options)).await.unwrap().unwrap();
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(shared.postgres.url(), rabbitmq.url()).await;
    let processes = tokio::join!(system.api(), system.api(), system.worker(), system.worker());
    let marks = || rabbitmq.ctl(&["list_exchanges", "--quiet", "name"]).unwrap();
    let mark = system.deployment_row().await["broker_exchange"].as_str().unwrap().to_owned();
    let found: Vec<String> = marks().lines().filter(|name| name.contains("deployment.")).map(str::to_owned).collect();
    assert_eq!(found, [mark]);
    drop(processes);
}
