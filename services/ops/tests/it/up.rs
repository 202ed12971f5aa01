//! `rollcall up`: from nothing to working URLs, and back to nothing.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use reqwest::{Client, Method, StatusCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::Connection as _;
use tempfile::TempDir;

use crate::harness::{eventually, free_port};

/// A running `rollcall up`.
struct Up {
    child: Child,
    api: String,
    announcement: String,
}

impl Up {
    /// Starts it in a folder and waits for its announcement.
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["up", "--port", &free_port().to_string()])
            .current_dir(folder)
            .env_remove("DATABASE_URL")
            .env_remove("AMQP_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut announcement = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !announcement.contains("Ctrl-C stops everything.") {
            let line = lines.next().unwrap_or_else(|| panic!("it ended:\n{announcement}")).unwrap();
            announcement += &(line + "\n");
        }
        // Somebody has to read on, or it would end on a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let api = announcement.split_whitespace().find_map(|word| word.strip_suffix("/docs")).unwrap().to_owned();
        Self { child, api, announcement }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually("rollcall up ends", async || self.child.try_wait().unwrap()).await
    }
}

/// The processes that belong to a folder: their command line or environment names it.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let read = |path: std::path::PathBuf| {
        let mut bytes = Vec::new();
        let _ = std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let commands = processes
        .filter(|path| read(path.join("environ")).contains(folder) || read(path.join("cmdline")).contains(folder));
    commands.map(|path| read(path.join("cmdline"))).filter(|command| !command.is_empty()).collect()
}

async fn nothing_is_left(folder: &TempDir) {
    eventually("no process is left", async || processes_of(folder.path()).is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn up_brings_up_a_system_on_which_the_commands_of_the_readme_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let mut up = tokio::task::spawn_blocking(move || Up::start(&path)).await.unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    for page in ["/docs", "/openapi.json", "/readyz", "/metrics", "/v1/users"] {
        let answer = client.get(up.api.clone() + page).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{page}");
    }
    each_service_has_an_account_of_its_own(folder.path(), &up.announcement).await;
    let readme = include_str!("../../../../README.md");
    let mut user = String::new();
    let mut run = 0;
    for (command, status) in curl_commands(readme) {
        let command = command.replace("http://127.0.0.1:8080", &up.api).replace("$USER_ID", &user);
        let answer = send(&client, &command).await;
        assert_eq!(answer.status().as_u16(), status, "{command}");
        if let Ok(body) = answer.json::<Value>().await
            && let Some(id) = body["id"].as_str()
        {
            id.clone_into(&mut user);
        }
        run += 1;
    }
    assert!(run >= 3, "the README shows a create, a read and a change");
    assert!(up.announcement.contains("/docs"));

    up.signal(Signal::INT);
    assert!(up.ended().await.success());
    nothing_is_left(&folder).await;
}

/// At the database, at the broker and, started by root, on this machine; and the broker takes no large message.
async fn each_service_has_an_account_of_its_own(folder: &Path, announcement: &str) {
    let url = |scheme: &str| announcement.split_whitespace().find(|word| word.starts_with(scheme)).unwrap();
    let mut operator = sqlx::PgConnection::connect(url("postgres://")).await.unwrap();
    let query = "SELECT DISTINCT usename::text FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY 1";
    let roles: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut operator).await.unwrap();
    assert!(!roles.is_empty() && !roles.contains(&"rollcall".to_owned()), "the superuser serves: {roles:?}");
    let log = std::fs::read_to_string(folder.join(".rollcall/logs/rabbitmq.log")).unwrap();
    for (user, serves) in
        [("rollcall_api", true), ("rollcall_worker", true), ("rollcall_setup", true), ("rollcall", false)]
    {
        assert_eq!(log.contains(&format!("user '{user}' authenticated")), serves, "{user} in {log}");
    }
    let children = std::fs::read_dir(folder.join(".rollcall/children")).unwrap().flatten();
    let children: Vec<String> = children.map(|child| child.file_name().into_string().unwrap()).collect();
    assert_eq!(children.len(), 2, "{children:?}");
    for pid in children {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let [uid, gid, groups] = ["Uid:", "Gid:", "Groups:"]
            .map(|field| status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned());
        assert!(uid.split('\t').chain(gid.split('\t')).all(|id| id != "0"), "root serves: {status}");
        assert!(!groups.split(' ').any(|group| group == "0"), "{status}");
    }

    let connection = Connection::connect(url("amqp://"), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (body, options) = (vec![b' '; 300_000], BasicPublishOptions::default());
    let published = channel.basic_publish("commands".into(), "0".into(), options, &body, BasicProperties::default());
    assert!(published.await.unwrap().await.is_err(), "a large message was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_an_up_that_was_killed_and_the_next_one_finds_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let mut up = tokio::task::spawn_blocking(move || Up::start(&path)).await.unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    let create = client.post(up.api.clone() + "/v1/users").header("prefer", "wait=20");
    let created = create.json(&serde_json::json!({"email": "kept@example.org", "name": "Kept"})).send().await.unwrap();
    let path = created.headers()["location"].to_str().unwrap().to_owned();
    up.signal(Signal::KILL);
    up.ended().await;
    nothing_is_left(&folder).await;

    let again = folder.path().to_owned();
    let mut up = tokio::task::spawn_blocking(move || Up::start(&again)).await.unwrap();
    assert_eq!(client.get(up.api.clone() + &path).send().await.unwrap().status(), StatusCode::OK);
    up.signal(Signal::TERM);
    assert!(up.ended().await.success());
    nothing_is_left(&folder).await;
}

/// The curl commands of a document, each with the status that the comment above it announces, like `# 201`.
fn curl_commands(document: &str) -> Vec<(String, u16)> {
    let joined = document.replace("\\\n", " ");
    let mut status = None;
    let mut commands = Vec::new();
    for line in joined.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            status = comment.split_whitespace().next().and_then(|word| word.trim_end_matches(':').parse().ok());
        } else if let (true, Some(status)) = (line.starts_with("curl "), status.take()) {
            commands.push((line.to_owned(), status));
        }
    }
    commands
}

/// Sends what a curl command with -X, -H, -d and -i would send, so that the test needs no curl.
async fn send(client: &Client, command: &str) -> reqwest::Response {
    let mut words = shell_words(command).into_iter().skip(1);
    let (mut method, mut url, mut body) = (Method::GET, String::new(), None);
    let mut headers = Vec::new();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-i" | "-s" | "-si" => {}
            "-X" => method = words.next().unwrap().parse().unwrap(),
            "-H" => headers.push(words.next().unwrap()),
            "-d" => body = words.next(),
            _ => url = word,
        }
    }
    if body.is_some() && method == Method::GET {
        method = Method::POST;
    }
    let mut request = client.request(method, url).body(body.unwrap_or_default());
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.send().await.unwrap()
}

/// Splits at white space outside of single quotes.
fn shell_words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
