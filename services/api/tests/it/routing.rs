//! What is not an operation: unknown paths, wrong methods, HEAD, and the headers on every answer.

use std::collections::BTreeSet;

use poem::Body;
use rollcall_api::auth::settings::AuthSettings;
use rollcall_api::cors::Origins;
use rollcall_api::problem::ProblemKind::{CrossSite, MethodNotAllowed, NoSuchRoute};

use crate::support::{App, request};

#[tokio::test]
async fn an_unknown_path_is_a_problem_document() {
    let app = App::unconnected();
    for path in ["/v1", "/v1/", "/v1/user", "/v2/users", "/v1/users/1/2/3", "/favicon.ico", "/docs/x", "/..;/x"] {
        for method in ["GET", "POST", "DELETE", "OPTIONS", "BREW"] {
            let answer = app.send(request::<&str>(method, path, &[], Body::empty())).await;
            answer.assert_problem(NoSuchRoute, &[], &format!("{method} {path}"));
        }
    }
}

#[tokio::test]
async fn a_wrong_method_is_told_which_are_right() {
    let user = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";
    let rows = [
        ("PUT", "/v1/users", "GET HEAD POST"),
        ("DELETE", "/v1/users", "GET HEAD POST"),
        ("OPTIONS", "/v1/users", "GET HEAD POST"),
        ("BREW", "/v1/users", "GET HEAD POST"),
        ("POST", user, "DELETE GET HEAD PATCH"),
        ("PUT", user, "DELETE GET HEAD PATCH"),
        ("PUT", "/v1/users/not-even-an-id", "DELETE GET HEAD PATCH"),
        ("GET", &format!("{user}/suspend"), "POST"),
        ("HEAD", &format!("{user}/suspend"), "POST"),
        ("DELETE", &format!("{user}/reactivate"), "POST"),
        ("POST", "/v1/commands/01890a5d-ac96-774b-bcce-b302099a8057", "GET HEAD"),
        ("POST", "/", "GET HEAD"),
        ("POST", "/healthz", "GET HEAD"),
        ("DELETE", "/readyz", "GET HEAD"),
        ("POST", "/metrics", "GET HEAD"),
        ("POST", "/docs", "GET HEAD"),
        ("PUT", "/openapi.json", "GET HEAD"),
        ("POST", "/problems", "GET HEAD"),
        ("POST", "/problems/internal", "GET HEAD"),
    ];
    let app = App::unconnected();
    for (method, path, expected) in rows {
        let answer = app.send(request::<&str>(method, path, &[], Body::empty())).await;
        answer.assert_problem(MethodNotAllowed, &[], &format!("{method} {path}"));
        let allow: BTreeSet<_> = answer.header("allow").unwrap_or_default().split(", ").map(str::to_owned).collect();
        assert_eq!(allow, expected.split(' ').map(str::to_owned).collect(), "{method} {path}");
    }
}

/// A page of another site may have its name resolve to this machine, and reads what is answered as its own.
#[tokio::test]
async fn a_service_of_this_machine_answers_to_its_own_names_only() {
    let local = AuthSettings { local: Some(Origins::Own), ..AuthSettings::default() };
    let app = App::guarded("postgres://nobody@127.0.0.1:1/nothing", local);
    for path in ["/", "/docs", "/openapi.json", "/problems", "/problems/internal", "/readyz", "/metrics", "/v1/users"] {
        let answer = app.get_with(path, &[("host", "evil.example")]).await;
        answer.assert_problem(CrossSite, &[], path);
        assert_ne!(app.get_with(path, &[("host", "localhost:8080")]).await.status, 403, "{path}");
    }
    assert_eq!(app.get_with("/healthz", &[("host", "evil.example")]).await.status, 200, "it says nothing");
    let everybody = App::unconnected();
    assert_eq!(everybody.get_with("/metrics", &[("host", "evil.example")]).await.status, 200);
}

#[tokio::test]
async fn head_is_answered_like_get() {
    let app = App::unconnected();
    for path in ["/healthz", "/openapi.json", "/docs", "/problems", "/v1/users?limit=0", "/v1/users", "/nothing"] {
        let get = app.get(path).await;
        let head = app.send(request::<&str>("HEAD", path, &[], Body::empty())).await;
        assert_eq!(head.status, get.status, "{path}");
        for name in ["content-type", "etag", "cache-control"] {
            assert_eq!(head.header(name), get.header(name), "{path} {name}");
        }
    }
}

/// 404, 405, 410 and 200 may be kept by caches that guess (RFC 9111 §4.2.2), and a user who was missing may be there now.
#[tokio::test]
async fn no_answer_is_left_to_a_cache_that_guesses() {
    let app = App::unconnected();
    for path in
        ["/v1/users?limit=0", "/v1/users", "/nothing", "/healthz", "/readyz", "/docs", "/openapi.json", "/problems"]
    {
        let cache_control = app.get(path).await.header("cache-control").unwrap_or_default().to_owned();
        assert!(cache_control.contains("no-cache") || cache_control.contains("no-store"), "{path}: {cache_control:?}");
    }
}

#[tokio::test]
async fn the_trace_of_the_caller_is_named_in_the_problem() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let app = App::unconnected();
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let answer = app.get_with("/nothing", &[("traceparent", &traceparent)]).await;
    assert_eq!(answer.assert_problem(NoSuchRoute, &[], "with a trace")["trace_id"], trace);
    for broken in ["", "00-0-0-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "é"] {
        let answer = app.send(request("GET", "/nothing", &[("traceparent", broken)], Body::empty())).await;
        answer.assert_problem(NoSuchRoute, &[], broken);
    }
}
