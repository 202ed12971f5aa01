//! The broker as an operator limits it: rights by pattern, channels, queue lengths.

mod matrix;

use common::broker::set_up;
use common::config::{BrokerSettings, amqp_url};
use common::transport::PlaintextHosts;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Process, System, eventually, problem, stack};

/// Runs `rabbitmqctl` against the shared broker.
async fn ctl(arguments: &[&str]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let run = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        stack().rabbitmq.ctl(&arguments).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// What the names of a system begin with, as a pattern of the broker.
fn pattern(system: &System) -> String {
    format!("^{}", system.prefix.replace('.', "\\."))
}

/// Makes a user of the broker with these rights, and the system's processes use it.
async fn limit(system: &mut System, user: &str, [configure, write, read]: [&str; 3]) {
    ctl(&["add_user", user, "hunter2"]).await;
    ctl(&["set_permissions", "-p", "/", user, configure, write, read]).await;
    let mut url = url::Url::parse(&system.amqp_url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some("hunter2")).unwrap();
    system.set("AMQP_URL", url.as_str());
}

/// The users of a deployment at the broker, made with the commands that `rollcall broker plan` prints.
struct Users {
    prefix: String,
    names: Vec<String>,
}

impl Users {
    async fn new(system: &System) -> Self {
        let prefix = system.prefix.trim_end_matches('.').to_owned();
        let subscriber = format!("{prefix}_subscriber");
        let plan = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["broker", "plan", "--users", &prefix, "--subscriber", &subscriber])
            .env_clear()
            .env("BROKER_PREFIX", &system.prefix)
            .output()
            .await
            .unwrap();
        assert!(plan.status.success(), "{plan:?}");
        let mut names = Vec::new();
        for line in String::from_utf8(plan.stdout).unwrap().lines() {
            let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('\'')).collect();
            match words[..] {
                ["rabbitmqctl", "add_user", name] => {
                    ctl(&["add_user", name, "hunter2"]).await;
                    names.push(name.to_owned());
                }
                _ => drop(ctl(&words[1..]).await),
            }
        }
        assert_eq!(names.len(), 4, "{names:?}");
        Self { prefix, names }
    }

    fn name(&self, user: &str) -> String {
        format!("{}_{user}", self.prefix)
    }

    fn url(&self, system: &System, user: &str) -> String {
        let mut url = url::Url::parse(&system.amqp_url).unwrap();
        url.set_username(&self.name(user)).unwrap();
        url.set_password(Some("hunter2")).unwrap();
        url.into()
    }

    async fn remove(self) {
        for name in &self.names {
            ctl(&["delete_user", name]).await;
        }
    }
}

/// The line of a check; empty while the process does not listen yet.
async fn line(system: &System, process: &Process, check: &str) -> String {
    let Ok(answer) = system.client.get(process.url("/readyz")).send().await else { return String::new() };
    let report: Value = answer.json().await.unwrap();
    report["checks"][check].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_works_with_the_rights_of_the_plan_and_no_others() {
    let mut system = System::prepare().await;
    let users = Users::new(&system).await;
    let url = amqp_url(&users.url(&system, "setup")).unwrap();
    let prefix = system.prefix.clone();
    let (partitions, plaintext_hosts) = (common::command::DEFAULT_PARTITIONS, PlaintextHosts::default());
    let settings = BrokerSettings { url, file: None, prefix, partitions, plaintext_hosts };
    let declared = set_up(&settings).await.unwrap();
    assert!(declared.iter().all(|object| object.created), "{declared:?}");

    let (api, worker) = (users.url(&system, "api"), users.url(&system, "worker"));
    system.set("AMQP_URL", &api);
    let api = system.api_unready();
    eventually("the API waits for a worker to mark the broker", async || {
        line(&system, &api, "broker").await.contains("no broker yet").then_some(())
    })
    .await;
    system.set("AMQP_URL", &worker);
    let worker = system.worker().await;
    api.ready().await;
    system.create(&api, "limited@example.org").await;
    eventually("reply hints", async || (line(&system, &api, "broker").await == "ok: connected").then_some(())).await;
    for log in [api.output(), worker.output()] {
        assert!(!log.contains("ACCESS_REFUSED"), "{log}");
    }
    drop((api, worker));
    users.remove().await;
}

/// What `rollcall broker plan` prints for a deployment without a prefix.
fn plan(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let plan = command.args(["broker", "plan"]).args(arguments).env_clear().output().unwrap();
    assert!(plan.status.success(), "{plan:?}");
    String::from_utf8(plan.stdout).unwrap()
}

#[test]
fn the_readme_and_compose_give_the_rights_of_the_plan() {
    let readme = include_str!("../../../../README.md");
    for line in plan(&["--subscriber", "billing"]).lines().filter(|line| line.contains("set_permissions")) {
        assert!(readme.contains(&format!("\n{line}\n")), "{line}");
    }
    let compose = include_str!("../../../../compose.yaml");
    let (_, definitions) = compose.split_once("  broker-definitions:\n    content: |\n").unwrap();
    let (definitions, _) = definitions.split_once("\n\n").unwrap();
    // As Compose reads it.
    let definitions: Value = serde_json::from_str(&definitions.replace("$$", "$")).unwrap();
    let planned: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    assert_eq!(definitions["permissions"], planned["permissions"]);
}

#[test]
fn a_subscriber_cannot_have_the_name_of_something_else() {
    for name in ["commands", "commands.0", "events", "dead-letters.x", "replies.", "a b", "", "a|commands"] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_rollcall"));
        let plan = command.args(["broker", "plan", "--subscriber", name]).env_clear().output().unwrap();
        let said = String::from_utf8(plan.stderr).unwrap();
        assert_eq!(plan.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(&format!("{name:?}")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_reply_queue_costs_the_hints_and_nothing_else() {
    let mut system = System::prepare().await;
    let (user, all) = (system.prefix.trim_end_matches('.').to_owned(), pattern(&system));
    let configure = format!("{all}(commands|events|dead-letters|arrivals|deployment)");
    limit(&mut system, &user, [&configure, ".*", ".*"]).await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let shown = eventually("the report says so", async || {
        let line = line(&system, &api, "broker").await;
        line.contains("reply hints: ").then_some(line)
    })
    .await;
    assert_eq!(shown, "ok: connected; reply hints: the broker opens no queue for them");
    assert!(api.output().contains("ACCESS_REFUSED"), "the log says why");
    for number in 0..40 {
        let body = json!({"email": format!("u{number}@example.org"), "name": "Limited"});
        let answer = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
    }
    system.create(&api, "waits@example.org").await;
    assert_eq!(system.get(&api, "/readyz").await.status(), StatusCode::OK);
    let metrics = system.get(&api, "/metrics").await.text().await.unwrap();
    assert!(
        metrics.lines().any(|line| line.starts_with("rollcall_api_reply_hints") && line.ends_with(" 0")),
        "{metrics}"
    );
    let log = api.output();
    assert_eq!(log.matches("connected to the broker").count(), 1, "one connection for all: {log}");
    assert_eq!(log.matches("no reply hints: ").count(), 1, "one line, and not for each attempt: {log}");
    drop((api, worker));
    ctl(&["delete_user", &user]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_channels_are_in_the_report_with_the_remedy() {
    let mut system = System::prepare().await;
    let url = format!("{}?channel_max=8", system.amqp_url);
    system.set("AMQP_URL", &url);
    let worker = system.worker_unready();
    let partitions = eventually("not every partition is served", async || {
        let line = line(&system, &worker, "partitions").await;
        line.contains("; partition ").then_some(line)
    })
    .await;
    for part in ["failed: consuming ", " of 16 owned; partition ", "allows 8 channels on a connection", "channel_max"] {
        assert!(partitions.contains(part), "{part} in {partitions}");
    }
    let reason = "a worker that owns all 16 partitions needs 18; raise `channel_max`";
    eventually("the limit is shown as soon as there is a connection", async || {
        line(&system, &worker, "broker, consuming").await.contains(reason).then_some(())
    })
    .await;
    // An API needs a few only.
    let _api = system.api().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_partition_is_overload_and_an_instance_whose_partition_has_no_leader_is_not_ready() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let api = system.api().await;
    let queue = format!("{}commands.0", system.prefix);
    let policy = format!("{}full", system.prefix);
    let name = format!("{}commands\\.0$", pattern(&system));
    ctl(&["set_policy", &policy, &name, r#"{"max-length":3}"#, "--apply-to", "queues"]).await;
    let create = async |number: usize| {
        let body = json!({"email": format!("u{number}@example.org"), "name": "Refused"});
        system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap()
    };
    let mut number = 0;
    let refused = eventually("refused", async || {
        number += 1;
        let answer = create(number).await;
        (answer.status() != StatusCode::ACCEPTED).then_some(answer)
    })
    .await;
    problem(refused, 503, "overloaded").await;
    let metrics = system.get(&api, "/metrics").await.text().await.unwrap();
    let replaced = "rollcall_broker_channels_replaced_total{";
    assert!(metrics.lines().any(|line| line.starts_with(replaced) && line.contains("refused")), "{metrics}");
    ctl(&["clear_policy", &policy]).await;
    ctl(&["purge_queue", &queue]).await;

    let server = format!("{{'%2F_{queue}', node()}}");
    ctl(&["eval", &format!("ra:stop_server(quorum_queues, {server}).")]).await;
    let line = eventually("not ready", async || {
        number += 1;
        let answer = create(number).await;
        let expected = [StatusCode::ACCEPTED, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        assert!(expected.contains(&answer.status()), "{}", answer.status());
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            problem(answer, 503, "broker-unavailable").await;
        }
        let line = line(&system, &api, "broker").await;
        line.starts_with("failed: ").then_some(line)
    })
    .await;
    assert!(line.contains("partition 0 for ") && line.contains("no leader"), "{line}");
    assert_eq!(system.get(&api, "/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    ctl(&["eval", &format!("ra:restart_server(quorum_queues, {server}).")]).await;
    eventually("accepted again", async || {
        number += 1;
        (create(number).await.status() == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    api.ready().await;
}
