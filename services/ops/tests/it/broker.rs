//! The broker as an operator limits it: rights by pattern, channels, queue lengths.

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

/// The line of a check; empty while the process does not listen yet.
async fn line(system: &System, process: &Process, check: &str) -> String {
    let Ok(answer) = system.client.get(process.url("/readyz")).send().await else { return String::new() };
    let report: Value = answer.json().await.unwrap();
    report["checks"][check].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_limited_to_the_prefix_are_enough() {
    let mut system = System::prepare().await;
    let (user, all) = (system.prefix.trim_end_matches('.').to_owned(), pattern(&system));
    limit(&mut system, &user, [&all, &all, &all]).await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "limited@example.org").await;
    eventually("reply hints", async || (line(&system, &api, "broker").await == "ok: connected").then_some(())).await;
    for log in [api.output(), worker.output()] {
        assert!(!log.contains("ACCESS_REFUSED"), "{log}");
    }
    drop((api, worker));
    ctl(&["delete_user", &user]).await;
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
    assert!(shown.starts_with("ok: connected; ") && shown.contains("ACCESS_REFUSED"), "{shown}");
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
