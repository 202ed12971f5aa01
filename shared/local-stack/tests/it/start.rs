//! How a stack comes up, and what the faults do to it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::thread;

use rollcall_local_stack::{Error, Options, Postgres, RabbitMq, Stack, StopMode, erase};

use crate::support::{Dir, alive, eventually, port, query, recorded, speaks_amqp};

#[test]
fn two_stacks_side_by_side_share_nothing_and_both_answer() {
    let dirs = [Dir::new("left"), Dir::new("right")];
    let [left, right] = dirs.each_ref().map(|dir| {
        let options = dir.options();
        thread::spawn(move || Stack::start(options).expect("a stack"))
    });
    let [left, right] = [left, right].map(|stack| stack.join().expect("a started stack"));
    for stack in [&left, &right] {
        assert_eq!(query(&stack.postgres, "SELECT current_user || current_database()"), "rollcallrollcall");
        assert!(speaks_amqp(&stack.rabbitmq));
    }
    let mut ports = [&left, &right].map(|stack| [port(stack.postgres.url()), port(stack.rabbitmq.url())]).concat();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4, "every server has its own port");
    let [left_cookie, right_cookie] =
        dirs.each_ref().map(|dir| fs::read_to_string(dir.0.join("rabbitmq/.erlang.cookie")).expect("a cookie"));
    assert_ne!(left_cookie, right_cookie);
    // Erlang's own has twenty capitals of a generator whose seed can be found.
    assert!(left_cookie.len() == 32 && left_cookie.contains(char::is_lowercase), "a cookie of our own");
    let mode = |path: &str| fs::symlink_metadata(dirs[0].0.join(path)).expect("a file").mode() & 0o777;
    assert_eq!(mode("rabbitmq/.erlang.cookie"), 0o400);
    for (path, expected) in [("", 0o711), ("logs", 0o700), ("state", 0o700), ("logs/postgres.log", 0o600)] {
        assert_eq!(mode(path), expected, "{path}");
    }
    let nodes =
        [&left, &right].map(|stack| stack.rabbitmq.ctl(&["-q", "eval", "[node() | nodes()]."]).expect("a node"));
    assert_ne!(nodes[0], nodes[1]);

    let refused = Stack::start(dirs[0].options()).err().expect("a refusal");
    assert!(matches!(refused, Error::InUse { pid, .. } if pid == std::process::id()), "{refused}");
    assert!(refused.to_string().contains("is in use by process"));
    let refused = Stack::start_shared(dirs[0].options()).err().expect("a refusal");
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    right.stop();
    assert!(speaks_amqp(&left.rabbitmq), "the other stack has not ended");
}

#[test]
fn data_survives_stops_crashes_and_kills() {
    let dir = Dir::new("survives");
    let stack = Stack::start(dir.options()).expect("a stack");
    let urls = [stack.postgres.url().to_owned(), stack.rabbitmq.url().to_owned()];
    query(&stack.postgres, "CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)");
    stack.rabbitmq.ctl(&["add_vhost", "kept"]).expect("a virtual host");

    let pid = stack.postgres.pid().expect("a pid");
    stack.postgres.stop(StopMode::Immediate).expect("stopped");
    assert!(!alive(pid));
    assert!(matches!(stack.postgres.pid(), Err(Error::NotRunning { .. })));
    stack.postgres.start().expect("started");
    query(&stack.postgres, "INSERT INTO kept VALUES (2)");
    stack.postgres.stop(StopMode::Fast).expect("stopped");
    stack.postgres.start().expect("started");
    assert_eq!(query(&stack.postgres, "SELECT count(*) FROM kept"), "2");

    let pid = stack.rabbitmq.pid().expect("a pid");
    stack.rabbitmq.freeze().expect("frozen");
    assert!(!speaks_amqp(&stack.rabbitmq), "a frozen broker does not answer");
    stack.rabbitmq.thaw().expect("thawed");
    eventually("the thawed broker answers", || speaks_amqp(&stack.rabbitmq));
    stack.rabbitmq.kill().expect("killed");
    assert!(!alive(pid));
    // As a node of an earlier version has it.
    let cookie = dir.0.join("rabbitmq/.erlang.cookie");
    let strong = fs::read_to_string(&cookie).expect("a cookie");
    fs::remove_file(&cookie).expect("removed");
    fs::write(&cookie, "ABCDEFGHIJKLMNOPQRST").expect("a weak cookie");
    stack.rabbitmq.start().expect("started");
    assert!(speaks_amqp(&stack.rabbitmq));
    assert_eq!(fs::read_to_string(&cookie).expect("a cookie"), strong, "the weak one is replaced");

    stack.stop();
    let stack = Stack::start(dir.options()).expect("a stack");
    assert_eq!(urls, [stack.postgres.url(), stack.rabbitmq.url()], "same ports, same passwords");
    assert_eq!(query(&stack.postgres, "SELECT count(*) FROM kept"), "2");
    assert!(stack.rabbitmq.ctl(&["-q", "list_vhosts"]).expect("a list").contains("kept"));
}

#[test]
fn a_failing_start_shows_the_last_lines_of_the_log() {
    let dir = Dir::new("fails");
    drop(Postgres::start_alone(dir.options()).expect("a server"));
    fs::write(dir.0.join("postgres/data/postgresql.conf"), "not a setting at all\n").expect("a broken file");
    let failure = Postgres::start_alone(dir.options()).err().expect("a failure").to_string();
    assert!(failure.contains("start PostgreSQL") && failure.contains("syntax error"), "{failure}");

    let settings = vec![("no_such_setting".into(), "1".into())];
    let options = Options { rabbitmq_settings: settings, ..dir.options() };
    let failure = RabbitMq::start_alone(options).err().expect("a failure").to_string();
    assert!(failure.contains("start RabbitMQ") && failure.contains("no_such_setting"), "{failure}");
}

#[test]
fn a_directory_that_the_server_cannot_enter_is_linked_to_one_that_it_can() {
    let closed = Dir::new("closed");
    fs::create_dir_all(&closed.0).expect("a folder");
    fs::set_permissions(&closed.0, fs::Permissions::from_mode(0o700)).expect("a closed folder");
    let dir = Dir(closed.0.join("stack"));
    let (options, lines) = recorded(dir.options());
    let postgres = Postgres::start_alone(options).expect("a server");
    assert_eq!(query(&postgres, "SELECT 1"), "1");
    let linked: Option<PathBuf> = fs::read_link(dir.0.join("postgres")).ok();
    let told = lines.lock().expect("lines").iter().any(|line| line.contains("cannot enter"));
    assert_eq!(linked.is_some(), told, "a link is told of, and only needed when the server has another account");
    drop(postgres);
    erase(&dir.0).expect("an empty directory");
    assert!(linked.is_none_or(|target| !target.exists()), "the data behind the link is gone too");
    let left: Vec<_> = fs::read_dir(&dir.0).expect("the directory").map(|entry| entry.expect("an entry")).collect();
    assert!(left.iter().all(|entry| entry.file_name() == "lock"), "{left:?}");
}

#[test]
fn a_chosen_folder_of_programs_is_the_only_one() {
    let dir = Dir::new("chosen");
    let chosen = dir.0.join("bin");
    fs::create_dir_all(&chosen).expect("a folder");
    let options = || Options { postgres_bin: Some(chosen.clone()), ..dir.options() };
    let refused = Postgres::start_alone(options()).err().expect("a refusal");
    assert!(matches!(refused, Error::NoProgram { variable: "ROLLCALL_POSTGRES_BIN", .. }), "{refused}");

    let installed = Postgres::start_alone(Dir::new("installed").options()).expect("a server").bin_dir();
    for program in ["postgres", "initdb"] {
        let target = installed.as_ref().expect("installed programs").join(program);
        std::os::unix::fs::symlink(target, chosen.join(program)).expect("a link");
    }
    let postgres = Postgres::start_alone(options()).expect("a server");
    assert_eq!(postgres.bin_dir(), Some(chosen));
}

/// The clone may lie in the home of root, which no other account can enter.
#[test]
fn programs_behind_a_closed_folder_are_linked_or_refused() {
    let closed = Dir::new("closed programs");
    let chosen = closed.0.join("bin");
    fs::create_dir_all(&chosen).expect("a folder");
    fs::set_permissions(&closed.0, fs::Permissions::from_mode(0o700)).expect("a closed folder");
    let installed = Postgres::start_alone(Dir::new("open").options()).expect("a server").bin_dir().expect("programs");
    for program in ["postgres", "initdb"] {
        std::os::unix::fs::symlink(installed.join(program), chosen.join(program)).expect("a link");
    }
    let options = || Options { postgres_bin: Some(chosen.clone()), ..Options::new(closed.0.join("stack")) };
    drop(Postgres::start_alone(options()).expect("a server whose programs are linked"));

    // A file instead of a link: nothing leads around the folder.
    fs::remove_file(chosen.join("postgres")).expect("removed");
    fs::copy(installed.join("postgres"), chosen.join("postgres")).expect("a copy");
    let owner = fs::metadata(&closed.0).expect("the folder").uid();
    if owner == 0 {
        let refused = Postgres::start_alone(options()).err().expect("a refusal").to_string();
        assert!(refused.contains("cannot run") && refused.contains("ROLLCALL_POSTGRES_BIN"), "{refused}");
    }
}

#[test]
fn a_server_given_by_its_url_is_used_and_never_touched() {
    let dir = Dir::new("given");
    let url = "postgres://somebody@127.0.0.1:1/else";
    let options = Options { database_url: Some(url.into()), ..dir.without_rabbitmq() };
    let stack = Stack::start(options).expect("a stack");
    assert_eq!(stack.postgres.url(), url);
    assert!(matches!(stack.postgres.stop(StopMode::Fast), Err(Error::NotOurs { .. })));
    assert!(matches!(stack.rabbitmq.kill(), Err(Error::NotOurs { .. })));
}
