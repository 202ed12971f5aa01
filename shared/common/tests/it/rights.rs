//! What a broker refuses: rights that are limited by a pattern, and limits of a virtual host.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use rollcall_common::broker::{BrokerUser, LinkState, Permissions, TopologyError, set_up, supervise};
use rollcall_common::config::amqp_url;
use rollcall_common::health::{Health, ReadyWhen};
use rollcall_common::shutdown::{Shutdown, chain};

use crate::support::{Deployment, GRACES, ctl, eventually, soon, stack};

/// A deployment whose user may configure, write and read what these patterns match.
async fn limited(deployment: &Deployment, user: &str, rights: [&str; 3]) -> rollcall_common::config::BrokerSettings {
    ctl(&["add_user", user, "hunter2"]).await;
    grant(user, rights).await;
    let mut settings = deployment.settings.clone();
    let url = url::Url::parse(stack().rabbitmq.url()).expect("a URL");
    let address = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
    settings.url = amqp_url(&format!("amqp://{user}:hunter2@{address}/%2f")).expect("a URL");
    settings
}

async fn grant(user: &str, [configure, write, read]: [&str; 3]) {
    ctl(&["set_permissions", "-p", "/", user, configure, write, read]).await;
}

fn down(state: &LinkState, part: &str) -> bool {
    matches!(state, LinkState::Down(reason) if reason.contains(part))
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_with_the_command_that_grants_it() {
    let deployment = Deployment::new(1).declared().await;
    let prefix = &deployment.settings.prefix;
    let user = prefix.trim_end_matches('.');
    let settings = limited(&deployment, user, ["", "", ""]).await;
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    let mut link = supervise(&shutdown, &health, "broker", &settings, (BrokerUser::Worker, None));
    let Permissions { configure, write, read } = BrokerUser::Worker.permissions(prefix);
    let missing = format!("the broker's user {user:?} may not write to the exchange '{prefix}events'");
    let remedy = format!("`rabbitmqctl set_permissions -p / {user} '{configure}' '{write}' '{read}'`");
    let state = soon(&missing, link.wait_for(|state| down(state, &missing))).await.expect("a link").clone();
    assert!(down(&state, &remedy), "{state:?}");
    assert!(!health.report().ready);
    // Waiting is enough: what an operator grants is used with the next attempt.
    grant(user, [&configure, &write, &read]).await;
    soon("a connection", link.wait_for(|state| matches!(state, LinkState::Up { .. }))).await.expect("a link");
    eventually("ready", async || health.report().ready).await;
    shutdown.stop(GRACES).await.expect("a good end");

    let fault = set_up(&settings).await.expect_err("a worker declares nothing").to_string();
    let missing = format!("the broker's user {user:?} may not configure the exchange '{prefix}commands'");
    assert!(fault.contains(&missing), "{fault}");
    ctl(&["delete_user", user]).await;
}

#[tokio::test]
async fn a_limit_of_the_virtual_host_is_named_with_the_words_of_the_broker() {
    let deployment = Deployment::new(3);
    let vhost = deployment.settings.prefix.trim_end_matches('.').to_owned();
    ctl(&["add_vhost", &vhost]).await;
    ctl(&["set_permissions", "-p", &vhost, "rollcall", ".*", ".*", ".*"]).await;
    ctl(&["set_vhost_limits", "-p", &vhost, r#"{"max-queues": 2}"#]).await;
    let mut settings = deployment.settings.clone();
    settings.url = amqp_url(&stack().rabbitmq.url().replace("%2f", &vhost)).expect("a URL");
    let fault = chain(&set_up(&settings).await.expect_err("a limit"));
    assert!(fault.contains(&format!("queue limit in vhost '{vhost}' (2) is reached")), "{fault}");
    assert!(!fault.contains("delete"), "no remedy for another fault: {fault}");
    ctl(&["clear_vhost_limits", "-p", &vhost]).await;
    let declared = set_up(&settings).await.expect("a topology");
    assert_eq!(declared.iter().filter(|object| object.created).count(), 2, "the rest: {declared:?}");
    ctl(&["delete_vhost", &vhost]).await;
}

#[tokio::test]
async fn an_argument_that_differs_is_named_with_both_values() {
    let deployment = Deployment::new(1);
    let channel = deployment.connect().await.create_channel().await.expect("a channel");
    let queue = deployment.topology.partition_queue(0);
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
    arguments.insert("x-max-length".into(), lapin::types::AMQPValue::LongLongInt(5));
    channel.queue_declare(queue.as_str().into(), options, arguments).await.expect("a queue");
    let fault = deployment.topology.declare(&deployment.connect().await).await.expect_err("a mismatch");
    let text = fault.to_string();
    let TopologyError::Mismatch { argument, expected, current, .. } = fault else { panic!("{text}") };
    assert!(text.contains(&format!("{argument} is {current}, and here it is {expected} (")), "{text}");
    assert!(text.contains(&format!("rabbitmqctl delete_queue {queue}`, or set another BROKER_PREFIX")), "{text}");
    assert!(["x-max-length", "x-dead-letter-exchange", "x-overflow"].contains(&argument.as_str()), "{text}");
}
