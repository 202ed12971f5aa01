//! A synchronous standby: commits wait for it, and once promoted it has every one of them.

use std::thread;

use rollcall_local_stack::{Options, Postgres, Standby, StopMode};

use crate::support::{Dir, eventually, query};

#[test]
fn a_promoted_standby_has_what_was_committed() {
    let dir = Dir::new("standby");
    let synchronous = vec![("synchronous_standby_names".to_owned(), "*".to_owned())];
    let options = Options { postgres_settings: synchronous, ..dir.without_rabbitmq() };
    let postgres = Postgres::start_alone(options).expect("a primary");
    let standby = Standby::start(&postgres).expect("a standby");
    query(&postgres, "CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)");

    standby.stop(StopMode::Immediate);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| query(&postgres, "INSERT INTO kept VALUES (2)"));
        eventually("the commit waits", || {
            query(&postgres, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
        });
        query(&postgres, "SET synchronous_commit = local; INSERT INTO kept VALUES (3)");
        assert_eq!(query(&postgres, "SELECT array_agg(id) FROM kept"), "{1,3}", "nobody sees what is not replicated");
        standby.resume(&postgres).expect("resumed");
        waiting.join().expect("the commit went through");
    });

    standby.stop(StopMode::Immediate);
    query(&postgres, "SET synchronous_commit = local; INSERT INTO kept VALUES (4)");
    let (url, pid) = (postgres.url().to_owned(), postgres.pid().expect("a pid"));
    standby.promote(&postgres).expect("promoted");
    assert!(postgres.pid().expect("a pid") != pid && postgres.url() == url);
    assert_eq!(query(&postgres, "SELECT pg_is_in_recovery()"), "f");
    assert_eq!(query(&postgres, "SELECT array_agg(id ORDER BY id) FROM kept"), "{1,2,3}", "4 never left the primary");

    let standby = Standby::start(&postgres).expect("a standby of the new primary");
    query(&postgres, "INSERT INTO kept VALUES (5)");
    standby.stop(StopMode::Fast);
    postgres.stop(StopMode::Immediate).expect("stopped");
    postgres.start().expect("started");
    assert_eq!(query(&postgres, "SELECT count(*), pg_is_in_recovery() FROM kept"), "4|f");
}
