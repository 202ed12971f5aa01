//! Audit lines of operators' commands, in the log of the database's server.

use std::fs;
use std::process::Command;

use local_stack::{Options, Postgres};
use rustix::process::getuid;
use serde_json::Value;

use crate::harness::{System, stack};

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_what_stands_in_the_log_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path());
    let postgres = tokio::task::spawn_blocking(move || Postgres::start_alone(options)).await.unwrap().unwrap();
    let shared = tokio::task::spawn_blocking(stack).await.unwrap();
    let system = System::on(postgres.url(), shared.rabbitmq.url()).await;
    let api = system.api().await;
    drop(api);
    let raw = "INSERT INTO dead_letters (payload, reason, attempts) VALUES ('no command', 'undecodable', 1)";
    sqlx::raw_sql(raw).execute(&mut system.database().await).await.unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args(arguments).env_clear().envs(system.environment.iter().map(|(name, value)| (name, value)));
        let output = command.env("SUDO_USER", "ada").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let key = run(&["keys", "create", "--client", "billing", "--scope", "users:read"]);
    let id = key.split('_').nth(1).unwrap().to_owned();
    run(&["keys", "revoke", &id]);
    run(&["deployment", "set", "retention=31", "budget=40"]);
    run(&["dead-letters", "discard", "1", "--dry-run"]);
    run(&["dead-letters", "replay", "1"]);
    run(&["dead-letters", "discard", "1", "--yes"]);
    run(&["roles", "apply", "--budget", "20", "--prefix", "audited", "--yes"]);

    let log = fs::read_to_string(folder.path().join("logs/postgres.log")).unwrap();
    let lines = log.lines().filter_map(|line| line.split_once("LOG:  rollcall audit: "));
    let lines: Vec<Value> = lines.map(|(_, line)| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<&str> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    let expected =
        ["keys create", "keys revoke", "deployment set", "dead-letters replay", "dead-letters discard", "roles apply"];
    assert_eq!(actions, expected, "each change once, and nothing that only looks");
    for line in &lines {
        assert_eq!((&line["role"], &line["by"]["uid"]), (&"rollcall".into(), &getuid().as_raw().into()), "{line}");
        assert_eq!(line["by"]["sudo_user"], "ada");
        assert!(line["by"]["host"].as_str().is_some_and(|host| !host.is_empty()), "{line}");
    }
    assert_eq!(lines[0]["details"]["id"], id.as_str());
    assert!(!log.contains(key.trim()), "never a key");
    assert_eq!(lines[2]["details"], serde_json::json!(["retention=31", "budget=40"]));
    assert_eq!(lines[4]["details"]["letters"], serde_json::json!([1]));
}
