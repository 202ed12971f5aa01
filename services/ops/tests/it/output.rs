//! Outputs that take nothing: a pipe whose reader has left, a disk that is full, a log without a reader.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};

use serde_json::json;

use crate::harness::{Process, System, eventually, free_port};

/// A pipe whose reader has left.
fn left() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

/// A disk without room.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn command(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let environment = system.environment.iter().map(|(name, value)| (name, value));
    command.args(arguments).env_clear().envs(environment).stdin(Stdio::null());
    command
}

/// The exit code and what was said beside the output.
async fn ends(mut command: Command, output: Stdio) -> (Option<i32>, String) {
    command.stdout(output);
    let Output { status, stderr, .. } = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    (status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_shows_something_ends_when_its_reader_leaves() {
    let system = System::prepare().await;
    for arguments in [
        &["settings"][..],
        &["migrate", "status"],
        &["keys", "list"],
        &["dead-letters", "list"],
        &["roles", "plan", "--budget", "20"],
        &["budget"],
        &["budget", "--watch"],
    ] {
        let (code, said) = ends(command(&system, arguments), left()).await;
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?}");
        let (code, said) = ends(command(&system, arguments), full()).await;
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(said.contains("the standard output cannot be written: No space left"), "{arguments:?}: {said}");
    }
    for output in [left(), full()] {
        let (code, said) = ends(command(&system, &["export", "-", "--format", "csv"]), output).await;
        assert_eq!(code, Some(1));
        assert!(said.contains("the standard output holds no whole export"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_works_finishes_its_work_without_an_output() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let folder = tempfile::tempdir().unwrap();
    for (number, output) in [left(), full()].into_iter().enumerate() {
        let file = folder.path().join(format!("{number}.csv"));
        let mut rows = File::create(&file).unwrap();
        rows.write_all(b"email,name\n").unwrap();
        for row in 0..50 {
            writeln!(rows, "u{number}-{row}@example.org,User").unwrap();
        }
        // One that is refused, so that something is said of it before the end.
        rows.write_all(b"no address,User\n").unwrap();
        let import = command(&system, &["import", file.to_str().unwrap(), "--url", &api.url("")]);
        let (code, said) = ends(import, output).await;
        assert!(code == Some(1) && said.contains("rejected 1 row"), "{said}");
    }
    assert_eq!(system.count("SELECT count(*) FROM users").await, 100);

    let (code, said) = ends(command(&system, &["migrate", "run"]), left()).await;
    assert!(code == Some(1) && said.contains("the work is done, but the standard output"), "{said}");

    // The key is shown once: one that was not shown must not exist.
    let create = ["keys", "create", "--client", "billing", "--scope", "users:read"];
    for output in [left(), full()] {
        let (code, said) = ends(command(&system, &create), output).await;
        assert!(code == Some(1) && said.contains("no key was made"), "{said}");
    }
    assert_eq!(system.count("SELECT count(*) FROM api_keys").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_without_an_output_replays_every_letter() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let mut connection = system.database().await;
    let refusing = "ALTER TABLE users ADD CONSTRAINT no_poison CHECK (name <> 'Poison')";
    sqlx::raw_sql(refusing).execute(&mut connection).await.unwrap();
    for number in 0..5 {
        let body = json!({"email": format!("u{number}@example.org"), "name": "Poison"});
        let accepted = system.client.post(api.url("/v1/users")).json(&body).send().await.unwrap();
        assert_eq!(accepted.status(), 202);
    }
    eventually("all are parked", async || (system.count("SELECT count(*) FROM dead_letters").await == 5).then_some(()))
        .await;
    sqlx::raw_sql("ALTER TABLE users DROP CONSTRAINT no_poison").execute(&mut connection).await.unwrap();
    let (code, said) = ends(command(&system, &["dead-letters", "replay", "--all", "--yes"]), left()).await;
    assert!(code == Some(1) && said.contains("the work is done"), "{said}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 5);
}

/// Killed when it is dropped.
struct Silent(Child);

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_whose_log_has_no_reader_go_on() {
    let system = System::prepare().await;
    assert!(system.declare());
    let (port, probes) = (free_port(), free_port());
    let start = |role, variable, address: String| {
        let mut command = command(&system, &[role]);
        Silent(command.env(variable, address).stdout(left()).stderr(left()).spawn().unwrap())
    };
    let _api = start("api", "PORT", port.to_string());
    let _worker = start("worker", "WORKER_LISTEN", format!("127.0.0.1:{probes}"));
    let client = client::Settings::new(&format!("http://127.0.0.1:{port}")).client().unwrap();
    let created = eventually("a user", async || {
        let body = client::types::NewUser { email: "ada@example.org".to_owned(), name: "Ada".to_owned() };
        client.create_user().prefer("wait=10").idempotency_key("ada").body(body).send().await.ok()
    })
    .await;
    drop(created);
    eventually("it is applied", async || (system.count("SELECT count(*) FROM users").await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_said_and_nothing_else_begins() {
    let system = System::prepare().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for role in ["api", "worker"] {
        // What began too early was ended at a random moment.
        for _ in 0..5 {
            let (variable, address) = match role {
                "api" => ("PORT", port.to_string()),
                _ => ("WORKER_LISTEN", format!("127.0.0.1:{port}")),
            };
            let mut process = Process::start_on(port, role, variable, |_| address.clone(), &system.environment);
            assert_eq!(process.ended().await.code(), Some(1));
            let output = process.output();
            assert!(output.contains("in use") && !output.contains("panicked"), "{output}");
            assert!(!output.contains("broker"), "{output}");
        }
    }
}
