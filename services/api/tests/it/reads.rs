//! Point reads of users, against a real database and against none.

use std::time::{Duration, Instant};

use common::command::CommandId;
use futures_util::future::join_all;
use rollcall_api::problem::ProblemKind::{DatabaseUnavailable, UserNotFound};
use sqlx::PgConnection;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::support::{App, Database};

pub(crate) async fn insert(conn: &mut PgConnection, id: Uuid, email: &str, suspended: bool) {
    let inserted = sqlx::query(
        "INSERT INTO users (id, email, name, status, version, suspended_at)
         VALUES ($1, $2, 'Ada', CASE WHEN $3 THEN 'suspended' ELSE 'active' END, 3, CASE WHEN $3 THEN now() END)",
    )
    .bind(id)
    .bind(email)
    .bind(suspended)
    .execute(conn)
    .await;
    inserted.expect("a row");
}

#[tokio::test]
async fn a_user_is_read_with_the_tag_of_its_version() {
    let mut database = Database::create().await;
    let (active, suspended) = (Uuid::now_v7(), Uuid::now_v7());
    insert(&mut database.conn, active, "Ada@Example.org", false).await;
    insert(&mut database.conn, suspended, "bob@example.org", true).await;
    let app = App::over(database.url());

    let answer = app.get(&format!("/v1/users/{active}")).await;
    assert_eq!((answer.status.as_u16(), answer.header("etag")), (200, Some("\"3\"")));
    insta::assert_json_snapshot!(answer.json(), { ".id" => "[id]", ".created_at" => "[time]", ".updated_at" => "[time]" }, @r#"
    {
      "created_at": "[time]",
      "email": "Ada@Example.org",
      "id": "[id]",
      "name": "Ada",
      "status": "active",
      "updated_at": "[time]",
      "version": 3
    }
    "#);
    let answer = app.get(&format!("/v1/users/{suspended}")).await.json();
    assert_eq!(
        (answer["id"].as_str(), answer["status"].as_str()),
        (Some(suspended.to_string().as_str()), Some("suspended"))
    );
    assert!(answer["suspended_at"].is_string());
}

#[tokio::test]
async fn a_user_that_the_client_has_already_is_not_sent_again() {
    let mut database = Database::create().await;
    let id = Uuid::now_v7();
    insert(&mut database.conn, id, "ada@example.org", false).await;
    let app = App::over(database.url());
    let path = format!("/v1/users/{id}");
    let rows: &[(&str, &[&str], u16)] = &[
        ("its tag", &["\"3\""], 304),
        ("weak comparison", &["W/\"3\""], 304),
        ("any", &["*"], 304),
        ("in a list", &["\"1\", W/\"3\" ,\"4\""], 304),
        ("in a second line", &["\"1\"", "\"3\""], 304),
        ("an older one", &["\"2\""], 200),
        ("no tag", &["3"], 200),
        ("part of a tag", &["\"33\""], 200),
        ("nothing", &[""], 200),
        ("none", &[], 200),
    ];
    for (reason, tags, status) in rows {
        let headers: Vec<_> = tags.iter().map(|tag| ("if-none-match", *tag)).collect();
        let answer = app.get_with(&path, &headers).await;
        assert_eq!(answer.status.as_u16(), *status, "{reason}");
        assert_eq!(answer.header("etag"), Some("\"3\""), "{reason}");
        assert_eq!(answer.body.is_empty(), *status == 304, "{reason}");
    }
}

#[tokio::test]
async fn a_user_that_is_not_there_is_not_found() {
    let database = Database::create().await;
    let app = App::over(database.url());
    for id in [Uuid::now_v7(), Uuid::nil(), Uuid::max(), Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"x")] {
        app.get(&format!("/v1/users/{id}")).await.assert_problem(UserNotFound, &[], &id.to_string());
    }
}

#[tokio::test]
async fn two_hundred_reads_at_once_each_get_their_own_answer() {
    let mut database = Database::create().await;
    let ids: Vec<_> = (0..200).map(|_| Uuid::now_v7()).collect();
    // One of them is missing, and one is asked for many times.
    for (n, id) in ids.iter().enumerate().filter(|(n, _)| *n != 77) {
        insert(&mut database.conn, *id, &format!("user{n}@example.org"), false).await;
    }
    let app = App::over(database.url());
    let asked: Vec<_> = (0..200).chain([5; 20]).collect();
    let paths: Vec<_> = asked.iter().map(|n| format!("/v1/users/{}", ids[*n])).collect();
    let answers = join_all(paths.iter().map(|path| app.get(path))).await;
    for (n, answer) in asked.into_iter().zip(answers) {
        if n == 77 {
            answer.assert_problem(UserNotFound, &[], "the missing one");
        } else {
            assert_eq!(answer.json()["email"], format!("user{n}@example.org"));
        }
    }
}

#[tokio::test]
async fn a_database_that_refuses_or_says_nothing_is_told_within_two_seconds() {
    // The kernel completes connections to it; nobody ever answers them.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent_url = format!("postgres://nobody@{}/nothing", silent.local_addr().expect("its address"));
    let urls = [("refuses", "postgres://nobody@127.0.0.1:1/nothing"), ("says nothing", silent_url.as_str())];
    let paths = [
        "/v1/users".to_owned(),
        format!("/v1/users/{}", Uuid::now_v7()),
        format!("/v1/users/{}/history", Uuid::now_v7()),
        format!("/v1/commands/{}", CommandId::mint()),
    ];
    let asking = urls.iter().flat_map(|(what, url)| {
        paths.iter().map(move |path| async move {
            let started = Instant::now();
            let answer = App::over(url).get(path).await;
            (format!("{path}: the database {what}"), answer, started.elapsed())
        })
    });
    for (reason, answer, took) in join_all(asking).await {
        answer.assert_problem(DatabaseUnavailable, &[], &reason);
        // Far less than any hang; the deadlines are those of the busiest machine.
        assert!(took < Duration::from_secs(30), "{reason}, answered after {took:?}");
    }
}

#[tokio::test]
async fn a_database_that_comes_back_is_read_again() {
    let mut database = Database::create().await;
    let id = Uuid::now_v7();
    insert(&mut database.conn, id, "ada@example.org", false).await;
    let app = App::over(database.url());
    let path = format!("/v1/users/{id}");
    assert_eq!(app.get(&path).await.status, 200);
    // As a failover does; the connection in the pool is dead, and the pool cannot know.
    sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rollcall-api-test' AND datname = current_database()")
        .execute(&mut database.conn)
        .await
        .expect("an end of the sessions");
    let answers = [app.get(&path).await, app.get(&path).await];
    assert_eq!(answers[1].status, 200, "{}", answers[1].text());
}
