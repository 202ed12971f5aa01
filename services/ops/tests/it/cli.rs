//! The command line: help, settings, faults, generated files.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use common::config::{Reader, SHARED};

use crate::harness::System;

fn rollcall(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_help_of_each_service_documents_each_of_its_variables() {
    for (role, own) in [("api", api::settings::OWN), ("worker", worker::settings::OWN)] {
        let help = String::from_utf8(rollcall(&[role, "--help"], &[]).stdout).unwrap();
        for variable in SHARED.iter().chain(own) {
            assert!(help.contains(&format!("\n  {} [", variable.name)), "{role} --help lacks {}", variable.name);
        }
    }
}

#[test]
fn every_command_has_help() {
    for command in [
        "up",
        "api",
        "worker",
        "migrate",
        "roles",
        "keys",
        "dead-letters",
        "budget",
        "deployment",
        "health",
        "import",
        "export",
        "load",
        "torture",
        "generate",
        "settings",
    ] {
        let output = rollcall(&[command, "--help"], &[]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{command}");
    }
}

#[test]
fn a_fault_is_told_in_words_and_never_with_a_backtrace() {
    let environment = [("RUST_BACKTRACE", "1"), ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")];
    for arguments in [&["migrate", "status"][..], &["budget"], &["api"], &["worker"]] {
        let output = rollcall(arguments, &environment);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {complaint}");
        assert!(complaint.starts_with("Error: ") && !complaint.contains("backtrace"), "{arguments:?}: {complaint}");
    }
}

#[test]
fn the_typescript_of_the_readme_is_part_of_the_program_that_is_run() {
    let read = |path| std::fs::read_to_string(repository().join(path)).unwrap();
    let (readme, program) = (read("README.md"), read(".ci/typescript/client.ts"));
    let shown: Vec<&str> = readme.split("```ts\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(
        !shown.is_empty() && shown.iter().all(|code| program.contains(code)),
        "copy it from .ci/typescript/client.ts"
    );
}

#[test]
fn the_generated_files_are_current() {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["generate", "--check"])
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_sample_file_is_a_valid_environment_once_its_comments_are_lifted() {
    let sample = std::fs::read_to_string(repository().join(".env.example")).unwrap();
    let variables = || {
        sample.lines().map(|line| line.trim_start_matches("# ")).filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            name.chars().all(|c| c.is_ascii_uppercase() || c == '_').then(|| (name.to_owned(), value.to_owned()))
        })
    };
    let documented = SHARED.len() + api::settings::OWN.len() + worker::settings::OWN.len();
    assert_eq!(variables().count(), documented);
    // A secret has one place only, and files of authorities are read.
    let read_elsewhere = |name: &str| name.ends_with("_FILE") || name.ends_with("_CERTIFICATE");
    let variables = || variables().filter(|(name, _)| !read_elsewhere(name));
    api::settings::ApiSettings::read(Reader::new(variables())).unwrap();
    worker::settings::WorkerSettings::read(Reader::new(variables())).unwrap();
}

#[test]
fn every_fault_of_the_environment_is_reported_at_once_and_no_secret_with_it() {
    let environment = [
        ("DATABASE_URL", "mysql://root:hunter2@db/rollcall"),
        ("AMQP_URL", "amqp://guest:hunter2@broker/%2f?heartbeat=hunter2"),
        ("PORT", "eighty"),
        ("HOST", "0.0.0.0"),
        ("PARTITIONS", "0"),
    ];
    let output = rollcall(&["api"], &environment);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    for (name, _) in environment {
        assert!(text.contains(&format!("\n  {name}: ")) && text.contains(&format!("for example {name}=")), "{text}");
    }
    assert!(text.contains("AUTH=none"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_command_tells_a_ready_service_from_one_that_is_not() {
    let system = System::prepare().await;
    let api = system.api().await;
    let port = api.port().to_string();
    let healthy = tokio::task::spawn_blocking(move || rollcall(&["health"], &[("PORT", &port)])).await.unwrap();
    assert!(healthy.status.success());
    let url = api.url("/readyz");
    drop(api);
    let dead = tokio::task::spawn_blocking(move || rollcall(&["health", &url], &[])).await.unwrap();
    assert_eq!(dead.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_command_reports_what_was_accepted_and_applied() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let url = api.url("");
    let arguments = ["load", "--creates", "300", "--connections", "16", "--url", &url].map(str::to_owned);
    let output = tokio::task::spawn_blocking(move || rollcall(&arguments.each_ref().map(String::as_str), &[])).await;
    let report = String::from_utf8(output.unwrap().stdout).unwrap();
    for line in ["accepted            300", "succeeded           300", "applied per second", "oldest unapplied"] {
        assert!(report.contains(line), "{report}");
    }
    assert_eq!(system.count("SELECT count(*) FROM users").await, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_line_shows_a_password_an_address_or_a_name() {
    let mut system = System::prepare().await;
    system.set("LOG", "debug");
    let (api, worker) = tokio::join!(system.api(), system.worker());
    system.create(&api, "secretive@example.org").await;
    let password = url::Url::parse(&system.amqp_url).unwrap().password().unwrap().to_owned();
    for output in [api.output(), worker.output()] {
        for secret in ["secretive", password.as_str()] {
            assert!(!output.contains(secret), "a log shows {secret}");
        }
    }
}

/// Changes the database of a system behind its back.
async fn execute(system: &System, statement: &'static str) {
    sqlx::raw_sql(statement).execute(&mut system.database().await).await.unwrap();
}

async fn answer(system: &System, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).env_clear().envs(system.environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().await.unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_status_fails_where_migrate_run_would() {
    let system = System::prepare().await;
    let (code, said) = answer(&system, &["migrate", "status"]).await;
    assert!(code == Some(0) && said.contains("every migration has run"), "{said}");

    let newer = "
        INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9001, 'later', true, '', 0)
    ";
    execute(&system, newer).await;
    let (code, said) = answer(&system, &["migrate", "status"]).await;
    assert!(code == Some(0) && said.contains("newer ones that it does not know: 9001"), "{said}");

    execute(&system, "UPDATE _sqlx_migrations SET checksum = 'edited' WHERE version = 2").await;
    for (arguments, text) in [(["migrate", "status"], "edited 0002"), (["migrate", "run"], "has been modified")] {
        let (code, said) = answer(&system, &arguments).await;
        assert!(code == Some(1) && said.contains(text), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_migration_every_command_says_what_to_run() {
    let system = System::prepare().await;
    execute(&system, "DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    for arguments in [
        &["budget"][..],
        &["dead-letters", "list"],
        &["dead-letters", "replay", "--all", "--yes"],
        &["keys", "list"],
        &["keys", "create", "--client", "a", "--scope", "users:read"],
        &["export", "-", "--format", "csv"],
        &["migrate", "status"],
    ] {
        let (code, said) = answer(&system, arguments).await;
        assert!(code == Some(1) && said.contains("run `rollcall migrate run`"), "{arguments:?}: {said}");
        assert!(!said.contains("at line") && said.matches("does not exist").count() <= 1, "{arguments:?}: {said}");
    }
}

#[test]
fn options_that_would_mean_nothing_are_refused() {
    for (arguments, text) in [
        (&["budget", "--watch", "0"][..], "--watch"),
        (&["dead-letters", "list", "--limit", "0"], "--limit"),
        (&["dead-letters", "list", "--sqlstate", "235"], "five letters and digits like 23514"),
        (&["load", "--connections", "0"], "--connections"),
        (&["import", "users.csv", "--dry-run", "--journal", "j"], "--journal"),
        (&["import", "users.csv", "--url", "localhost:8080"], "http://"),
        (&["health", "localhost:8080"], "http://"),
        (&["health", "https://localhost:8080/readyz"], "only http://"),
    ] {
        let output = rollcall(arguments, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(text), "{arguments:?}: {said}");
    }
}

#[test]
fn a_report_of_rejected_rows_replaces_neither_the_import_nor_its_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, notes) = (folder.path().join("users.csv"), folder.path().join("notes.ndjson"));
    std::fs::write(&rows, "email,name\nnobody,Nobody\n").unwrap();
    std::fs::write(&notes, "notes\n").unwrap();
    std::fs::set_permissions(&notes, Permissions::from_mode(0o644)).unwrap();
    let (rows, notes) = (rows.to_str().unwrap(), notes.to_str().unwrap());
    for (arguments, text) in [
        (&["import", rows, "--rejected", rows][..], "--rejected names the file to import"),
        (&["import", rows, "--rejected", notes, "--journal", notes], "--rejected names the journal"),
        (&["import", rows, "--journal", notes], "is no journal of an import"),
    ] {
        let output = rollcall(arguments, &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains(text), "{arguments:?}: {said}");
    }
    assert!(std::fs::read_to_string(rows).unwrap().contains("Nobody"));
    assert_eq!(
        std::fs::metadata(notes).unwrap().permissions().mode() & 0o777,
        0o644,
        "what is no journal is left alone"
    );
}
