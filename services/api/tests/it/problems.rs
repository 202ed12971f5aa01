//! The closed list of problems is consistent, and described where its types point.

use std::collections::HashSet;

use rollcall_api::problem::ProblemKind;
use serde_json::Value;

use crate::support::App;

#[tokio::test]
async fn every_problem_is_described_at_its_type() {
    let app = App::unconnected();
    let list = app.get("/problems").await;
    assert_eq!(list.status, 200);
    assert_eq!(list.text().lines().count(), ProblemKind::ALL.len());
    for kind in ProblemKind::ALL {
        let described = app.get(&kind.uri()).await;
        assert_eq!(described.status, 200, "{}", kind.uri());
        assert!(described.header("content-type").is_some_and(|t| t.starts_with("text/plain")), "{}", kind.uri());
        for part in [kind.title(), kind.description().trim(), &kind.status().to_string()] {
            assert!(described.text().contains(part), "{}: {part}", kind.uri());
        }
        let line = list.text().lines().find(|line| line.split_whitespace().nth(1) == Some(&kind.uri()));
        assert!(line.is_some_and(|line| line.starts_with(&kind.status().to_string())), "{}", kind.uri());
    }
    app.get("/problems/unheard-of").await.assert_problem(ProblemKind::NoSuchRoute, &[], "an unknown problem");
}

#[test]
fn problems_have_distinct_names_and_titles_and_are_in_the_order_of_their_status() {
    let statuses: Vec<_> = ProblemKind::ALL.iter().map(|kind| kind.status()).collect();
    assert!(statuses.is_sorted(), "{statuses:?}");
    assert!(statuses.iter().all(|status| (400..600).contains(status)));
    let names: HashSet<_> = ProblemKind::ALL.iter().map(|kind| kind.name()).collect();
    let titles: HashSet<_> = ProblemKind::ALL.iter().map(|kind| kind.title()).collect();
    assert_eq!((names.len(), titles.len()), (ProblemKind::ALL.len(), ProblemKind::ALL.len()));
    for kind in ProblemKind::ALL {
        assert!(kind.name().chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", kind.name());
        assert!(!kind.title().ends_with('.'), "{}: a title is no sentence", kind.name());
        assert!(kind.description().trim().ends_with('.'), "{}: a description is", kind.name());
    }
}

#[tokio::test]
async fn an_instance_that_is_not_ready_says_so_as_a_problem() {
    let app = App::unconnected();
    app.health.register("database", common::health::Ability::Read);
    let answer = app.get("/readyz").await;
    let document: Value = serde_json::from_slice(&answer.body).expect("a problem in JSON");
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert_eq!(answer.status.as_u16(), ProblemKind::NotReady.status());
    assert_eq!(document["type"], ProblemKind::NotReady.uri());
    assert_eq!(document["title"], ProblemKind::NotReady.title());
    assert_eq!(document["checks"]["database"], "failed: not checked yet");
    app.health.set("database", Ok("answers".to_owned()));
    assert_eq!(app.get("/readyz").await.status, 200);
}
