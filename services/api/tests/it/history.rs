//! What was done to a user: every command once, newest first, over several days, in both directions, also of a user that
//! is gone.

use rollcall_api::problem::ProblemKind::{InvalidRequest, UserNotFound};
use serde_json::Value;
use sqlx::PgConnection;
use time::{Duration, OffsetDateTime};
use uuid::{NoContext, Timestamp, Uuid};

use crate::lists::linked;
use crate::reads;
use crate::support::{App, Database};

fn id_at(time: OffsetDateTime) -> Uuid {
    let seconds = u64::try_from(time.unix_timestamp()).expect("after 1970");
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, time.nanosecond()))
}

struct Row<'a> {
    at: OffsetDateTime,
    kind: &'a str,
    status: &'a str,
    reason: Option<&'a str>,
    version: Option<i64>,
}

async fn insert(conn: &mut PgConnection, user_id: Uuid, row: Row<'_>) -> Uuid {
    sqlx::query("SELECT make_command_day($1)").bind(row.at.date()).execute(&mut *conn).await.expect("a table");
    let id = id_at(row.at);
    let inserted = sqlx::query(
        "INSERT INTO commands (id, user_id, type, principal, accepted_at, applied_at, status, reason, user_version)
         VALUES ($1, $2, $3, 'key:billing', $4, $4 + interval '1 second', $5, $6, $7)",
    )
    .bind(id)
    .bind(user_id)
    .bind(row.kind)
    .bind(row.at)
    .bind(row.status)
    .bind(row.reason)
    .bind(row.version)
    .execute(conn)
    .await;
    inserted.expect("a row");
    id
}

/// `count` commands of a user over as many days, the newest first, and as many of somebody else.
async fn over_days(conn: &mut PgConnection, user_id: Uuid, count: i64) -> Vec<Uuid> {
    let mut ids = Vec::new();
    // In the order of the effects.
    for day in (0..count).rev() {
        let at = OffsetDateTime::now_utc() - Duration::hours(24 * day);
        let row = |version| Row { at, kind: "users.update", status: "succeeded", reason: None, version };
        ids.push(insert(conn, user_id, row(Some(count - day))).await);
        insert(conn, Uuid::now_v7(), row(Some(1))).await;
    }
    ids.reverse();
    ids
}

/// Follows the relation to the end: the pages in the order in which they were seen.
async fn walk(app: &App, first: &str, relation: &str) -> (Vec<Vec<Uuid>>, String) {
    let (mut pages, mut path) = (Vec::new(), first.to_owned());
    loop {
        let answer = app.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let page = answer.json();
        let ids = page["items"].as_array().expect("items").iter().map(|entry| entry["id"].as_str().expect("an id"));
        pages.push(ids.map(|id| id.parse().expect("a UUID")).collect());
        match linked(&answer, relation) {
            Some(next) => path = next,
            None => return (pages, path),
        }
        assert!(pages.len() < 100, "{first} never ends");
    }
}

#[tokio::test]
async fn a_history_says_who_asked_for_what_when_and_how_it_ended() {
    let mut database = Database::create().await;
    let user_id = Uuid::now_v7();
    let now = OffsetDateTime::now_utc();
    let rows = [
        ("users.create", "succeeded", None, Some(1)),
        ("users.update", "rejected", Some("email-taken"), None),
        ("users.suspend", "parked", Some("22023"), None),
    ];
    for (n, (kind, status, reason, version)) in (0..).zip(rows) {
        let at = now + Duration::milliseconds(n);
        insert(&mut database.conn, user_id, Row { at, kind, status, reason, version }).await;
    }
    let app = App::over(database.url());
    let answer = app.get(&format!("/v1/users/{user_id}/history")).await;
    assert_eq!(answer.header("link"), None);
    insta::assert_json_snapshot!(answer.json(), { ".items[].id" => "[id]", ".items[].accepted_at" => "[time]", ".items[].applied_at" => "[time]" }, @r#"
    {
      "items": [
        {
          "accepted_at": "[time]",
          "applied_at": "[time]",
          "id": "[id]",
          "principal": "key:billing",
          "reason": "22023",
          "status": "parked",
          "type": "users.suspend"
        },
        {
          "accepted_at": "[time]",
          "applied_at": "[time]",
          "id": "[id]",
          "principal": "key:billing",
          "reason": "email-taken",
          "status": "rejected",
          "type": "users.update"
        },
        {
          "accepted_at": "[time]",
          "applied_at": "[time]",
          "id": "[id]",
          "principal": "key:billing",
          "status": "succeeded",
          "type": "users.create",
          "user_version": 1
        }
      ]
    }
    "#);
}

#[tokio::test]
async fn pages_of_a_history_lead_over_all_days_and_back() {
    let mut database = Database::create().await;
    let user_id = Uuid::now_v7();
    let ids = over_days(&mut database.conn, user_id, 7).await;
    let app = App::over(database.url());
    for limit in [1, 2, 3, 6, 7, 8] {
        let (pages, last) = walk(&app, &format!("/v1/users/{user_id}/history?limit={limit}"), "next").await;
        assert_eq!(pages.concat(), ids, "limit {limit}");
        assert_eq!(pages.len(), ids.len().div_ceil(limit), "limit {limit}");
        let (mut pages, _) = walk(&app, &last, "prev").await;
        pages.reverse();
        assert_eq!(pages.concat(), ids, "limit {limit}, backward");
    }
}

/// Two APIs whose clocks differ: the ids say another order than the versions.
#[tokio::test]
async fn a_history_follows_the_effects_and_not_the_clocks_of_the_apis() {
    let mut database = Database::create().await;
    let user_id = Uuid::now_v7();
    let now = OffsetDateTime::now_utc();
    let mut ids = Vec::new();
    for (version, ahead) in (1..).zip([0, 300, -300, 200, -90_000, 100]) {
        let at = now + Duration::milliseconds(ahead);
        let row = Row { at, kind: "users.update", status: "succeeded", reason: None, version: Some(version) };
        ids.insert(0, insert(&mut database.conn, user_id, row).await);
    }
    let app = App::over(database.url());
    for limit in [1, 2, 4, 6] {
        let (pages, last) = walk(&app, &format!("/v1/users/{user_id}/history?limit={limit}"), "next").await;
        assert_eq!(pages.concat(), ids, "limit {limit}");
        let (mut pages, _) = walk(&app, &last, "prev").await;
        pages.reverse();
        assert_eq!(pages.concat(), ids, "limit {limit}, backward");
    }
}

#[tokio::test]
async fn who_was_deleted_has_a_history_and_who_never_was_has_none() {
    let mut database = Database::create().await;
    let (deleted, unheard_of, kept) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    over_days(&mut database.conn, deleted, 1).await;
    // Its commands are older than outcomes are kept.
    reads::insert(&mut database.conn, kept, "ada@example.org", false).await;
    let app = App::over(database.url());
    let items = |answer: Value| answer["items"].as_array().map(Vec::len);
    assert_eq!(items(app.get(&format!("/v1/users/{deleted}/history")).await.json()), Some(1));
    assert_eq!(items(app.get(&format!("/v1/users/{kept}/history")).await.json()), Some(0));
    for id in [unheard_of, Uuid::nil(), Uuid::max()] {
        let path = format!("/v1/users/{id}/history");
        app.get(&path).await.assert_problem(UserNotFound, &[], &path);
    }
}

#[tokio::test]
async fn a_cursor_of_another_list_is_refused() {
    let mut database = Database::create().await;
    let (user_id, other) = (Uuid::now_v7(), Uuid::now_v7());
    over_days(&mut database.conn, user_id, 2).await;
    let app = App::over(database.url());
    let page = app.get(&format!("/v1/users/{user_id}/history?limit=1")).await.json();
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    for path in ["/v1/users".to_owned(), format!("/v1/users/{other}/history")] {
        let answer = app.get(&format!("{path}?cursor={cursor}")).await;
        answer.assert_problem(InvalidRequest, &["cursor"], &path);
    }
}

/// A history must not read the commands of everybody: on every day's table an index leads to the user's.
#[tokio::test]
async fn a_page_of_a_history_is_read_by_an_index_on_every_day() {
    let mut database = Database::create().await;
    let user_id = Uuid::now_v7();
    over_days(&mut database.conn, user_id, 5).await;
    let unindexed: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'commands'::regclass AND NOT EXISTS (
             SELECT FROM pg_index JOIN pg_inherits AS part ON part.inhrelid = pg_index.indexrelid
             WHERE part.inhparent = 'commands_user_id_position_idx'::regclass AND pg_index.indrelid = pg_inherits.inhrelid
                 AND pg_index.indisvalid)",
    )
    .fetch_one(&mut database.conn)
    .await
    .expect("a count");
    assert_eq!(unindexed, 0);
    sqlx::query("SET enable_seqscan = off").execute(&mut database.conn).await.expect("a setting");
    let plan: Vec<String> = sqlx::query_scalar(
        "EXPLAIN SELECT id FROM commands WHERE user_id = '01890a5d-ac96-774b-bcce-b302099a8057'
             AND position < 9223372036854775807 ORDER BY position DESC LIMIT 51",
    )
    .fetch_all(&mut database.conn)
    .await
    .expect("a plan");
    let plan = plan.join("\n");
    assert!(plan.contains("_user_id_position_idx"), "{plan}");
    // A merge has a sort key, too; a sort is a node of its own.
    assert!(!plan.contains("->  Sort") && !plan.contains("Seq Scan"), "each day gives its part in order: {plan}");
}
