//! Messages that no API publishes: they are recorded and not applied, and the partition goes on.

use common::command::{
    Command, CommandId, CommandKeys, CreateUser, Email, Envelope, Name, Principal, SIGNATURE_HEADER, UserId,
};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::Value;
use time::OffsetDateTime;

use crate::harness::{System, eventually};

const KEY: &str = "7b0c5d3e9a1f48264b6e8d0f2c4a69573e1b8d7f6c5a49382716054f3e2d1c0b";
const OTHER_KEY: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

/// Who may publish commands at the broker.
struct Forger {
    _connection: Connection,
    channel: Channel,
    exchange: String,
}

impl Forger {
    async fn new(system: &System) -> Self {
        let connection = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { _connection: connection, channel, exchange: format!("{}commands", system.prefix) }
    }

    async fn publish(&self, partition: u16, body: &[u8], properties: BasicProperties) {
        let (exchange, key) = (self.exchange.as_str().into(), partition.to_string().into());
        let publishing = self.channel.basic_publish(exchange, key, BasicPublishOptions::default(), body, properties);
        publishing.await.unwrap().await.unwrap();
    }
}

fn envelope(email: &str) -> Envelope {
    let (email, name) = (Email::parse(email).unwrap(), Name::parse("Forged").unwrap());
    Envelope {
        id: CommandId::mint(),
        accepted_at: OffsetDateTime::now_utc(),
        principal: Principal::parse("key:alice").unwrap(),
        if_match: None,
        idempotency: None,
        command: Command::CreateUser(CreateUser { user_id: UserId::mint(), email, name }),
    }
}

fn signed(envelope: &Envelope, keys: &str) -> BasicProperties {
    let (id, kind, body) = (envelope.id.to_string(), envelope.command.wire_name(), envelope.encode());
    let signature = CommandKeys::parse(keys).unwrap().sign(&id, kind, &body).unwrap();
    let mut headers = FieldTable::default();
    headers.insert(SIGNATURE_HEADER.into(), AMQPValue::LongString(signature.into()));
    BasicProperties::default().with_message_id(id.into()).with_type(kind.into()).with_headers(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_no_api_publishes_is_recorded_and_not_applied() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "2");
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let forger = Forger::new(&system).await;
    let misplaced = envelope("misplaced@example.org");
    let user = misplaced.command.user_id();
    forger.publish(1 - user.partition(2), &misplaced.encode(), BasicProperties::default()).await;
    let large = envelope("large@example.org");
    let mut body = large.encode();
    // White space is JSON: without the bound this is a command like others.
    body.resize(100_000, b' ');
    forger.publish(large.command.user_id().partition(2), &body, BasicProperties::default()).await;

    let outcome = system.outcome(&api, &misplaced.id.to_string()).await;
    assert_eq!((&outcome["status"], &outcome["reason"]), (&"parked".into(), &"wrong-partition".into()), "{outcome}");
    let kept = eventually("the large one is recorded", async || {
        let query = "SELECT size, octet_length(payload) FROM dead_letters WHERE size IS NOT NULL";
        let row: Option<(i64, i32)> = sqlx::query_as(query).fetch_optional(&mut system.database().await).await.unwrap();
        row
    })
    .await;
    assert_eq!(kept, (100_000, 65_536));
    system.create(&api, "honest@example.org").await;
    assert_eq!(system.count("SELECT count(*) FROM users").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_only_signed_commands_are_applied() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    system.set("COMMAND_KEY", KEY);
    let api = system.api().await;
    // A worker in the middle of a rotation.
    system.set("COMMAND_KEY", &format!("{OTHER_KEY},{KEY}"));
    let _worker = system.worker().await;
    system.create(&api, "honest@example.org").await;
    let forger = Forger::new(&system).await;
    let unsigned = envelope("unsigned@example.org");
    forger.publish(0, &unsigned.encode(), BasicProperties::default()).await;
    let other = envelope("other@example.org");
    forger.publish(0, &other.encode(), signed(&other, &OTHER_KEY.replace("aa", "bb"))).await;
    let (genuine, mut changed) = (envelope("changed@example.org"), BasicProperties::default());
    changed.clone_from(&signed(&genuine, KEY));
    let body = String::from_utf8(genuine.encode()).unwrap().replace("key:alice", "key:carol");
    forger.publish(0, body.as_bytes(), changed).await;
    forger.publish(0, &vec![b' '; 70_000], BasicProperties::default()).await;
    let accepted = envelope("signed@example.org");
    forger.publish(0, &accepted.encode(), signed(&accepted, OTHER_KEY)).await;

    assert_eq!(system.outcome(&api, &accepted.id.to_string()).await["status"], "succeeded");
    let reasons: Vec<String> =
        sqlx::query_scalar("SELECT reason FROM dead_letters WHERE command_id IS NULL ORDER BY id")
            .fetch_all(&mut system.database().await)
            .await
            .unwrap();
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    assert!(reasons[3].starts_with("its body has 70000 bytes, of which 65536 are kept; unsigned: "), "{}", reasons[3]);
    for (reason, part) in reasons.iter().zip(["unsigned: ", "signed with the key ", "does not fit the message"]) {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert_eq!(system.count("SELECT count(*) FROM users").await, 2);
    // A forged message takes no status from a command, and blocks nobody.
    assert_eq!(system.count("SELECT count(*) FROM held_users").await, 0);
    let answer: Value = system.get(&api, &format!("/v1/commands/{}", unsigned.id)).await.json().await.unwrap();
    assert_ne!(answer["status"], "parked", "{answer}");
}
