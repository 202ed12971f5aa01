//! Dead letters with the real executables: held, shown, replayed; and faults that are no command's.

use std::process::{Command, Output};

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Process, System, eventually, with_content};

/// Raises for one name, like a constraint that nobody thought of.
const TRIGGER: &str = "
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'no user of this name' USING ERRCODE = '22023';
    END
    $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users
        FOR EACH ROW WHEN (NEW.name = 'Poison') EXECUTE FUNCTION refuse();
";

/// Who waits for a lock on the users. Databases that were copied from one template share their tables' numbers.
const AT_THE_LOCK: &str = "
    CREATE VIEW at_the_lock AS
    SELECT pid
    FROM pg_locks
    WHERE NOT granted AND relation = 'users'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
";

async fn execute(system: &System, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&mut system.database().await).await.unwrap();
}

/// `rollcall dead-letters …` as an operator types it.
async fn dead_letters(system: &System, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let environment = system.environment.iter().map(|(name, value)| (name, value));
    command.arg("dead-letters").args(arguments).env_clear().envs(environment);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn told(system: &System, arguments: &[&str]) -> String {
    let output = dead_letters(system, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn accepted(system: &System, api: &Process, method: reqwest::Method, path: &str, body: Value) -> Value {
    // A change is taken as plain JSON, too.
    let answer = with_content(system.client.request(method, api.url(path)), &body).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_holds_its_user_until_an_operator_replays_it() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let user = system.create(&api, "ada@example.org").await;
    let path = format!("/v1/users/{}", user["id"].as_str().unwrap());
    execute(&system, TRIGGER).await;

    let guilty = accepted(&system, &api, reqwest::Method::PATCH, &path, json!({"name": "Poison"})).await;
    // A client that waits is answered that it will be applied, and not that it failed.
    let follower = system.post(&api, &format!("{path}/suspend"), "wait=20", &json!({})).await;
    assert_eq!(follower.status(), StatusCode::ACCEPTED);
    assert_eq!(follower.headers()["preference-applied"], "wait=20");
    let follower: Value = follower.json().await.unwrap();
    assert_eq!((&follower["status"], &follower["reason"]), (&json!("parked"), &json!("behind-another")));
    assert_eq!((&follower["blocked_by"], &follower["user_id"]), (&guilty["id"], &user["id"]));
    let (guilty, follower) = (guilty["id"].as_str().unwrap(), follower["id"].as_str().unwrap());
    let command = system.outcome(&api, guilty).await;
    assert_eq!((&command["status"], &command["reason"]), (&json!("parked"), &json!("22023")));
    assert_eq!(command["blocked_by"], Value::Null);
    let command = system.outcome(&api, follower).await;
    assert_eq!((&command["status"], &command["reason"]), (&json!("parked"), &json!("behind-another")));
    assert_eq!(command["blocked_by"], guilty);
    system.create(&api, "bob@example.org").await;

    let list = told(&system, &["list", "--type", "users.update", "--since", "1h"]).await;
    assert!(list.contains(guilty) && list.contains("1 behind") && list.contains("22023"), "{list}");
    assert!(!list.contains("no user of this name"), "the server's message can quote data: {list}");
    assert!(told(&system, &["list", "--sqlstate", "23505"]).await.contains("no open dead letters"));
    let letter: Value = serde_json::from_str(&told(&system, &["list", "--json"]).await).unwrap();
    let number = letter["id"].to_string();
    let show: Value = serde_json::from_str(&told(&system, &["show", &number, "--json"]).await).unwrap();
    assert_eq!(show["payload"]["command"]["data"]["name"], "Poison");
    assert_eq!(show["behind"][0]["command_id"], follower);
    assert!(told(&system, &["show", guilty]).await.contains("22023"));

    let unasked = dead_letters(&system, &["replay", "--all"]).await;
    assert!(!unasked.status.success() && String::from_utf8_lossy(&unasked.stderr).contains("--yes"));
    let early = dead_letters(&system, &["replay", "--all", "--yes"]).await;
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stdout).contains("failed again (22023)"));

    execute(&system, "DROP TRIGGER refuse ON users").await;
    let tried = told(&system, &["discard", &number, "--dry-run", "--with-followers"]).await;
    assert!(tried.matches("would be discarded").count() == 2, "{tried}");
    let tried = told(&system, &["replay", &number, "--dry-run"]).await;
    assert!(tried.contains("nothing changed") && tried.matches("succeeded").count() == 2, "{tried}");
    assert_eq!(system.outcome(&api, guilty).await["status"], "parked");
    assert_eq!(told(&system, &["replay", "--all", "--yes"]).await.matches("succeeded").count(), 2);
    for (id, version) in [(guilty, 2), (follower, 3)] {
        let command = system.outcome(&api, id).await;
        assert_eq!((&command["status"], &command["user_version"]), (&json!("succeeded"), &json!(version)));
        assert_eq!((&command["reason"], &command["blocked_by"]), (&Value::Null, &Value::Null));
    }
    let user: Value = system.get(&api, &path).await.json().await.unwrap();
    assert_eq!((&user["name"], &user["status"]), (&json!("Poison"), &json!("suspended")));
    let reactivated = system.post(&api, &format!("{path}/reactivate"), "wait=20", &json!({})).await;
    assert_eq!(reactivated.status(), StatusCode::OK, "no longer held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_column_pauses_the_worker_and_no_command_is_blamed() {
    let system = System::prepare().await;
    let (api, worker) = tokio::join!(system.api(), system.worker());
    execute(&system, "ALTER TABLE users RENAME COLUMN name TO label").await;
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let command = accepted(&system, &api, reqwest::Method::POST, "/v1/users", body).await;
    let line = worker.unready("applying").await;
    assert!(line.contains("cannot apply") && line.contains("42703") && !line.contains("column"), "{line}");
    assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 0);
    assert_eq!(system.count("SELECT count(*) FROM commands").await, 0);
    execute(&system, "ALTER TABLE users RENAME COLUMN label TO name").await;
    worker.ready().await;
    assert_eq!(system.outcome(&api, command["id"].as_str().unwrap()).await["status"], "succeeded");
    assert_eq!(system.count("SELECT count(*) FROM suspects").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_dead_letters_pauses_the_worker_until_its_cause_is_mended() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    execute(&system, TRIGGER).await;
    for number in 0..130 {
        let body = json!({"email": format!("u{number}@example.org"), "name": "Poison"});
        accepted(&system, &api, reqwest::Method::POST, "/v1/users", body).await;
    }
    let line = worker.unready("applying").await;
    assert!(line.contains("would be dead letters"), "{line}");
    execute(&system, "DROP TRIGGER refuse ON users").await;
    worker.ready().await;
    // Until the cause was gone, single commands were tried, and up to the limit they became letters, too.
    eventually("the rest is applied", async || {
        let decided = "SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM dead_letters)";
        (system.count(decided).await == 130).then_some(())
    })
    .await;
    let recorded = system.count("SELECT count(*) FROM dead_letters").await;
    assert!(recorded <= 100, "{recorded}");
    told(&system, &["replay", "--sqlstate", "22023", "--yes"]).await;
    assert_eq!(system.count("SELECT count(*) FROM users").await, 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_every_worker_dies_of_becomes_a_dead_letter() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    let api = system.api().await;
    // The command hangs at this lock, and the worker is killed there: twice in its batch, then in each try alone.
    execute(&system, AT_THE_LOCK).await;
    let mut lock = system.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE users").execute(&mut lock).await.unwrap();
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let command = accepted(&system, &api, reqwest::Method::POST, "/v1/users", body).await;
    for attempts in [0, 0, 1, 2, 3, 4, 5] {
        let worker = system.worker_unready();
        eventually("the worker is at the lock", async || {
            let counted = system.count("SELECT coalesce(max(attempts), 0)::bigint FROM suspects").await;
            (counted == attempts && system.count("SELECT count(*) FROM at_the_lock").await == 1).then_some(())
        })
        .await;
        worker.kill();
        // What the server notices by itself once the statement ends.
        execute(&system, "SELECT pg_terminate_backend(pid) FROM at_the_lock").await;
    }
    let _worker = system.worker().await;
    let id = command["id"].as_str().unwrap();
    eventually("a dead letter", async || {
        (system.count("SELECT count(*) FROM dead_letters WHERE attempts = 5").await == 1).then_some(())
    })
    .await;
    sqlx::raw_sql("COMMIT").execute(&mut lock).await.unwrap();
    let outcome = system.outcome(&api, id).await;
    assert_eq!((&outcome["status"], &outcome["reason"]), (&json!("parked"), &json!("worker-ended")));
    told(&system, &["replay", id]).await;
    assert_eq!(system.outcome(&api, id).await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_in_good_order_counts_against_no_command() {
    let mut system = System::prepare().await;
    system.set("PARTITIONS", "1");
    // The stop cuts the try off before the lock's own deadline does.
    system.set("STOP_DEADLINE_MS", "3000");
    let api = system.api().await;
    execute(&system, AT_THE_LOCK).await;
    let mut lock = system.database().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE users").execute(&mut lock).await.unwrap();
    let body = json!({"email": "ada@example.org", "name": "Ada"});
    let command = accepted(&system, &api, reqwest::Method::POST, "/v1/users", body).await;
    // Twice it ends with its batch; from then on it is tried alone.
    for stop in 0..8 {
        let worker = system.worker_unready();
        eventually("the worker is at the lock", async || {
            let alone = system.count("SELECT count(*) FROM suspects").await == 1;
            ((alone || stop < 2) && system.count("SELECT count(*) FROM at_the_lock").await == 1).then_some(())
        })
        .await;
        assert!(worker.terminate().await.success());
        execute(&system, "SELECT pg_terminate_backend(pid) FROM at_the_lock").await;
    }
    assert_eq!(system.count("SELECT count(*) FROM dead_letters").await, 0);
    sqlx::raw_sql("COMMIT").execute(&mut lock).await.unwrap();
    let _worker = system.worker().await;
    assert_eq!(system.outcome(&api, command["id"].as_str().unwrap()).await["status"], "succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_and_what_the_broker_gave_up_is_recorded_and_can_be_discarded() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let broker = lapin::Connection::connect(&system.amqp_url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = broker.create_channel().await.unwrap();
    let (commands, given_up) = (format!("{}commands", system.prefix), format!("{}dead-letters", system.prefix));
    for partition in 0..16 {
        // Nothing that PostgreSQL could store, in what is stored beside the message.
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString("00-a\0b".into()));
        let options = BasicPublishOptions::default();
        let properties = lapin::BasicProperties::default().with_headers(headers);
        let (key, body) = (partition.to_string(), format!("{{{partition}"));
        channel
            .basic_publish(commands.as_str().into(), key.into(), options, body.as_bytes(), properties)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        let (options, properties) = (BasicPublishOptions::default(), lapin::BasicProperties::default());
        channel.basic_publish(given_up.as_str().into(), "".into(), options, b"given up", properties).await.unwrap();
    }
    eventually("all are recorded", async || {
        let counts = "SELECT sum(attempts) FROM dead_letters WHERE user_id IS NULL";
        (system.count(counts).await == 18).then_some(())
    })
    .await;
    assert_eq!(told(&system, &["list", "--reason", "undecodable", "--json"]).await.lines().count(), 17);
    let broker_left = told(&system, &["list", "--reason", "given up by the broker", "--json"]).await;
    let letter: Value = serde_json::from_str(&broker_left).unwrap();
    assert!(told(&system, &["show", &letter["id"].to_string()]).await.contains("given up\n"));
    let again = dead_letters(&system, &["replay", &letter["id"].to_string()]).await;
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stdout).contains("no command to this version"));
    told(&system, &["discard", "--all", "--yes"]).await;
    assert!(told(&system, &["list"]).await.contains("no open dead letters"));
    system.create(&api, "after@example.org").await;
}
