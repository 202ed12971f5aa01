//! Deployment row: written by the first join, compared at every join, and not changed by a process that is refused.

use local_stack::testing::TestDatabase;
use rollcall_common::db;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::budget::{instance_of, shared_settings};
use crate::support::{connect, database, settings, stack};

const JOIN: &str = "SELECT joined, reason FROM join_membership($1, $2, 'test', $3, $4, 1, 1, 50, $5, true)";

/// One process.
struct Process {
    secret: [u8; 32],
    service: &'static str,
    settings: Value,
    joined_before: Option<Uuid>,
    role: Option<String>,
    control: PgConnection,
}

impl Process {
    async fn new(database: &TestDatabase, service: &'static str, shared: Value) -> Self {
        let secret: [u8; 32] = rand::random();
        let name = format!("rollcall-control/{}", instance_of(&secret));
        let control = db::connect(&settings(database.url(), 1), &name).await;
        Self {
            secret,
            service,
            settings: shared,
            joined_before: None,
            role: None,
            control: control.expect("a control connection"),
        }
    }

    /// The epoch, or why there is none; an error is a difference.
    async fn join(&mut self) -> Result<(Option<i64>, Option<String>), String> {
        let joining = sqlx::query_as(JOIN)
            .bind(self.secret)
            .bind(self.service)
            .bind(&self.settings)
            .bind(self.joined_before)
            .bind(&self.role);
        joining.fetch_one(&mut self.control).await.map_err(|error| {
            let error = error.into_database_error().expect("a refusal");
            assert_eq!(error.code().as_deref(), Some("RC001"), "{error}");
            error.message().to_owned()
        })
    }

    async fn joins(&mut self) {
        let joined = self.join().await.expect("settings that fit");
        assert!(joined.0.is_some(), "{joined:?}");
    }
}

async fn number(conn: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(conn).await.expect("a number")
}

/// Everything that a join can change, but for when others may ask again.
async fn state(conn: &mut PgConnection) -> String {
    let state = "SELECT concat_ws(' ', (SELECT to_jsonb(deployment) FROM deployment), budget, arithmetic,
            (SELECT count(*) FROM partitions), (SELECT jsonb_agg(to_jsonb(members) ORDER BY epoch) FROM members))
        FROM membership";
    sqlx::query_scalar(state).fetch_one(conn).await.expect("the state")
}

#[tokio::test]
async fn a_process_that_differs_is_refused_with_both_values() {
    let database = database().await;
    let mut shared = shared_settings(16, 30);
    shared["event_source"] = json!("/rollcall");
    Process::new(&database, "worker", shared.clone()).await.joins().await;
    let mut witness = connect(database.url()).await;
    let before = state(&mut witness).await;
    for (name, value, reason) in [
        ("partitions", json!(32), "PARTITIONS is 32 here, but this deployment has 16; set PARTITIONS=16"),
        ("broker_prefix", json!(""), "BROKER_PREFIX is not set here, but this deployment has t.; set BROKER_PREFIX=t."),
        (
            "command_retention_days",
            json!(31),
            "COMMAND_RETENTION_DAYS is 31 here, but this deployment has 30; set COMMAND_RETENTION_DAYS=30, or change the \
             deployment with `rollcall deployment set retention=31`",
        ),
        (
            "idempotency_window_hours",
            json!(1),
            "IDEMPOTENCY_WINDOW_HOURS is 1 here, but this deployment has 24; set IDEMPOTENCY_WINDOW_HOURS=24, or change the \
             deployment with `rollcall deployment set window=1`",
        ),
        (
            "database_connection_budget",
            json!(6),
            "DATABASE_CONNECTION_BUDGET is 6 here, but this deployment has 30; set DATABASE_CONNECTION_BUDGET=30, or change the \
             deployment with `rollcall deployment set budget=6`",
        ),
        (
            "database_connection_budget",
            Value::Null,
            "DATABASE_CONNECTION_BUDGET is not set here, but this deployment has 30; set DATABASE_CONNECTION_BUDGET=30, or change \
             the deployment with `rollcall deployment set budget=computed`",
        ),
        (
            "event_source",
            json!("/other"),
            "EVENT_SOURCE is /other here, but this deployment has /rollcall; set EVENT_SOURCE=/rollcall, or change the deployment \
             with `rollcall deployment set event-source=/other`",
        ),
    ] {
        let mut other = shared.clone();
        other[name] = value;
        let mut process = Process::new(&database, "worker", other).await;
        assert_eq!(process.join().await, Err(reason.to_owned()));
        assert_eq!(state(&mut witness).await, before, "{name}");
    }
    let mut both = shared.clone();
    (both["partitions"], both["broker_prefix"]) = (json!(8), json!("x."));
    let refused = Process::new(&database, "api", both).await.join().await.expect_err("two differences");
    assert!(refused.contains("PARTITIONS") && refused.contains("BROKER_PREFIX"), "{refused}");
    // An API has no source of events.
    Process::new(&database, "api", shared_settings(16, 30)).await.joins().await;
}

#[tokio::test]
async fn a_process_without_room_writes_nothing_down() {
    let database = database().await;
    let mut witness = connect(database.url()).await;
    // What a pool of somebody who is gone still holds.
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(db::connect(&settings(database.url(), 1), "rollcall/gone").await.expect("a session"));
    }
    let before = state(&mut witness).await;
    let (joined, reason) =
        Process::new(&database, "api", shared_settings(16, 6)).await.join().await.expect("an answer");
    assert!(joined.is_none() && reason.is_some());
    assert_eq!(state(&mut witness).await, before);
}

#[tokio::test]
async fn a_running_process_keeps_what_an_operator_changed() {
    let database = database().await;
    let mut process = Process::new(&database, "worker", shared_settings(16, 30)).await;
    process.joins().await;
    let mut witness = connect(database.url()).await;
    let id: Uuid = sqlx::query_scalar("SELECT id FROM deployment").fetch_one(&mut witness).await.expect("an id");
    process.joined_before = Some(id);
    witness
        .execute("UPDATE deployment SET command_retention_days = 60, database_connection_budget = 40")
        .await
        .expect("what an operator changed");
    process.joins().await;
    assert_eq!(number(&mut witness, "SELECT budget::bigint FROM membership").await, 40, "not what it was started with");
    witness.execute("UPDATE deployment SET partitions = 8").await.expect("another number");
    assert!(process.join().await.is_err());
    witness.execute("UPDATE deployment SET partitions = 16, id = gen_random_uuid()").await.expect("another deployment");
    let refused = process.join().await.expect_err("another deployment");
    assert!(refused.contains("belongs to the deployment"), "{refused}");
}

#[tokio::test]
async fn a_computed_budget_leaves_others_what_they_hold() {
    let database = database().await;
    let mut witness = connect(database.url()).await;
    limit(&mut witness, 40).await;
    // Beside the witness.
    let _other = connect(database.url()).await;
    let mut first = Process::new(&database, "api", shared_settings(16, None)).await;
    first.joins().await;
    let (budget, arithmetic): (i32, String) =
        sqlx::query_as("SELECT budget, arithmetic FROM membership").fetch_one(&mut witness).await.expect("a budget");
    assert_eq!(budget, 40 - 4 - 2, "{arithmetic}");
    let said = "database limit 40: 40 usable - 4 for migrations, backups and people - 2 that others held at the start";
    assert!(arithmetic.ends_with(said), "{arithmetic}");
    // What changes later changes nothing under members.
    let _more = [connect(database.url()).await, connect(database.url()).await];
    Process::new(&database, "worker", shared_settings(16, None)).await.joins().await;
    assert_eq!(number(&mut witness, "SELECT budget::bigint FROM membership").await, 34);
}

#[tokio::test]
async fn a_budget_does_not_depend_on_the_role_that_joins_last() {
    let database = database().await;
    let mut witness = connect(database.url()).await;
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut witness).await.expect("a name");
    let role = format!("small_{name}");
    let create = format!("CREATE ROLE {role} CONNECTION LIMIT 12");
    witness.execute(AssertSqlSafe(create)).await.expect("a role");
    let mut small = Process::new(&database, "api", shared_settings(16, None)).await;
    small.role = Some(role.clone());
    small.joins().await;
    let mut free = Process::new(&database, "worker", shared_settings(16, None)).await;
    free.joins().await;
    assert_eq!(number(&mut witness, "SELECT budget::bigint FROM membership").await, 9, "12 less 3");

    // The other way round the small one would be promised what its role cannot open.
    witness.execute("DELETE FROM members").await.expect("nobody is left");
    limit(&mut witness, 60).await;
    free.joins().await;
    let before = state(&mut witness).await;
    let mut late = Process::new(&database, "api", shared_settings(16, None)).await;
    late.role = Some(role.clone());
    let refused = late.join().await.expect_err("too small a role");
    assert!(refused.contains("role limit 12") && refused.contains("set DATABASE_CONNECTION_BUDGET"), "{refused}");
    assert_eq!(state(&mut witness).await, before);
    witness.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await.expect("no role");
}

#[tokio::test]
async fn a_server_that_gives_less_ends_no_running_process() {
    let database = database().await;
    let mut process = Process::new(&database, "worker", shared_settings(16, 30)).await;
    process.joins().await;
    let mut witness = connect(database.url()).await;
    process.joined_before =
        Some(sqlx::query_scalar("SELECT id FROM deployment").fetch_one(&mut witness).await.expect("an id"));
    for (connections, budget) in [(20, 20), (50, 30)] {
        limit(&mut witness, connections).await;
        process.joins().await;
        assert_eq!(number(&mut witness, "SELECT budget::bigint FROM membership").await, budget);
    }
    limit(&mut witness, 5).await;
    let (joined, reason) = process.join().await.expect("no refusal");
    assert!(joined.is_none() && reason.as_deref().is_some_and(|reason| reason.contains("5 usable")), "{reason:?}");
    // A process that starts is refused at once.
    limit(&mut witness, 20).await;
    let refused = Process::new(&database, "api", shared_settings(16, 30)).await.join().await.expect_err("a refusal");
    assert!(refused.contains("DATABASE_CONNECTION_BUDGET is 30, but the server gives less"), "{refused}");
}

#[tokio::test]
async fn an_operator_cannot_starve_the_members() {
    let database = database().await;
    // Held: one whose control session ends is a member no longer.
    let mut processes = Vec::new();
    for service in ["api", "api", "worker"] {
        let mut process = Process::new(&database, service, shared_settings(16, 30)).await;
        process.joins().await;
        processes.push(process);
    }
    let mut witness = connect(database.url()).await;
    let set = "SELECT budget FROM set_connection_budget($1)";
    for wished in [7, 5000] {
        let refused = sqlx::query(set).bind(wished).execute(&mut witness).await.expect_err("a refusal");
        assert_eq!(
            refused.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref(),
            Some("RC001"),
            "{refused}"
        );
    }
    assert_eq!(number(&mut witness, "SELECT budget::bigint FROM membership").await, 30);
    // Three control connections, three floors, two places for arrivals.
    sqlx::query(set).bind(8).execute(&mut witness).await.expect("enough");
    assert_eq!(number(&mut witness, "SELECT sum(target)::bigint FROM members").await, 3);
    assert_eq!(number(&mut witness, "SELECT database_connection_budget::bigint FROM deployment").await, 8);
}

#[tokio::test]
async fn one_of_several_candidates_becomes_the_mark_of_the_broker() {
    let database = database().await;
    let mut process = Process::new(&database, "worker", shared_settings(16, 30)).await;
    process.joins().await;
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    for candidate in [one, two] {
        let mark = sqlx::query_scalar("SELECT mark_broker($1)").bind(candidate);
        let mark: Uuid = mark.fetch_one(&mut process.control).await.expect("a mark");
        assert_eq!(mark, one);
    }
}

#[tokio::test]
async fn a_database_in_latin1_is_neither_migrated_nor_joined() {
    let mut admin = connect(stack().postgres.url()).await;
    let name = format!("latin_{}", Uuid::now_v7().simple());
    let create = format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    admin.execute(AssertSqlSafe(create)).await.expect("a database");
    let mut url = url::Url::parse(stack().postgres.url()).expect("a URL");
    url.set_path(&name);
    let mut conn = connect(url.as_str()).await;
    let refused = db::migrate(&mut conn, std::time::Duration::ZERO).await.expect_err("a refusal");
    assert!(matches!(&refused, db::MigrateError::Encoding(encoding) if encoding == "LATIN1"), "{refused}");
    assert!(refused.to_string().contains("ENCODING 'UTF8'"), "{refused}");
    // As one that was migrated before anybody looked.
    sqlx::migrate!("../../migrations").run(&mut conn).await.expect("a schema");
    let joining = sqlx::query(JOIN)
        .bind(b"a secret".as_slice())
        .bind("api")
        .bind(shared_settings(16, 30))
        .bind(None::<Uuid>)
        .bind(None::<String>);
    let refused = joining.execute(&mut conn).await.expect_err("a refusal");
    assert!(refused.to_string().contains("the database is encoded in LATIN1"), "{refused}");
    conn.close().await.expect("closed");
    admin.execute(AssertSqlSafe(format!("DROP DATABASE {name}"))).await.expect("dropped");
}

/// Limits the connections of the test's database.
async fn limit(conn: &mut PgConnection, connections: i32) {
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut *conn).await.expect("a name");
    let limit = format!("ALTER DATABASE {name} CONNECTION LIMIT {connections}");
    conn.execute(AssertSqlSafe(limit)).await.expect("a limit");
}
