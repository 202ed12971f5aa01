//! How a stack ends when nobody ends it.

use std::fs;
use std::process::Command;

use rollcall_local_stack::{Options, Stack};

use crate::owner::Owner;
use crate::support::{Dir, alive, eventually, query, recorded, speaks_amqp};

/// The first word of a record in the directory.
fn recorded_pid(dir: &Dir, record: &str) -> u32 {
    let record = fs::read_to_string(dir.0.join(record)).expect("a record");
    record.split(' ').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

#[test]
fn a_killed_owner_leaves_nothing_behind_with_its_keeper_or_without() {
    let dir = Dir::new("killed");
    let mut owner = Owner::start(&dir.0, "exclusive");
    let keeper = recorded_pid(&dir, "keeper");
    let epmd = recorded_pid(&dir, "processes/epmd");
    let pids = ["postgres", "rabbitmq", "child"].map(|name| owner.pid(name)).into_iter().chain([epmd, keeper]);
    let pids: Vec<u32> = pids.collect();
    assert!(pids.iter().all(|pid| alive(*pid)));
    owner.kill();
    eventually("the keeper ended everything and itself", || !pids.iter().any(|pid| alive(*pid)));

    let mut owner = Owner::start(&dir.0, "exclusive");
    let keeper = recorded_pid(&dir, "keeper");
    Command::new("sh").args(["-c", &format!("kill -KILL {keeper}")]).status().expect("kill");
    owner.kill();
    let orphans = ["postgres", "rabbitmq", "child"].map(|name| owner.pid(name));
    assert!(orphans.iter().all(|pid| alive(*pid)), "nobody is left to end them");
    let (options, lines) = recorded(dir.options());
    let stack = Stack::start(options).expect("a stack");
    assert!(!orphans.iter().any(|pid| alive(*pid)), "the next start has ended them");
    assert!(lines.lock().expect("lines").iter().any(|line| line.contains("an earlier run left")));
    assert_eq!(query(&stack.postgres, "SELECT 1"), "1");
    assert!(speaks_amqp(&stack.rabbitmq));
}

#[test]
fn a_shared_stack_is_started_once_and_ends_after_its_last_user() {
    let dir = Dir::new("shared");
    let mut first = Owner::start(&dir.0, "shared");
    let mut second = Owner::start(&dir.0, "shared");
    let postgres = first.pid("postgres");
    assert_eq!(postgres, second.pid("postgres"), "the second joins");
    let refused = Stack::start(Options { start_timeout: std::time::Duration::from_secs(5), ..dir.options() });
    assert!(refused.err().expect("a refusal").to_string().contains("is in use by process"));

    first.kill();
    let user = dir.0.join("users").join(first.id().to_string());
    eventually("the keeper forgets the dead", || !user.exists());
    assert!(alive(postgres), "the second still needs it");
    let keeper = recorded_pid(&dir, "keeper");
    second.kill();
    eventually("the server and the keeper end", || !alive(postgres) && !alive(keeper));
    assert!(!dir.0.join("stopping").exists());
}
