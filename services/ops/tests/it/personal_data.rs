//! Personal data stays in its tables: a marker that goes through every kind of failure is in no log, list, metric or span.

use std::process::Command;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{Process, System, eventually};
use crate::traces::Receiver;

const MARKER: &str = "marker@example.org";

/// Quotes the row, as a constraint or a trigger of an operator's may, under a SQLSTATE of its own for each name.
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'not this one: %', NEW USING ERRCODE = NEW.name, DETAIL = NEW.email, HINT = NEW.email;
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.name ~ '^[0-9A-Z]{5}$') EXECUTE FUNCTION refuse();
    CREATE FUNCTION as_number() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM NEW.email::integer;
        RETURN NEW;
    END
    $$;
    CREATE TRIGGER as_number BEFORE INSERT ON users FOR EACH ROW WHEN (NEW.name = 'Number') EXECUTE FUNCTION as_number();
";

/// Publishes what no API sends.
async fn publish(system: &System) {
    let broker = lapin::Connection::connect(&system.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let commands = format!("{}commands", system.prefix);
    let id = |number: u8| format!("019a5c3e-7115-7abc-8def-0123456700{number:02}");
    let command = |number: u8, change: &dyn Fn(&mut Value)| {
        let mut command = json!({
            "id": id(number), "accepted_at": "2026-11-05T12:34:56Z", "principal": "anonymous",
            "command": { "type": "users.create", "data": {
                "user_id": format!("01890a5d-ac96-774b-bcce-b3020900{number:04}"), "email": MARKER, "name": "Marker"
            } }
        });
        change(&mut command);
        command.to_string().into_bytes()
    };
    let bodies = [
        command(1, &|json| json["command"]["type"] = MARKER.into()),
        command(2, &|json| json["command"]["data"][MARKER] = 1.into()),
        command(3, &|json| json["command"]["data"]["name"] = json!([MARKER])),
        command(4, &|json| json["must_understand"] = json!([MARKER])),
        command(5, &|json| json[format!("if_{MARKER}")] = 1.into()),
        command(6, &|json| json["principal"] = json!({ "name": MARKER })),
        command(7, &|json| json["accepted_at"] = MARKER.into()),
        command(8, &|json| json["command"]["data"]["email"] = format!("no {MARKER}").into()),
        command(9, &|json| json["id"] = MARKER.into()),
        command(10, &|json| json["command"]["data"]["user_id"] = MARKER.into()),
        MARKER.as_bytes().to_vec(),
        format!("\"{MARKER}\"").into_bytes(),
    ];
    for body in &bodies {
        for properties in [
            BasicProperties::default(),
            BasicProperties::default().with_type(MARKER.into()).with_message_id(MARKER.into()),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("tracestate".into(), AMQPValue::LongString(format!("vendor={MARKER}").into()));
            headers.insert("traceparent".into(), AMQPValue::LongString(MARKER.into()));
            let options = BasicPublishOptions::default();
            let properties = properties.with_headers(headers);
            channel.basic_publish(commands.as_str().into(), "0".into(), options, body, properties).await.unwrap();
        }
    }
    // As from the broker's own dead-lettering, by any client that may publish.
    let mut headers = FieldTable::default();
    headers.insert("x-first-death-reason".into(), AMQPValue::LongString(MARKER.into()));
    headers.insert("x-first-death-queue".into(), AMQPValue::LongString(MARKER.into()));
    let (queue, properties) = (format!("{}dead-letters", system.prefix), BasicProperties::default());
    let options = BasicPublishOptions::default();
    let properties = properties.with_headers(headers);
    let body = format!("{MARKER} again");
    channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await.unwrap();
}

/// Asks an API for what it refuses, and for what the database refuses later.
async fn ask(system: &System, api: &Process) {
    let client = &system.client;
    for (path, body) in [
        ("/v1/users", json!({ "email": MARKER, "name": [MARKER] })),
        ("/v1/users", json!({ "email": format!("no {MARKER}"), "name": MARKER, MARKER: 1 })),
        ("/v1/users", json!(MARKER)),
        ("/v1/users/marker@example.org/suspend", json!({})),
    ] {
        let answer = client.post(api.url(path)).json(&body).send().await.unwrap();
        assert!(answer.status().is_client_error(), "{path}");
    }
    for path in [
        "/v1/users/marker@example.org",
        "/v1/users/marker%40example.org",
        "/marker@example.org",
        "/v1/users?email=marker@example.org",
        "/v1/users?marker@example.org=1",
        "/v1/users?cursor=marker@example.org",
        "/v1/commands/marker@example.org",
    ] {
        let request = client.get(api.url(path)).header("if-none-match", MARKER).header("prefer", MARKER);
        request.header("authorization", format!("Bearer {MARKER}")).send().await.unwrap();
    }
    // What a message of the server can quote, under classes that usually name objects only, too.
    for (number, name) in ["22023", "P0001", "23514", "XX000", "99999", "Number"].into_iter().enumerate() {
        let body = json!({ "email": format!("{number}.{MARKER}"), "name": name });
        let answer = system.post(api, "/v1/users", "respond-async", &body).await;
        let command: Value = answer.json().await.unwrap();
        assert_eq!(system.outcome(api, command["id"].as_str().unwrap()).await["status"], "parked", "{name}");
    }
}

fn operator(system: &System, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).env_clear().envs(system.environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_goes_through_every_failure_and_shows_nowhere() {
    let (receiver, endpoint) = Receiver::start();
    let mut system = System::prepare().await;
    system.set("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    system.set("LOG", "info,rollcall=debug");
    sqlx::raw_sql(TRIGGER).execute(&mut system.database().await).await.unwrap();
    let (api, worker) = tokio::join!(system.api(), system.worker());
    ask(&system, &api).await;
    publish(&system).await;
    eventually("everything is recorded", async || {
        let letters = "SELECT count(*) FROM dead_letters";
        // Six from the database, nine with an id, and four kinds without, one of them the broker's.
        (system.count(letters).await >= 6 + 9 + 4).then_some(())
    })
    .await;
    let mut shown = vec![
        ("list", operator(&system, &["dead-letters", "list"])),
        ("list --json", operator(&system, &["dead-letters", "list", "--json"])),
        ("replay", operator(&system, &["dead-letters", "replay", "--all", "--yes"])),
        ("list after a replay", operator(&system, &["dead-letters", "list"])),
    ];
    assert!(shown[0].1.lines().count() > 15, "{}", shown[0].1);
    for process in [&api, &worker] {
        for path in ["/metrics", "/readyz"] {
            shown.push((path, reqwest::get(process.url(path)).await.unwrap().text().await.unwrap()));
        }
    }
    // Not before their spans are delivered.
    for process in [api, worker] {
        let (status, log) = process.terminate_with_log().await;
        assert!(status.success());
        shown.push(("log", log));
    }
    let spans = receiver.spans.lock().unwrap();
    assert!(spans.len() > 20, "{}", spans.len());
    let attributes = spans.iter().map(|(_, span)| format!("{} {:?} {:?}\n", span.name, span.attributes, span.events));
    shown.push(("spans", attributes.collect()));
    for (what, text) in shown {
        let found: Vec<&str> = text.lines().filter(|line| line.to_lowercase().contains("marker")).collect();
        assert!(found.is_empty(), "{what}: {found:#?}");
    }
    let payload = operator(&system, &["dead-letters", "show", "1"]);
    assert!(payload.contains("example.org"), "what is shown on demand has the message: {payload}");
}
