//! Directories that clean up after themselves, probes, and a bounded wait.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rollcall_local_stack::{Options, Postgres, RabbitMq, erase};

/// A directory of its own for one test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        Self(path)
    }

    pub(crate) fn options(&self) -> Options {
        // Told only when a test fails.
        Options { progress: Arc::new(|line| println!("{line}")), ..Options::new(&self.0) }
    }

    /// PostgreSQL only; no test connects to the other URL.
    pub(crate) fn without_rabbitmq(&self) -> Options {
        Options { amqp_url: Some("amqp://nobody@127.0.0.1:1/".into()), ..self.options() }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = erase(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Progress lines, for tests that read them.
pub(crate) fn recorded(options: Options) -> (Options, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&lines);
    let progress = move |line: &str| sink.lock().expect("a progress line").push(line.to_owned());
    (Options { progress: Arc::new(progress), ..options }, lines)
}

/// Waits for something that must come true soon.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process exists and is more than a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output().expect("ps");
    !matches!(state.stdout.trim_ascii().first(), None | Some(b'Z'))
}

pub(crate) fn port(url: &str) -> u16 {
    let after = url.rsplit_once(':').expect("a port").1;
    after.split('/').next().and_then(|port| port.parse().ok()).expect("a number")
}

/// What PostgreSQL answers to one statement.
pub(crate) fn query(postgres: &Postgres, sql: &str) -> String {
    let psql = postgres.bin_dir().expect("a private server").join("psql");
    let output = Command::new(psql).args([postgres.url(), "-XAtqc", sql]).output().expect("psql");
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether RabbitMQ answers the protocol header with a `Connection.Start`.
pub(crate) fn speaks_amqp(rabbitmq: &RabbitMq) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port(rabbitmq.url()))) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    let mut frame = [0; 11];
    stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
        && stream.read_exact(&mut frame).is_ok()
        && frame[0] == 1
        && frame[7..] == [0, 10, 0, 10]
}
