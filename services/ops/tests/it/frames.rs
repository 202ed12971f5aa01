//! Messages that the client library refuses to parse: each costs itself, and nothing else.

use std::process::{Command as Program, Output};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::command::{
    Command, CommandId, CreateUser, Email, Envelope, Name, Principal, SuspendUser, UpdateUser, UserId,
};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::harness::frames::{RawPublisher, counted, headers, nested, text};
use crate::harness::{Process, System, eventually};

/// A `message_id` that is no UTF-8.
const BAD_ID: &[u8] = &[0, 0x80, 1, 0xff];
const NO_PROPERTIES: &[u8] = &[0, 0];
/// Levels of tables that end a process which parses them by recursion. A frame can hold six times as many; the broker itself
/// takes seconds for those.
const DEEP: usize = 4000;

fn envelope(command: Command) -> Envelope {
    let (id, accepted_at, principal) = (CommandId::mint(), OffsetDateTime::now_utc(), Principal::anonymous());
    Envelope { id, accepted_at, principal, if_match: None, idempotency: None, command }
}

fn create(user_id: UserId) -> Envelope {
    let email = Email::parse(&format!("{user_id}@example.org")).unwrap();
    envelope(Command::CreateUser(CreateUser { user_id, email, name: Name::parse("Test").unwrap() }))
}

/// The properties of a command, as octets.
fn properties(envelope: &Envelope) -> Vec<u8> {
    // delivery_mode and message_id.
    [&[0x10, 0x80, 2], &*text(envelope.id.to_string().as_bytes())].concat()
}

fn key_of(user: UserId) -> Vec<u8> {
    user.partition(16).to_string().into_bytes()
}

async fn dead_letters(system: &System, arguments: &[&str]) -> Output {
    let mut command = Program::new(env!("CARGO_BIN_EXE_rollcall"));
    let environment = system.environment.iter().map(|(name, value)| (name, value));
    command.arg("dead-letters").args(arguments).env_clear().envs(environment);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn shown(system: &System, id: &str) -> Value {
    let output = dead_letters(system, &["show", id, "--json"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// How often a service has connected to the broker.
fn connections(process: &Process) -> usize {
    process.output().matches("connected to the broker").count()
}

/// The queue on which this API learns outcomes, from a copy of a command of its own.
async fn reply_queue(system: &System, api: &Process) -> String {
    let broker = Connection::connect(&system.amqp_url, ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
    let (name, exchange) = (queue.name().clone(), format!("{}commands", system.prefix));
    for partition in 0..16 {
        let (key, options) = (partition.to_string(), QueueBindOptions::default());
        let binding =
            channel.queue_bind(name.clone(), exchange.as_str().into(), key.into(), options, FieldTable::default());
        binding.await.unwrap();
    }
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut copies = channel.basic_consume(name, "".into(), options, FieldTable::default()).await.unwrap();
    system.create(api, "copied@example.org").await;
    copies.next().await.unwrap().unwrap().properties.reply_to().as_ref().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_parsed_costs_itself_only() {
    let system = System::prepare().await;
    let (mut api, mut worker) = tokio::join!(system.api(), system.worker());
    let (replies, reply_queue) = (format!("{}replies", system.prefix), reply_queue(&system, &api).await);
    let before = [&api, &worker].map(connections);
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    let (commands, broker_dead) = (format!("{}commands", system.prefix), format!("{}dead-letters", system.prefix));
    let bad_name = headers(&[&*text(b"\xff"), b"V"].concat());
    let deep = headers(&nested(DEEP));
    for (exchange, key, properties) in [
        (&commands, &b"7"[..], BAD_ID),
        (&commands, b"3", &bad_name),
        (&commands, b"5", &deep),
        (&commands, b"6", &headers(b"\x12x-rollcall-refused\x56")),
        (&broker_dead, b"\xff", BAD_ID),
        (&broker_dead, b"\xff", &deep),
        (&replies, reply_queue.as_bytes(), BAD_ID),
        (&replies, reply_queue.as_bytes(), &deep),
    ] {
        let body = format!("{}/{} is no command", exchange, String::from_utf8_lossy(properties).len());
        publisher.publish(exchange, key, properties, body.as_bytes()).await;
    }
    publisher.confirmed().await.unwrap();
    for number in 0..20 {
        system.create(&api, &format!("u{number}@example.org")).await;
    }
    eventually("all are recorded", async || {
        (system.count("SELECT count(*) FROM dead_letters WHERE command_id IS NULL").await == 6).then_some(())
    })
    .await;
    tokio::join!(api.ready(), worker.ready());
    assert!(api.running() && worker.running());
    assert_eq!([&api, &worker].map(connections), before, "no connection was lost");
    assert!(worker.output().contains("a message that did not arrive whole is a dead letter"));

    let list = dead_letters(&system, &["list", "--reason", "message_id: is not UTF-8", "--json"]).await;
    let list = String::from_utf8(list.stdout).unwrap();
    let letter: Value = serde_json::from_str(list.lines().next().unwrap()).unwrap();
    let letter = shown(&system, &letter["id"].to_string()).await;
    assert_eq!(letter["properties_base64"], BASE64_STANDARD.encode(BAD_ID));
    assert!(letter["payload"].as_str().unwrap().ends_with("is no command"), "{letter}");
    assert!(dead_letters(&system, &["discard", "--all", "--yes"]).await.status.success());
    system.create(&api, "after@example.org").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_properties_cannot_be_parsed_is_not_overtaken() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let (user, commands) = (UserId::mint(), format!("{}commands", system.prefix));
    let rename =
        Command::UpdateUser(UpdateUser { user_id: user, email: None, name: Some(Name::parse("New").unwrap()) });
    let (first, second, third) =
        (create(user), envelope(rename), envelope(Command::SuspendUser(SuspendUser { user_id: user })));
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    for (envelope, properties) in
        [(&first, properties(&first)), (&second, BAD_ID.to_vec()), (&third, properties(&third))]
    {
        publisher.publish(&commands, &key_of(user), &properties, &envelope.encode()).await;
    }
    publisher.confirmed().await.unwrap();
    for (envelope, status, reason) in [
        (&first, "succeeded", Value::Null),
        (&second, "parked", json!("not-understood")),
        (&third, "parked", json!("behind-another")),
    ] {
        let outcome = system.outcome(&api, &envelope.id.to_string()).await;
        assert_eq!((&outcome["status"], &outcome["reason"]), (&json!(status), &reason), "{outcome}");
    }
    let id = second.id.to_string();
    assert_eq!(shown(&system, &id).await["properties_base64"], BASE64_STANDARD.encode(BAD_ID));
    // The operator has looked at it, and takes the body for what it says.
    assert!(dead_letters(&system, &["replay", &id]).await.status.success());
    let user: Value = system.get(&api, &format!("/v1/users/{user}")).await.json().await.unwrap();
    assert_eq!((&user["name"], &user["status"]), (&json!("New"), &json!("suspended")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_bound_is_recorded_with_its_size_and_never_applied() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let commands = format!("{}commands", system.prefix);
    let (known, mut long) = (create(UserId::mint()), create(UserId::mint()).encode());
    // Blanks do not make it another command, but what follows them might.
    long.resize(200_000, b' ');
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    publisher.publish(&commands, b"0", NO_PROPERTIES, &vec![b'x'; 200_000]).await;
    publisher.publish(&commands, b"0", &properties(&known), &vec![b'y'; 150_000]).await;
    publisher.publish(&commands, b"0", BAD_ID, &long).await;
    publisher.publish(&commands, b"0", NO_PROPERTIES, b"short").await;
    publisher.confirmed().await.unwrap();
    assert_eq!(system.outcome(&api, &known.id.to_string()).await["reason"], "not-understood", "its id can be read");
    eventually("all are recorded", async || {
        (system.count("SELECT count(*) FROM dead_letters").await == 4).then_some(())
    })
    .await;
    let sizes = "SELECT string_agg(length(payload) || ' of ' || coalesce(size, 0), ', ' ORDER BY size DESC NULLS LAST, id) FROM dead_letters";
    let sizes: String = sqlx::query_scalar(sizes).fetch_one(&mut system.database().await).await.unwrap();
    assert_eq!(sizes, "65536 of 200000, 65536 of 200000, 65536 of 150000, 5 of 0");
    let replayed = dead_letters(&system, &["replay", "--all", "--yes"]).await;
    assert!(!replayed.status.success(), "{replayed:?}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_among_the_brokers_dead_letters_waits_there_and_stops_nothing_else() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let exchange = format!("{}dead-letters", system.prefix);
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    for number in 0..130 {
        publisher.publish(&exchange, b"", NO_PROPERTIES, format!("garbage {number}").as_bytes()).await;
    }
    publisher.confirmed().await.unwrap();
    eventually("it waits", async || {
        let ready: Value = reqwest::get(worker.url("/readyz")).await.ok()?.json().await.ok()?;
        ready["checks"]["broker dead letters"].as_str()?.starts_with("ok: wait: 101 of the recent").then_some(())
    })
    .await;
    assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 100);
    system.create(&api, "ada@example.org").await;
    worker.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_frames_in_one_partition_does_not_stop_its_commands() {
    const KEY: &str = "3";
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    let commands = format!("{}commands", system.prefix);
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    for number in 0..150 {
        publisher.publish(&commands, KEY.as_bytes(), BAD_ID, format!("bad {number}").as_bytes()).await;
    }
    let user = loop {
        let user = UserId::mint();
        if key_of(user) == KEY.as_bytes() {
            break user;
        }
    };
    let rename =
        Command::UpdateUser(UpdateUser { user_id: user, email: None, name: Some(Name::parse("New").unwrap()) });
    let valid = [create(user), envelope(rename)];
    for envelope in &valid {
        publisher.publish(&commands, KEY.as_bytes(), &properties(envelope), &envelope.encode()).await;
    }
    publisher.confirmed().await.unwrap();
    for envelope in &valid {
        let outcome = system.outcome(&api, &envelope.id.to_string()).await;
        assert_eq!(outcome["status"], "succeeded", "{outcome}");
    }
    // A hundred as the partition recorded them, and the others by way of the broker.
    eventually("all are recorded", async || {
        let counts =
            "SELECT concat_ws(' of ', count(*) FILTER (WHERE reason LIKE '%given up by the broker%'), count(*))
            FROM dead_letters WHERE command_id IS NULL";
        let counts: String = sqlx::query_scalar(counts).fetch_one(&mut system.database().await).await.ok()?;
        (counts == "50 of 150").then_some(())
    })
    .await;
    worker.ready().await;
    assert_eq!(connections(&worker), 2, "no connection was lost");
}

/// Properties as only a fault or an attacker makes them, and whether the broker itself may refuse them.
fn malformed(random: &mut StdRng) -> (Vec<u8>, bool) {
    let octets = |random: &mut StdRng, most: usize| {
        let mut octets = vec![0; random.random_range(0..=most)];
        random.fill_bytes(&mut octets);
        octets
    };
    // Texts and names that are no UTF-8 are what the broker takes and the library refuses.
    let bad = |random: &mut StdRng| text(&[&octets(random, 100), &[0xff][..], &octets(random, 100)].concat());
    match random.random_range(0..40) {
        // One text: content type and encoding, correlation id, reply to, message id, type, app id, cluster id.
        0..18 => {
            let bit = *[15, 14, 10, 9, 7, 5, 3, 2].choose(random).unwrap();
            ([&(1_u16 << bit).to_be_bytes()[..], &bad(random)].concat(), false)
        }
        18..26 => (headers(&[bad(random), b"V".to_vec()].concat()), false),
        26 => (headers(&nested(random.random_range(17..DEEP / 4))), false),
        // Values of every type that the broker knows, with any octets.
        27..34 => {
            let mut entries = Vec::new();
            for _ in 0..random.random_range(1..6) {
                entries.extend(text(&octets(random, 30)));
                entries.extend(value(random));
            }
            (headers(&entries), false)
        }
        // The names that the broker and the worker read, with other types.
        34..37 => {
            let names = ["x-death", "x-delivery-count", "traceparent", "x-first-death-reason", "x-rollcall-size"];
            let name = text(names.choose(random).unwrap().as_bytes());
            let values: [&[u8]; 5] =
                [b"V", b"t\x07", b"A\0\0\0\x01V", b"S\0\0\0\x02\xff\xfe", b"l\xff\0\0\0\0\0\0\x01"];
            (headers(&[&name, *values.choose(random).unwrap()].concat()), false)
        }
        // Priority and time of any value.
        37 => ([&[0x08, 0x40][..], &(0..9).map(|_| random.random()).collect::<Vec<u8>>()].concat(), false),
        // Expiration and user id, which the broker reads.
        38 => {
            let bit = *[8, 4].choose(random).unwrap();
            ([&(1_u16 << bit).to_be_bytes()[..], &bad(random)].concat(), true)
        }
        _ => (octets(random, 60), true),
    }
}

/// A value of a header, behind the letter of its type.
fn value(random: &mut StdRng) -> Vec<u8> {
    const FIXED: [(u8, usize); 8] =
        [(b't', 1), (b'b', 1), (b's', 2), (b'I', 4), (b'l', 8), (b'd', 8), (b'T', 8), (b'V', 0)];
    let mut octets = vec![0; random.random_range(0..20)];
    random.fill_bytes(&mut octets);
    match random.random_range(0..12_usize) {
        0 => [b"S", &*counted(&octets)].concat(),
        1 => [b"x", &*counted(&octets)].concat(),
        2 => [b"F", &*counted(&[&*text(&octets), b"V"].concat())].concat(),
        3 => [b"A", &*counted(b"VVV")].concat(),
        fixed => {
            let (letter, size) = FIXED[fixed - 4];
            let mut value = vec![letter];
            value.extend((0..size).map(|_| random.random::<u8>()));
            if letter == b'd' {
                // The broker ends the connection of a publisher whose number is infinite or none.
                value[1] &= 0x3f;
            }
            value
        }
    }
}

/// Commands and messages that were tally.
#[derive(Debug, Default)]
struct Tally {
    raw: u64,
    valid: u64,
    parked: u64,
    collected: u64,
    refused: u64,
}

impl Tally {
    /// Waits until everything is applied or recorded.
    async fn settled(&self, system: &System) {
        eventually("everything is applied or recorded", async || {
            let counts = "SELECT concat_ws(' ',
                (SELECT coalesce(sum(attempts), 0) FROM dead_letters WHERE command_id IS NULL),
                (SELECT count(*) FROM commands WHERE status = 'succeeded'),
                (SELECT count(*) FROM commands WHERE status = 'parked'))";
            let counts: String = sqlx::query_scalar(counts).fetch_one(&mut system.database().await).await.ok()?;
            (counts == format!("{} {} {}", self.raw, self.valid, self.parked)).then_some(())
        })
        .await;
    }
}

/// Publishes raw frames into every queue of a deployment while valid writes go on.
async fn fuzz(frames: u64, seed: u64) {
    let system = System::prepare().await;
    let (mut api, mut worker) = tokio::join!(system.api(), system.worker());
    let name = |name: &str| format!("{}{name}", system.prefix);
    let (commands, broker_dead, replies) = (name("commands"), name("dead-letters"), name("replies"));
    let reply_queue = reply_queue(&system, &api).await;
    let before = [&api, &worker].map(connections);
    let mut random = StdRng::seed_from_u64(seed);
    let mut tally = Tally { valid: 1, ..Tally::default() };
    let mut publisher = RawPublisher::connect(&system.amqp_url).await;
    for number in 0..frames {
        let (octets, risky) = malformed(&mut random);
        let body = format!("{seed} {number} is no command");
        let partition = random.random_range(0..16).to_string();
        let (exchange, key, recorded) = match random.random_range(0..20) {
            0..2 => (&replies, reply_queue.as_str(), 0),
            // So few that they are no flood.
            2 if tally.collected < 90 => {
                tally.collected += 1;
                (&broker_dead, partition.as_str(), 1)
            }
            _ => (&commands, partition.as_str(), 1),
        };
        if risky {
            // For some of them the broker closes the channel or the connection.
            let mut alone = RawPublisher::connect(&system.amqp_url).await;
            alone.publish(exchange, key.as_bytes(), &octets, body.as_bytes()).await;
            if alone.confirmed().await.is_ok() {
                tally.raw += recorded;
            } else {
                tally.refused += 1;
            }
        } else {
            publisher.publish(exchange, key.as_bytes(), &octets, body.as_bytes()).await;
            tally.raw += recorded;
        }
        // Many more than of the others: of a flood of what is no command the broker would get most.
        for _ in 0..3 {
            let user = UserId::mint();
            let command = create(user);
            if random.random_ratio(1, 40) {
                tally.parked += 1;
                publisher.publish(&commands, &key_of(user), BAD_ID, &command.encode()).await;
            } else {
                tally.valid += 1;
                publisher.publish(&commands, &key_of(user), &properties(&command), &command.encode()).await;
            }
        }
        if number % 50 == 49 {
            publisher.confirmed().await.unwrap();
            system.create(&api, &format!("waited{number}@example.org")).await;
            tally.valid += 1;
        }
        if number % 1000 == 999 {
            tally.settled(&system).await;
            eprintln!("{} frames: {tally:?}", number + 1);
        }
    }
    publisher.confirmed().await.unwrap();
    tally.settled(&system).await;
    tokio::join!(api.ready(), worker.ready());
    assert!(api.running() && worker.running());
    assert_eq!([&api, &worker].map(connections), before, "no connection was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_frames_of_any_octets_stop_nothing() {
    fuzz(400, 12).await;
}

/// With `FRAMES=100000 FRAMES_SEED=1`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes; the short form is part of the suite"]
async fn many_raw_frames_of_any_octets_stop_nothing() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    fuzz(number("FRAMES").unwrap_or(100_000), number("FRAMES_SEED").unwrap_or_else(rand::random)).await;
}
