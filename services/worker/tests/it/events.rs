//! What is recorded of a change, and what is not; and what is pruned.

use std::time::Duration;

use common::command::UserId;
use common::telemetry::TraceHeaders;
use rollcall_worker::commands::drop_days;
use rollcall_worker::dead_letters::replay;
use rollcall_worker::events::prune;
use rollcall_worker::users::Outcome;

use crate::support::{
    DRY_RUN, Fixture, GONE, MEND, RETENTION, TERMS, TRIGGER, create, delete, done, if_match, messages, poisoned,
    reactivate, suspend, update,
};

const ADA: &str = r#"{"name": "Ada", "email": "ada@example.org", "status": "active", "version": 1}"#;
const KING: &str = r#"{"name": "Ada King", "email": "ada@example.org", "status": "active", "version": 2}"#;

#[tokio::test]
async fn every_change_is_an_event_with_the_user_after_it_and_nothing_else_is() {
    let mut fixture = Fixture::start().await;
    let (ada, bob) = (UserId::mint(), UserId::mint());
    let batch = [
        create(ada, "ada@example.org", "Ada"),
        create(bob, "ADA@example.org", "Bob"),
        update(ada, None, Some("Ada King")),
        if_match(7, suspend(ada)),
        suspend(ada),
        suspend(bob),
        reactivate(ada),
        delete(ada),
        delete(ada),
    ];
    let outcomes = fixture.apply(&batch).await;
    assert_eq!(outcomes.iter().filter(|outcome| matches!(outcome, Some(Outcome::Succeeded(_)))).count(), 5);
    assert_eq!(outcomes[7], Some(GONE));
    fixture.apply(&batch).await;
    let expected = [
        format!("users.created v1 {ADA}"),
        format!("users.updated v2 {KING}"),
        r#"users.suspended v3 {"name": "Ada King", "email": "ada@example.org", "status": "suspended", "version": 3}"#
            .to_owned(),
        r#"users.reactivated v4 {"name": "Ada King", "email": "ada@example.org", "status": "active", "version": 4}"#
            .to_owned(),
        r#"users.deleted v5 {"version": 5}"#.to_owned(),
    ];
    assert_eq!(fixture.database.events(ada).await, expected);
    assert_eq!(fixture.database.count("events").await, 5, "no change, no event; no event twice");
    let ids = "events JOIN commands USING (id) WHERE status = 'succeeded'";
    assert_eq!(fixture.database.count(ids).await, 5);
    assert_eq!(fixture.database.count("events WHERE data::jsonb ? 'suspended_at'").await, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn a_parked_command_is_an_event_once_it_was_replayed() {
    let mut fixture = Fixture::start().await;
    fixture.database.execute(TRIGGER).await;
    let ada = UserId::mint();
    let guilty = update(ada, None, Some("Poison"));
    let trace = TraceHeaders { traceparent: Some("00-a-b-01".to_owned()), tracestate: None };
    let batch = [create(ada, "ada@example.org", "Ada"), guilty.clone(), update(ada, None, Some("Ada King"))];
    let mut traced = messages(&batch);
    traced[1].trace = trace;
    let mut outcomes = fixture.applier().apply(&traced).await.expect("outcomes").outcomes;
    assert_eq!(outcomes.remove(&guilty.id), Some(poisoned()));
    assert_eq!(fixture.database.events(ada).await, [format!("users.created v1 {ADA}")]);
    fixture.database.execute(MEND).await;
    replay(&mut fixture.database.conn, ada, DRY_RUN).await.expect("a dry run");
    assert_eq!(fixture.database.count("events").await, 1);
    replay(&mut fixture.database.conn, ada, TERMS).await.expect("a replay");
    let expected = [
        format!("users.created v1 {ADA}"),
        r#"users.updated v2 {"name": "Poison", "email": "ada@example.org", "status": "active", "version": 2}"#
            .to_owned(),
        r#"users.updated v3 {"name": "Ada King", "email": "ada@example.org", "status": "active", "version": 3}"#
            .to_owned(),
    ];
    assert_eq!(fixture.database.events(ada).await, expected);
    let traced = "events WHERE traceparent = '00-a-b-01' AND user_version = 2";
    assert_eq!(fixture.database.count(traced).await, 1);
    fixture.stop().await;
}

#[tokio::test]
async fn published_events_are_pruned_when_they_are_old_and_others_never() {
    let mut fixture = Fixture::start().await;
    let users: Vec<UserId> = (0..5).map(|_| UserId::mint()).collect();
    let creates: Vec<_> = users.iter().map(|user| create(*user, &format!("{user}@example.org"), "User")).collect();
    assert!(fixture.apply(&creates).await.iter().all(|outcome| *outcome == Some(done(1))));
    // One that nobody could publish is the oldest.
    let published = "
        UPDATE events
        SET published_at = now() - CASE WHEN position <= (SELECT min(position) + 2 FROM events) THEN interval '2 hours' ELSE interval '30 minutes' END
        WHERE position > (SELECT min(position) FROM events)
    ";
    fixture.database.execute(published).await;
    let hour = Duration::from_hours(1);
    assert_eq!(prune(&mut fixture.database.conn, hour).await.expect("a deletion"), 2);
    assert_eq!(prune(&mut fixture.database.conn, hour).await.expect("a deletion"), 0);
    assert_eq!(fixture.database.count("events").await, 3);
    fixture.stop().await;
}

#[tokio::test]
async fn the_commands_of_days_that_are_no_longer_kept_are_dropped() {
    let mut fixture = Fixture::start().await;
    fixture.apply(&[create(UserId::mint(), "ada@example.org", "Ada")]).await;
    for age in [29, 30, 31, 32, 40] {
        fixture.database.execute(&format!("SELECT ensure_command_day((now() AT TIME ZONE 'UTC')::date - {age})")).await;
    }
    fixture
        .database
        .execute("UPDATE command_days SET used_at = day + interval '1 day' WHERE day < current_date - 1")
        .await;
    let tables = "pg_inherits WHERE inhparent = 'commands'::regclass";
    let before = fixture.database.count(tables).await;
    assert_eq!(drop_days(&mut fixture.database.conn, RETENTION).await.expect("a drop"), 2);
    assert_eq!(drop_days(&mut fixture.database.conn, RETENTION).await.expect("a drop"), 0);
    assert_eq!(fixture.database.count(tables).await, before - 2);
    assert_eq!(fixture.database.count("command_days WHERE dropped_at IS NOT NULL").await, 2);
    assert_eq!(fixture.database.count("commands").await, 1);
    fixture.stop().await;
}
