//! One of the real executables as a child process.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::eventually;

/// Ends with kill -9 when it is dropped, and shows its log when the test failed.
pub(crate) struct Process {
    child: Child,
    port: u16,
    log: PathBuf,
    // Removed with the process.
    _folder: tempfile::TempDir,
}

impl Process {
    /// Runs `rollcall ROLE` on a free port.
    pub(crate) fn start(
        role: &str,
        listen: &str,
        address: impl Fn(u16) -> String,
        environment: &[(String, String)],
    ) -> Self {
        Self::start_on(free_port(), role, listen, address, environment)
    }

    /// Runs `rollcall ROLE` on this port.
    pub(crate) fn start_on(
        port: u16,
        role: &str,
        listen: &str,
        address: impl Fn(u16) -> String,
        environment: &[(String, String)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join(format!("{role}.log"));
        let output = File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .arg(role)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env(listen, address(port))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Self { child, port, log, _folder: folder }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The client that programs use, if it is an API.
    pub(crate) fn client(&self) -> client::Client {
        client::Settings::new(&self.url("")).client().unwrap()
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually("ready", async || {
            let answer = reqwest::get(self.url("/readyz")).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Waits until it answers that it is not ready, and gives the line of one check.
    pub(crate) async fn unready(&self, check: &str) -> String {
        eventually("not ready", async || {
            let answer = reqwest::get(self.url("/readyz")).await.ok()?;
            let problem: Value = (answer.status() == 503).then_some(answer)?.json().await.ok()?;
            problem["checks"][check]
                .as_str()
                .filter(|line| line.starts_with("failed: ") && !line.ends_with("not checked yet"))
                .map(str::to_owned)
        })
        .await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Kills it with -9 and waits for its end.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits for it.
    pub(crate) async fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended().await
    }

    /// The same, with everything that it wrote.
    pub(crate) async fn terminate_with_log(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        (self.ended().await, self.output())
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("ended", async || self.child.try_wait().unwrap()).await
    }

    /// Whether it has not ended.
    pub(crate) fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything it wrote.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.output());
        }
    }
}

/// A port that nothing listens on, from below the range that clients' ports come from, so that none of them takes it
/// between now and its use.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 5000).unwrap();
    loop {
        let port = 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 5000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
