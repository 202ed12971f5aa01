//! What `/readyz` and the log say.

use std::io::Write;
use std::sync::{Arc, Mutex};

use rollcall_common::health::{Ability, CheckFailure, Health, ReadyWhen, START_ALLOWANCE};
use rollcall_common::shutdown::Shutdown;

use crate::support::GRACES;

fn health(ready_when: ReadyWhen) -> Health {
    let health = Health::new(ready_when, Shutdown::default());
    health.register("reads", Ability::Read);
    health.register("writes", Ability::Write);
    health
}

#[test]
fn a_check_fails_until_it_was_looked_at() {
    let health = health(ReadyWhen::All);
    let report = health.report();
    assert!(!report.ready);
    assert_eq!(report.checks["reads"], "failed: not checked yet");
    assert_eq!(report.checks["instance"], "ok: running");
}

#[test]
fn readiness_follows_the_checks_as_it_was_told_to() {
    let (well, ill) = (|| Ok("fine".to_owned()), || Err("gone".into()));
    let table = [
        (ReadyWhen::All, well(), well(), true),
        (ReadyWhen::All, ill(), well(), false),
        (ReadyWhen::All, well(), ill(), false),
        (ReadyWhen::All, ill(), ill(), false),
        (ReadyWhen::Any, well(), well(), true),
        (ReadyWhen::Any, ill(), well(), true),
        (ReadyWhen::Any, well(), ill(), true),
        (ReadyWhen::Any, ill(), ill(), false),
    ];
    for (ready_when, reads, writes, ready) in table {
        let health = health(ready_when);
        health.set("reads", reads.clone());
        health.set("writes", writes.clone());
        assert_eq!(health.report().ready, ready, "{ready_when:?} {reads:?} {writes:?}");
    }
}

#[test]
fn one_failing_check_takes_away_its_whole_ability() {
    let health = health(ReadyWhen::Any);
    health.register("schema", Ability::Read);
    health.set("reads", Ok("fine".to_owned()));
    assert!(!health.report().ready, "reads need both their checks");
    health.set("schema", Ok("new enough".to_owned()));
    assert!(health.report().ready);
}

#[test]
fn a_check_that_recovers_makes_the_instance_ready_again() {
    let health = health(ReadyWhen::All);
    for state in [Ok("fine".to_owned()), Err("gone".into()), Ok("fine again".to_owned())] {
        health.set("reads", state.clone());
        health.set("writes", Ok("fine".to_owned()));
        assert_eq!(health.report().ready, state.is_ok());
    }
    assert_eq!(health.report().checks["reads"], "ok: fine again");
}

#[derive(Debug, thiserror::Error)]
#[error("the database is away")]
struct Away(#[source] std::io::Error);

#[test]
fn callers_read_words_of_ours_and_the_log_has_the_rest() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let health = health(ReadyWhen::All);
    let error = Away(std::io::Error::other("10.0.0.7 refused user hunter2"));
    let failure = CheckFailure::of(&error).within("2 partitions");
    tracing::subscriber::with_default(subscriber, || health.set("reads", Err(failure)));
    assert_eq!(health.report().checks["reads"], "failed: 2 partitions: the database is away");
    let log = log.take();
    assert!(log.contains("2 partitions: the database is away: 10.0.0.7 refused user hunter2"), "{log}");
}

#[test]
fn a_report_for_an_unknown_check_is_ignored() {
    let health = health(ReadyWhen::All);
    health.set("nobody", Ok("fine".to_owned()));
    assert!(!health.report().checks.contains_key("nobody"));
}

#[tokio::test]
async fn an_instance_that_stops_is_not_ready() {
    let shutdown = Shutdown::default();
    let health = Health::new(ReadyWhen::All, shutdown.clone());
    assert!(health.report().ready);
    shutdown.stop(GRACES).await.expect("a good end");
    let report = health.report();
    assert!(!report.ready);
    assert_eq!(report.checks["instance"], "failed: stopping");
}

/// The log of one test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What was written since the last look.
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().expect("the log"))).expect("text")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_fails_while_the_process_starts_is_no_warning_yet() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let health = health(ReadyWhen::All);
    let (well, ill) = (|| Ok("fine".to_owned()), || Err("gone".into()));
    health.set("reads", ill());
    health.set("reads", well());
    health.set("reads", ill());
    let start = log.take();
    assert_eq!((start.matches("INFO").count(), start.matches("WARN").count()), (3, 0), "{start}");

    tokio::time::advance(START_ALLOWANCE).await;
    health.set("reads", ill());
    health.set("reads", ill());
    let late = log.take();
    assert_eq!(late.matches("WARN").count(), 2, "each check that still fails, once: {late}");
    assert!(late.contains("gone") && late.contains("not checked yet"), "{late}");

    health.set("reads", well());
    health.set("writes", well());
    assert!(!log.take().contains("WARN"));
    health.set("reads", ill());
    health.set("reads", ill());
    assert_eq!(log.take().matches("WARN").count(), 1);
}
