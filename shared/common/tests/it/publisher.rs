//! Publishing: an accepted message is in a queue, and one that is in none is never accepted.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use rollcall_common::broker::{
    BrokerUser, Link, LinkState, Message, PublishError, Publisher, PublisherPool, supervise,
};
use rollcall_common::health::{Health, ReadyWhen};
use rollcall_common::shutdown::{Phase, Shutdown};
use tokio::sync::watch;
use uuid::Uuid;

use crate::support::{Deployment, GRACES, ctl, drain, eventually, soon};

type Answer = Result<(), PublishError>;

/// A deployment with a link that is up.
struct Fixture {
    deployment: Deployment,
    shutdown: Shutdown,
    health: Health,
    link: Link,
    connection: Connection,
    channel: Channel,
}

impl Fixture {
    async fn start(partitions: u16) -> Self {
        let deployment = Deployment::new(partitions).declared().await;
        let shutdown = Shutdown::default();
        let health = Health::new(ReadyWhen::All, shutdown.clone());
        let mut link = supervise(&shutdown, &health, "broker", &deployment.settings, (BrokerUser::Api, None));
        let up = |state: &LinkState| matches!(state, LinkState::Up { .. });
        soon("a connection", link.wait_for(up)).await.expect("a link");
        let connection = deployment.connect().await;
        let channel = connection.create_channel().await.expect("a channel");
        Self { deployment, shutdown, health, link, connection, channel }
    }

    fn publisher(&self) -> Publisher {
        Publisher::start(&self.shutdown, self.link.clone())
    }

    fn message(&self, routing_key: &str) -> Message {
        message(self.deployment.topology.commands_exchange(), routing_key)
    }

    /// Publishes to many routing keys at once and gives each message's id with its answer.
    async fn publish_all<'a>(
        &self,
        publisher: &Publisher,
        keys: impl Iterator<Item = &'a str>,
    ) -> Vec<(&'a str, String, Answer)> {
        let publishing = keys.map(|key| {
            let message = self.message(key);
            async move {
                let id = message.id.clone();
                (key, id, publisher.publish(message).await)
            }
        });
        soon("all answers", join_all(publishing)).await
    }

    /// What is in each partition's queue.
    async fn drain(&self, partitions: impl Iterator<Item = u16>) -> BTreeMap<String, Vec<String>> {
        let mut contents = BTreeMap::new();
        for partition in partitions {
            let queue = self.deployment.topology.partition_queue(partition);
            contents.insert(partition.to_string(), drain(&self.channel, &queue).await);
        }
        contents
    }

    /// The line of the readiness check.
    fn line(&self) -> String {
        self.health.report().checks["broker"].clone()
    }

    /// Publishes to partition 0 again and again until the line of the check begins so; gives the answers.
    async fn publish_until(&self, publisher: &Publisher, beginning: &str) -> Vec<Answer> {
        let mut answers = Vec::new();
        eventually(beginning, async || {
            answers.push(publisher.publish(self.message("0")).await);
            self.line().starts_with(beginning)
        })
        .await;
        answers
    }

    async fn stop(self) {
        let _ = self.connection.close(200, "done".into()).await;
        self.shutdown.stop(GRACES).await.expect("a good end");
    }
}

fn message(exchange: String, routing_key: &str) -> Message {
    Message {
        exchange,
        routing_key: routing_key.to_owned(),
        id: Uuid::now_v7().to_string(),
        properties: BasicProperties::default().with_delivery_mode(2),
        body: b"{}".to_vec(),
        mandatory: true,
    }
}

/// The ids that were accepted for a routing key, in the order in which they were published.
fn accepted(answers: &[(&str, String, Answer)], key: &str) -> Vec<String> {
    answers.iter().filter(|(to, _, answer)| *to == key && answer.is_ok()).map(|(_, id, _)| id.clone()).collect()
}

#[tokio::test]
async fn accepted_messages_are_in_their_queue_in_order() {
    let fixture = Fixture::start(2).await;
    let publisher = fixture.publisher();
    let answers = fixture.publish_all(&publisher, ["0", "1", "1"].into_iter().cycle().take(300)).await;
    assert!(answers.iter().all(|(_, _, answer)| answer.is_ok()), "{answers:?}");
    let contents = fixture.drain(0..2).await;
    assert_eq!(contents["0"], accepted(&answers, "0"));
    assert_eq!(contents["1"], accepted(&answers, "1"));
    fixture.stop().await;
}

#[tokio::test]
async fn properties_and_body_arrive_as_they_were_given() {
    let fixture = Fixture::start(1).await;
    let mut message = fixture.message("0");
    message.body = vec![0, 159, 146, 150];
    message.properties = message.properties.with_type("users.create".into()).with_app_id("rollcall".into());
    let (id, body) = (message.id.clone(), message.body.clone());
    fixture.publisher().publish(message).await.expect("a confirm");

    let queue = fixture.deployment.topology.partition_queue(0);
    let mut consumer = fixture
        .channel
        .basic_consume(queue.into(), "".into(), lapin::options::BasicConsumeOptions::default(), FieldTable::default())
        .await
        .expect("a consumer");
    let next = futures_util::StreamExt::next(&mut consumer);
    let delivery = soon("a delivery", next).await.expect("an open channel").expect("a delivery");
    assert_eq!(delivery.data, body);
    let properties = delivery.properties;
    assert_eq!(properties.message_id().as_ref().map(ToString::to_string), Some(id));
    assert_eq!(properties.kind().as_ref().map(ToString::to_string).as_deref(), Some("users.create"));
    assert_eq!(*properties.delivery_mode(), Some(2));
    fixture.stop().await;
}

#[tokio::test]
async fn unroutable_messages_among_many_are_refused_and_no_others() {
    let fixture = Fixture::start(4).await;
    let publisher = fixture.publisher();
    // Bursts of both kinds, so that returns and confirms of one batch interleave in every way.
    let keys = ["0", "nowhere", "1", "nowhere", "nowhere", "2", "3", "3", "nowhere", "0", "9"];
    let answers = fixture.publish_all(&publisher, keys.into_iter().cycle().take(900)).await;
    let contents = fixture.drain(0..4).await;
    for (key, id, answer) in &answers {
        match contents.get(*key) {
            Some(ids) => assert!(*answer == Ok(()) && ids.contains(id), "{key} {id}: {answer:?}"),
            None => assert_eq!(*answer, Err(PublishError::Unroutable), "{key} {id}"),
        }
    }
    let stored: usize = contents.values().map(Vec::len).sum();
    assert_eq!(stored, answers.iter().filter(|(_, _, answer)| answer.is_ok()).count());
    fixture.stop().await;
}

#[tokio::test]
async fn a_binding_that_is_removed_under_load_makes_exactly_the_rest_unroutable() {
    let fixture = Fixture::start(3).await;
    let publisher = fixture.publisher();
    let keys = || ["0", "2", "1", "2"].into_iter().cycle().take(600);
    let queue = fixture.deployment.topology.partition_queue(2);
    let exchange = fixture.deployment.topology.commands_exchange();
    let (during, unbound) = tokio::join!(
        fixture.publish_all(&publisher, keys()),
        fixture.channel.queue_unbind(queue.into(), exchange.into(), "2".into(), FieldTable::default()),
    );
    unbound.expect("an unbinding");
    let after = fixture.publish_all(&publisher, keys()).await;
    assert!(after.iter().all(|(key, _, answer)| answer.is_err() == (*key == "2")), "{after:?}");

    let answers = [during, after].concat();
    for (key, ids) in fixture.drain(0..3).await {
        assert_eq!(ids, accepted(&answers, &key));
    }
    for error in answers.iter().filter_map(|(_, _, answer)| answer.as_ref().err()) {
        assert_eq!(*error, PublishError::Unroutable);
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_under_load_takes_no_message_of_another_with_it() {
    let mut fixture = Fixture::start(3).await;
    let publisher = fixture.publisher();
    let keys = ["0", "2", "1", "2"].into_iter().cycle().take(600);
    let queue = fixture.deployment.topology.partition_queue(2);
    let (answers, deleted) = tokio::join!(
        fixture.publish_all(&publisher, keys),
        fixture.channel.queue_delete(queue.into(), QueueDeleteOptions::default()),
    );
    deleted.expect("a deletion");
    // RabbitMQ 3.10 may answer by ending the connection; then the link comes back once the queue is there again.
    fixture.deployment.topology.declare(&fixture.connection).await.expect("a topology");
    let up = |state: &LinkState| matches!(state, LinkState::Up { .. });
    soon("a connection", fixture.link.wait_for(up)).await.expect("a link");
    for (key, ids) in fixture.drain(0..2).await {
        let unknown: Vec<_> = answers
            .iter()
            .filter(|(_, _, answer)| *answer == Err(PublishError::Unknown))
            .map(|(_, id, _)| id.clone())
            .collect();
        let known: Vec<_> = ids.into_iter().filter(|id| !unknown.contains(id)).collect();
        assert_eq!(known, accepted(&answers, &key));
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_what_it_accepted_is_in_it() {
    const LENGTH: usize = 20;
    let fixture = Fixture::start(1).await;
    let queue = fixture.deployment.name("small");
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(20));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    // Exclusive: it goes with the connection.
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    fixture.channel.queue_declare(queue.as_str().into(), options, arguments).await.expect("a queue");
    let exchange = fixture.deployment.topology.commands_exchange();
    let binding = QueueBindOptions::default();
    let bound = fixture.channel.queue_bind(
        queue.as_str().into(),
        exchange.into(),
        "small".into(),
        binding,
        FieldTable::default(),
    );
    bound.await.expect("a binding");

    let publisher = fixture.publisher();
    let keys = ["small", "nowhere", "0"].into_iter().cycle().take(300);
    let answers = fixture.publish_all(&publisher, keys).await;
    let mut stored = Vec::new();
    while let Some(got) = fixture
        .channel
        .basic_get(queue.as_str().into(), lapin::options::BasicGetOptions { no_ack: true })
        .await
        .expect("an answer")
    {
        stored.push(got.delivery.properties.message_id().as_ref().expect("an id").to_string());
    }
    assert_eq!(stored, accepted(&answers, "small"));
    assert_eq!(stored.len(), LENGTH);
    for (key, id, answer) in &answers {
        match *key {
            "0" => assert_eq!(*answer, Ok(()), "{id}"),
            "nowhere" => assert_eq!(*answer, Err(PublishError::Unroutable), "{id}"),
            _ if stored.contains(id) => {}
            _ => assert_eq!(*answer, Err(PublishError::Refused), "{id}"),
        }
    }
    fixture.stop().await;
}

#[tokio::test]
async fn a_partition_that_refuses_everything_fails_the_check_until_it_confirms() {
    let fixture = Fixture::start(2).await;
    let publisher = fixture.publisher();
    publisher.publish(fixture.message("0")).await.expect("a confirm");
    let queue = fixture.deployment.topology.partition_queue(0);
    let (policy, pattern) = (fixture.deployment.name("full"), format!("^{}$", queue.replace('.', "\\.")));
    ctl(&["set_policy", &policy, &pattern, r#"{"max-length":3}"#, "--apply-to", "queues"]).await;

    let answers = fixture.publish_until(&publisher, "failed: 1 partition(s) confirm nothing; partition 0 for ").await;
    assert!(answers.contains(&Err(PublishError::Refused)), "full, and said to be full");
    let others = |answer: &Answer| !matches!(answer, Ok(()) | Err(PublishError::Refused));
    assert!(!answers.iter().any(others), "{answers:?}");
    assert!(fixture.line().contains("its queue is full"), "{}", fixture.line());
    publisher.publish(fixture.message("1")).await.expect("the other partition takes messages");
    assert!(fixture.line().starts_with("failed: "), "another partition says nothing about this one");
    let stored = answers.iter().filter(|answer| answer.is_ok()).count() + 1;
    ctl(&["clear_policy", &policy]).await;
    let answers = fixture.publish_until(&publisher, "ok: connected").await;
    let stored = stored + answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(fixture.drain(0..1).await["0"].len(), stored, "what was refused is not stored");
    fixture.stop().await;
}

#[tokio::test]
async fn a_partition_whose_queue_has_lost_its_leader_fails_the_check_until_it_is_back() {
    let fixture = Fixture::start(1).await;
    let publisher = fixture.publisher();
    publisher.publish(fixture.message("0")).await.expect("a confirm");
    let server = format!("{{'%2F_{}', node()}}", fixture.deployment.topology.partition_queue(0));
    ctl(&["eval", &format!("ra:stop_server(quorum_queues, {server}).")]).await;
    let answers = fixture.publish_until(&publisher, "failed: 1 partition(s) confirm nothing; partition 0 for ").await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    assert!(!answers.contains(&Err(PublishError::Refused)), "not full: {answers:?}");
    assert!(fixture.line().contains("no leader"), "{}", fixture.line());
    ctl(&["eval", &format!("ra:restart_server(quorum_queues, {server}).")]).await;
    fixture.publish_until(&publisher, "ok: connected").await;
    fixture.stop().await;
}

#[tokio::test]
async fn an_exchange_that_does_not_exist_is_never_success_and_the_publisher_recovers() {
    let fixture = Fixture::start(1).await;
    let publisher = fixture.publisher();
    let lost = publisher.publish(message(fixture.deployment.name("nowhere"), "0"));
    let end = soon("an answer", lost).await.expect_err("no exchange");
    // The broker closed the channel without saying what became of the message.
    assert!(matches!(end, PublishError::Unknown | PublishError::Unavailable(_)), "{end}");
    let mut accepted = Vec::new();
    eventually("a new channel", async || {
        let message = fixture.message("0");
        let id = message.id.clone();
        let answer = publisher.publish(message).await;
        accepted.extend(answer.is_ok().then_some(id));
        answer.is_ok()
    })
    .await;
    assert_eq!(fixture.drain(0..1).await["0"], accepted);
    fixture.stop().await;
}

#[tokio::test]
async fn without_a_connection_publishing_is_refused_at_once_with_the_reason() {
    let shutdown = Shutdown::default();
    let states = [LinkState::Down("no route".to_owned()), LinkState::Blocked("disk alarm".to_owned())];
    for (state, reason) in states.into_iter().zip(["no route", "disk alarm"]) {
        let (_sender, link) = watch::channel(state);
        let publisher = Publisher::start(&shutdown, link);
        let publishing = publisher.publish(message("commands".to_owned(), "0"));
        let answer = soon("an answer", publishing).await;
        assert_eq!(answer, Err(PublishError::Unavailable(reason.to_owned())));
    }
    shutdown.stop(GRACES).await.expect("a good end");
}

#[tokio::test]
async fn a_publisher_follows_the_link_to_its_next_connection() {
    let mut fixture = Fixture::start(1).await;
    let publisher = fixture.publisher();
    let mut ids = Vec::new();
    for generation in 1..=2 {
        let same = |state: &LinkState| matches!(state, LinkState::Up { generation: now, .. } if *now == generation);
        let state = soon("a connection", fixture.link.wait_for(same)).await.expect("a link").clone();
        let message = fixture.message("0");
        ids.push(message.id.clone());
        soon("an answer", publisher.publish(message)).await.expect("a confirm");
        let LinkState::Up { connection, .. } = state else { panic!("{state:?}") };
        if generation == 1 {
            connection.close(200, "on purpose".into()).await.expect("an end");
        }
    }
    assert_eq!(fixture.drain(0..1).await["0"], ids);
    fixture.stop().await;
}

#[tokio::test]
async fn what_was_handed_over_before_the_end_is_still_published() {
    let fixture = Fixture::start(1).await;
    let publisher = fixture.publisher();
    // A queue that was just declared can take seconds for its first confirm.
    let early = fixture.message("0");
    let mut expected = vec![early.id.clone()];
    soon("an answer", publisher.publish(early)).await.expect("a confirm");
    let publishing = fixture.publish_all(&publisher, std::iter::repeat_n("0", 200));
    let (answers, end) = tokio::join!(publishing, fixture.shutdown.stop(GRACES));
    end.expect("a good end");
    let contents = fixture.drain(0..1).await;
    expected.extend(accepted(&answers, "0"));
    assert_eq!(expected.len(), 201, "{answers:?}");
    assert_eq!(contents["0"], expected);
    let late = soon("an answer", publisher.publish(fixture.message("0"))).await.expect_err("stopped");
    assert_eq!(late, PublishError::Unavailable("the service is stopping".to_owned()));
    assert_eq!(fixture.shutdown.phase(), Phase::Disconnecting);
}

#[tokio::test]
async fn a_pool_keeps_the_order_of_each_partition() {
    let fixture = Fixture::start(4).await;
    let pool = PublisherPool::start(&fixture.shutdown, &fixture.link, 2);
    let keys: Vec<String> = (0..400_u16).map(|number| (number % 4).to_string()).collect();
    let publishing = keys.iter().map(|key| {
        let message = fixture.message(key);
        let publisher = pool.of(key.parse().expect("a number"));
        async move {
            let id = message.id.clone();
            (key.as_str(), id, publisher.publish(message).await)
        }
    });
    let answers = soon("all answers", join_all(publishing)).await;
    for (key, ids) in fixture.drain(0..4).await {
        assert_eq!(ids, accepted(&answers, &key));
        assert_eq!(ids.len(), 100);
    }
    fixture.stop().await;
}
