//! How a process ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall_common::db::DbError;
use rollcall_common::shutdown::{Graces, Phase, Shutdown, StopError, Tier, chain};
use tokio::sync::oneshot;

use crate::support::{GRACES, connect, database, soon};

/// What happened, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<&'static str>>>);

impl Diary {
    fn note(&self, line: &'static str) {
        self.0.lock().expect("the diary").push(line);
    }

    fn lines(&self) -> Vec<&'static str> {
        self.0.lock().expect("the diary").clone()
    }
}

#[tokio::test]
async fn the_phases_come_in_order_and_the_front_ends_before_the_back() {
    let (shutdown, diary) = (Shutdown::default(), Diary::default());
    for (name, tier, phase) in [
        ("links", Tier::Links, Phase::Disconnecting),
        ("back", Tier::Back, Phase::Closing),
        ("front", Tier::Front, Phase::Stopping),
    ] {
        let (waiting, diary) = (shutdown.clone(), diary.clone());
        shutdown.supervise(name, tier, async move {
            waiting.reached(phase).await;
            if tier == Tier::Front {
                // Work in flight: the back must still be there when it ends.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(waiting.phase(), Phase::Stopping);
            }
            diary.note(name);
            Ok(())
        });
    }
    let (waiting, noting) = (shutdown.clone(), diary.clone());
    shutdown.track("work", Tier::Front, async move {
        waiting.reached(Phase::Draining).await;
        assert_eq!(waiting.phase(), Phase::Draining);
        noting.note("draining");
    });
    assert_eq!(shutdown.phase(), Phase::Running);
    let graces = Graces { drain: Duration::from_millis(50), ..GRACES };
    shutdown.stop(graces).await.expect("a good end");
    assert_eq!(shutdown.phase(), Phase::Disconnecting);
    assert_eq!(diary.lines(), ["draining", "front", "back", "links"]);
}

#[tokio::test]
async fn the_drain_delay_is_kept() {
    let shutdown = Shutdown::default();
    let began = std::time::Instant::now();
    let graces = Graces { drain: Duration::from_millis(100), ..GRACES };
    shutdown.stop(graces).await.expect("a good end");
    assert!(began.elapsed() >= graces.drain);
}

#[tokio::test]
async fn a_stop_waits_for_tracked_work() {
    let (shutdown, diary) = (Shutdown::default(), Diary::default());
    let (finish, finished) = oneshot::channel::<()>();
    let noting = diary.clone();
    shutdown.track("work", Tier::Front, async move {
        finished.await.expect("a word");
        noting.note("request");
    });
    let stopping = async {
        shutdown.stop(GRACES).await.expect("a good end");
        diary.note("stopped");
    };
    let releasing = async {
        shutdown.reached(Phase::Stopping).await;
        finish.send(()).expect("a listener");
    };
    tokio::join!(stopping, releasing);
    assert_eq!(diary.lines(), ["request", "stopped"]);
}

#[tokio::test]
async fn a_task_that_ends_before_its_phase_takes_the_process_down() {
    let tiers = [(Tier::Front, Phase::Stopping), (Tier::Back, Phase::Closing), (Tier::Links, Phase::Disconnecting)];
    for (tier, may_end) in tiers {
        let shutdown = Shutdown::default();
        shutdown.supervise("clock", tier, async { Ok(()) });
        let end = soon("an end by itself", shutdown.run(GRACES)).await.expect_err("a failure");
        assert_eq!(end.to_string(), r#"the task "clock" ended while it was needed"#, "{may_end:?}");
        assert!(matches!(end, StopError::TaskFailed(_)));
    }
}

#[tokio::test]
async fn a_back_task_that_ends_with_the_front_ended_too_early() {
    let shutdown = Shutdown::default();
    let waiting = shutdown.clone();
    shutdown.supervise("pool", Tier::Back, async move {
        waiting.reached(Phase::Draining).await;
        Ok(())
    });
    let graces = Graces { drain: Duration::from_millis(50), ..GRACES };
    let end = shutdown.stop(graces).await.expect_err("a failure");
    assert!(matches!(end, StopError::TaskFailed(_)), "{end}");
}

#[tokio::test]
async fn a_task_that_panics_takes_the_process_down() {
    let shutdown = Shutdown::default();
    shutdown.supervise("clock", Tier::Back, async { panic!("out of springs") });
    let end = soon("an end by itself", shutdown.run(GRACES)).await.expect_err("a failure");
    assert_eq!(end.to_string(), r#"the task "clock" panicked"#);
}

#[tokio::test]
async fn a_task_that_fails_takes_the_process_down_with_the_whole_chain_of_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("failed to wind up")]
    struct Outer(#[source] std::io::Error);
    let shutdown = Shutdown::default();
    shutdown.supervise("clock", Tier::Front, async { Err(Outer(std::io::Error::other("no key")).into()) });
    let end = soon("an end by itself", shutdown.run(GRACES)).await.expect_err("a failure");
    assert_eq!(end.to_string(), r#"the task "clock" failed: failed to wind up: no key"#);
}

#[tokio::test]
async fn a_task_that_fails_while_it_stops_is_reported_too() {
    let shutdown = Shutdown::default();
    let waiting = shutdown.clone();
    shutdown.supervise("clock", Tier::Front, async move {
        waiting.reached(Phase::Stopping).await;
        Err("lost the last second".into())
    });
    let end = shutdown.stop(GRACES).await.expect_err("a failure");
    assert_eq!(end.to_string(), r#"the task "clock" failed: lost the last second"#);
}

#[tokio::test]
async fn the_first_failure_is_the_reason() {
    let shutdown = Shutdown::default();
    shutdown.fail("first".to_owned());
    shutdown.fail("second".to_owned());
    let end = soon("an end by itself", shutdown.run(GRACES)).await.expect_err("a failure");
    assert_eq!(end.to_string(), "first");
}

#[tokio::test]
async fn a_failure_does_not_wait_for_the_drain_delay() {
    let shutdown = Shutdown::default();
    shutdown.fail("broken".to_owned());
    let graces = Graces { drain: Duration::from_hours(1), ..GRACES };
    soon("an end without a delay", shutdown.stop(graces)).await.expect_err("a failure");
}

#[tokio::test]
async fn a_task_that_hangs_is_given_up_after_its_grace() {
    for tier in [Tier::Front, Tier::Back, Tier::Links] {
        let shutdown = Shutdown::default();
        shutdown.supervise("stuck", tier, std::future::pending());
        shutdown.track("work", tier, std::future::pending());
        let graces = Graces { finish: Duration::from_millis(50), ..GRACES };
        let end = soon("an end", shutdown.stop(graces)).await.expect_err("unfinished work");
        assert!(end.to_string().ends_with(": stuck, work"), "{tier:?}: {end}");
        assert_eq!(shutdown.phase(), Phase::Disconnecting, "{tier:?}: the others were told to close all the same");
    }
}

/// Quotes its cause, as several libraries do.
#[derive(Debug, thiserror::Error)]
#[error("the outer fault: {0}")]
struct Quoting(#[source] std::io::Error);

#[tokio::test]
async fn an_error_and_its_causes_are_each_written_once() {
    let quoting = Quoting(std::io::Error::other("the inner fault"));
    assert_eq!(chain(&quoting), "the outer fault: the inner fault");

    let database = database().await;
    let mut connection = connect(database.url()).await;
    let error = sqlx::query("SELECT missing FROM users").execute(&mut connection).await.expect_err("a fault");
    let text = chain(&DbError::from(error));
    assert_eq!(text, "a statement failed: column \"missing\" does not exist (SQLSTATE 42703)");
}
