//! A stack owned by another process, which a test can kill. The test executable starts itself again and plays the
//! owner.

use std::collections::HashMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rollcall_local_stack::{Options, Stack};

use crate::support::Dir;

const DIR: &str = "LOCAL_STACK_OWNER_DIR";
const ROLE: &str = "LOCAL_STACK_OWNER_ROLE";

/// A process that owns or shares a stack and waits for its end.
pub(crate) struct Owner {
    process: Child,
    /// What it said of its stack.
    pub(crate) facts: HashMap<String, String>,
}

impl Owner {
    /// Starts one. `role` is `exclusive`, with both servers, one of them frozen, and an adopted child; or `shared`,
    /// with PostgreSQL only.
    pub(crate) fn start(dir: &Path, role: &str) -> Self {
        let executable = env::current_exe().expect("the test executable");
        let mut process = Command::new(executable)
            .args(["--exact", "owner::plays_the_owner_when_asked", "--nocapture", "--test-threads=1"])
            .env(DIR, dir)
            .env(ROLE, role)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an owner");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let mut facts = HashMap::new();
        for line in lines {
            let line = line.expect("a line");
            if line == "ready" {
                break;
            }
            if let Some((name, value)) = line.split_once('=') {
                facts.insert(name.to_owned(), value.to_owned());
            }
        }
        assert!(facts.contains_key("postgres"), "the owner did not start its stack");
        Self { process, facts }
    }

    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.facts[name].parse().expect("a pid")
    }

    /// Its own pid.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("SIGKILL");
        self.process.wait().expect("its end");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn plays_the_owner_when_asked() {
    let variable = |wanted: &str| env::vars().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let (Some(dir), Some(role)) = (variable(DIR), variable(ROLE)) else { return };
    let options = Options::new(dir);
    // Its `Drop` would remove the directory.
    let dir = std::mem::ManuallyDrop::new(Dir(options.dir.clone()));
    let stack = if role == "shared" {
        Stack::start_shared(Options { linger: Duration::from_secs(2), ..dir.without_rabbitmq() })
    } else {
        Stack::start(options)
    };
    let stack = stack.expect("a stack");
    println!("\npostgres={}", stack.postgres.pid().expect("a pid"));
    if role == "exclusive" {
        println!("rabbitmq={}", stack.rabbitmq.pid().expect("a pid"));
        let mut child = Command::new("sleep").arg("600").spawn().expect("a child");
        stack.adopt(child.id(), "sleep").expect("adopted");
        println!("child={}", child.id());
        thread::spawn(move || child.wait());
        stack.postgres.freeze().expect("frozen");
    }
    println!("ready");
    loop {
        thread::park();
    }
}
