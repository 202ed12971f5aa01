//! Lists of users: every page, every filter, and cursors that lead on.

use std::collections::HashSet;

use rollcall_api::problem::ProblemKind::InvalidRequest;
use serde_json::Value;
use uuid::Uuid;

use crate::reads::insert;
use crate::support::{Answer, App, Database};

const USERS: usize = 23;

/// Users in their order; every third is suspended.
async fn filled() -> (Database, Vec<Uuid>) {
    let mut database = Database::create().await;
    let ids: Vec<_> = (0..USERS).map(|_| Uuid::now_v7()).collect();
    // In another order than that of the ids.
    for (n, id) in ids.iter().enumerate().rev() {
        insert(&mut database.conn, *id, &format!("User{n}@Example.org"), n % 3 == 0).await;
    }
    (database, ids)
}

/// Where `Link` leads for a relation.
pub(crate) fn linked(answer: &Answer, relation: &str) -> Option<String> {
    let links = answer.header("link").unwrap_or_default().split(", ");
    links.filter_map(|link| link.split_once("; ")).find_map(|(target, found)| {
        let target = target.trim_start_matches('<').trim_end_matches('>');
        (found == format!("rel=\"{relation}\"")).then(|| target.to_owned())
    })
}

/// Follows `Link` to the end.
async fn walk(app: &App, first: &str) -> Vec<Vec<Uuid>> {
    let mut pages = Vec::new();
    let mut next = Some(first.to_owned());
    while let Some(path) = next {
        let answer = app.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let page = answer.json();
        let ids = page["items"].as_array().expect("items").iter().map(|user| user["id"].as_str().expect("an id"));
        pages.push(ids.map(|id| id.parse().expect("a UUID")).collect());
        next = linked(&answer, "next");
        for (relation, member) in [("next", "next_cursor"), ("prev", "prev_cursor")] {
            let link = linked(&answer, relation);
            assert_eq!(link.is_some(), page[member].is_string(), "{path}: header and body agree on {relation}");
            assert!(
                link.is_none_or(|link| link.contains(page[member].as_str().expect("a cursor"))),
                "{path}: {relation}"
            );
        }
        assert!(pages.len() <= USERS + 1, "{first} never ends");
    }
    pages
}

#[tokio::test]
async fn all_pages_together_are_all_users_once_whatever_their_size() {
    let (database, ids) = filled().await;
    let app = App::over(database.url());
    for limit in [1, 2, 7, 11, 22, 23, 24, 200] {
        let pages = walk(&app, &format!("/v1/users?limit={limit}")).await;
        assert_eq!(pages.len(), USERS.div_ceil(limit), "limit {limit}");
        assert!(pages.iter().rev().skip(1).all(|page| page.len() == limit), "limit {limit}");
        assert_eq!(pages.concat(), ids, "limit {limit}");
    }
    assert_eq!(walk(&app, "/v1/users").await, [ids]);
}

#[tokio::test]
async fn the_way_back_shows_the_same_users_in_the_same_order() {
    let (database, ids) = filled().await;
    let app = App::over(database.url());
    let suspended: Vec<_> = ids.iter().copied().step_by(3).collect();
    for (query, expected) in [("", &ids), ("&status=suspended", &suspended)] {
        for limit in [1, 2, 7, 22, 200] {
            let mut path = format!("/v1/users?limit={limit}{query}");
            let first = app.get(&path).await;
            assert_eq!(linked(&first, "prev"), None, "{path}: nothing is before the first page");
            let mut seen: Vec<Uuid> = Vec::new();
            while let Some(next) = linked(&app.get(&path).await, "next") {
                path = next;
            }
            loop {
                let answer = app.get(&path).await;
                let page = answer.json();
                let items = page["items"].as_array().expect("items").iter();
                let ids = items.map(|user| user["id"].as_str().expect("an id").parse().expect("a UUID"));
                seen = ids.chain(seen).collect();
                match linked(&answer, "prev") {
                    Some(previous) => path = previous,
                    None => break,
                }
            }
            assert_eq!(&seen, expected, "limit {limit}{query}");
        }
    }
}

#[tokio::test]
async fn a_page_keeps_its_place_when_users_come_and_go() {
    let (mut database, ids) = filled().await;
    let app = App::over(database.url());
    let link = app.get("/v1/users?limit=5").await.json()["next_cursor"].as_str().expect("a cursor").to_owned();
    // The user on whom the cursor stands, and one before.
    sqlx::query("DELETE FROM users WHERE id = ANY($1)")
        .bind(&ids[3..5])
        .execute(&mut database.conn)
        .await
        .expect("gone");
    let late = Uuid::now_v7();
    insert(&mut database.conn, late, "late@example.org", false).await;
    let rest = walk(&app, &format!("/v1/users?limit=5&cursor={link}")).await.concat();
    assert_eq!(rest, [&ids[5..], &[late]].concat());
}

#[tokio::test]
async fn a_list_by_status_has_all_of_them_and_only_them_on_every_page() {
    let (database, ids) = filled().await;
    let app = App::over(database.url());
    let suspended: Vec<_> = ids.iter().copied().step_by(3).collect();
    let active: Vec<_> = ids.iter().copied().filter(|id| !suspended.contains(id)).collect();
    for limit in [1, 3, 8, 200] {
        assert_eq!(
            walk(&app, &format!("/v1/users?status=suspended&limit={limit}")).await.concat(),
            suspended,
            "{limit}"
        );
        assert_eq!(walk(&app, &format!("/v1/users?limit={limit}&status=active")).await.concat(), active, "{limit}");
    }
}

#[tokio::test]
async fn a_user_is_found_by_e_mail_in_whatever_letter_case() {
    let (database, ids) = filled().await;
    let app = App::over(database.url());
    let rows: &[(&str, &str, &[Uuid])] = &[
        ("as it was written", "email=User4@Example.org", &ids[4..5]),
        ("in capitals", "email=USER4@EXAMPLE.ORG", &ids[4..5]),
        ("encoded", "email=user4%40example.org", &ids[4..5]),
        ("with the status it has", "email=user4@example.org&status=active", &ids[4..5]),
        ("with a status that it has not", "email=user4@example.org&status=suspended", &[]),
        ("with a limit", "email=user4@example.org&limit=1", &ids[4..5]),
        ("nobody's", "email=nobody@example.org", &[]),
        ("a pattern is no pattern", "email=user%25@example.org", &[]),
        ("a quote is data", "email='or'1'='1@example.org", &[]),
    ];
    for (reason, query, expected) in rows {
        assert_eq!(walk(&app, &format!("/v1/users?{query}")).await, [expected.to_vec()], "{reason}");
    }
}

#[tokio::test]
async fn an_empty_directory_is_an_empty_page() {
    let database = Database::create().await;
    let answer = App::over(database.url()).get("/v1/users").await;
    assert_eq!(answer.json(), serde_json::json!({ "items": [] }));
    assert_eq!(answer.header("link"), None);
}

#[tokio::test]
async fn a_cursor_that_was_tampered_with_is_refused() {
    let (database, _) = filled().await;
    let app = App::over(database.url());
    let page: Value = app.get("/v1/users?limit=5").await.json();
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    let mut forged: HashSet<String> = (0..cursor.len())
        .map(|at| format!("{}{}{}", &cursor[..at], if &cursor[at..=at] == "A" { "B" } else { "A" }, &cursor[at + 1..]))
        .collect();
    forged.extend((0..cursor.len()).map(|length| cursor[..length].to_owned()));
    forged.extend([format!("{cursor}A"), format!("{cursor}="), cursor.to_uppercase(), cursor.to_lowercase()]);
    for cursor in forged {
        let answer = app.get(&format!("/v1/users?cursor={cursor}")).await;
        answer.assert_problem(InvalidRequest, &["cursor"], &cursor);
    }
}
