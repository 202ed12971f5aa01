//! Request bodies that are refused, and what the client is told.

use rollcall_api::problem::ProblemKind::{
    self, BodyTooLarge, BrokerUnavailable, InvalidRequest, UnsupportedMediaType, UserNotFound,
};
use serde_json::json;

use crate::support::{App, request};

const USER: &str = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const ADA: &str = r#"{"email":"ada@example.org","name":"Ada"}"#;

type Row<'a> = (&'a str, &'a str, Vec<u8>, ProblemKind, &'a [&'a str]);

async fn check(method: &str, path: &str, rows: Vec<Row<'_>>) {
    let app = App::unconnected();
    for (reason, content_type, body, kind, fields) in rows {
        let headers: &[(&str, &str)] = if content_type.is_empty() { &[] } else { &[("content-type", content_type)] };
        let answer = app.send(request(method, path, headers, body)).await;
        answer.assert_problem(kind, fields, reason);
        crate::contract::assert_documented(method, path, &answer, reason);
    }
}

fn user(email: &str, name: &str) -> Vec<u8> {
    json!({ "email": email, "name": name }).to_string().into_bytes()
}

#[tokio::test]
async fn a_create_body_that_is_not_valid_is_refused_before_publishing() {
    let text = |text: &str| text.as_bytes().to_vec();
    let nested = [vec![b'['; 5000], vec![b']'; 5000]].concat();
    let deep = [b"{\"email\":".to_vec(), nested, b"}".to_vec()].concat();
    let rows: Vec<Row> = vec![
        ("valid, to prove that the rows below are what is refused", JSON, text(ADA), BrokerUnavailable, &[]),
        ("a charset is allowed", "application/json;charset=utf-8", text(ADA), BrokerUnavailable, &[]),
        ("media types know no letter case", "Application/JSON", text(ADA), BrokerUnavailable, &[]),
        ("no body", JSON, vec![], InvalidRequest, &["body"]),
        ("white space only", JSON, text("  \n"), InvalidRequest, &["body"]),
        ("no content type", "", text(ADA), UnsupportedMediaType, &[]),
        ("another content type", "text/plain", text(ADA), UnsupportedMediaType, &[]),
        ("a content type that only begins like ours", "application/jsonp", text(ADA), UnsupportedMediaType, &[]),
        ("a content type for changes", MERGE, text(ADA), UnsupportedMediaType, &[]),
        ("no JSON", JSON, text("name=Ada"), InvalidRequest, &["body"]),
        ("JSON that ends early", JSON, text(r#"{"email":"ada@example.org","name":"A"#), InvalidRequest, &["body"]),
        ("something behind the JSON", JSON, text(r"{}{}"), InvalidRequest, &["body"]),
        ("a trailing comma", JSON, text(r#"{"email":"ada@example.org","name":"Ada",}"#), InvalidRequest, &["body"]),
        ("an array", JSON, text("[]"), InvalidRequest, &["body"]),
        ("a string", JSON, text(r#""Ada""#), InvalidRequest, &["body"]),
        ("null", JSON, text("null"), InvalidRequest, &["body"]),
        ("an empty object", JSON, text("{}"), InvalidRequest, &["email", "name"]),
        ("not UTF-8", JSON, b"{\"email\":\"ada@example.org\",\"name\":\"\xff\"}".to_vec(), InvalidRequest, &["body"]),
        ("a byte order mark", JSON, text(&format!("\u{feff}{ADA}")), InvalidRequest, &["body"]),
        ("nested too deeply", JSON, deep, InvalidRequest, &["body"]),
        (
            "half a surrogate pair",
            JSON,
            text(r#"{"email":"ada@example.org","name":"\ud800"}"#),
            InvalidRequest,
            &["body"],
        ),
        (
            "an unknown member",
            JSON,
            text(r#"{"email":"ada@example.org","name":"Ada","admin":true}"#),
            InvalidRequest,
            &["admin"],
        ),
        (
            "every fault is reported",
            JSON,
            text(r#"{"email":"ada","name":7,"admin":true,"id":1}"#),
            InvalidRequest,
            &["email", "name", "admin", "id"],
        ),
        ("no e-mail", JSON, text(r#"{"name":"Ada"}"#), InvalidRequest, &["email"]),
        ("an empty e-mail", JSON, user("", "Ada"), InvalidRequest, &["email"]),
        ("10 kB of e-mail", JSON, user(&format!("{}@x.org", "a".repeat(10_000)), "Ada"), InvalidRequest, &["email"]),
        (
            "an e-mail with a line break",
            JSON,
            user("ada@example.org\r\nBcc: b@x.org", "Ada"),
            InvalidRequest,
            &["email"],
        ),
        ("an e-mail with a display name", JSON, user("Bob <b@x.yz>", "Bob"), InvalidRequest, &["email"]),
        ("an e-mail without a top-level domain", JSON, user("a@b", "Ada"), InvalidRequest, &["email"]),
        ("an e-mail with an address for a domain", JSON, user("a@[127.0.0.1]", "Ada"), InvalidRequest, &["email"]),
        ("an e-mail outside ASCII", JSON, user("ada@exämple.org", "Ada"), InvalidRequest, &["email"]),
        ("an e-mail with NUL", JSON, text(r#"{"email":"a\u0000@x.org","name":"Ada"}"#), InvalidRequest, &["email"]),
        ("a name with NUL", JSON, text(r#"{"email":"ada@example.org","name":"A\u0000"}"#), InvalidRequest, &["name"]),
        ("an empty name", JSON, user("ada@example.org", ""), InvalidRequest, &["name"]),
        ("a name of blanks", JSON, user("ada@example.org", "  "), InvalidRequest, &["name"]),
        ("a name of 300 characters", JSON, user("ada@example.org", &"é".repeat(300)), InvalidRequest, &["name"]),
        (
            "a name of 200 characters is allowed",
            JSON,
            user("ada@example.org", &"é".repeat(200)),
            BrokerUnavailable,
            &[],
        ),
        ("null for a member", JSON, text(r#"{"email":null,"name":"Ada"}"#), InvalidRequest, &["email"]),
        ("a number for a member", JSON, text(r#"{"email":"ada@example.org","name":1}"#), InvalidRequest, &["name"]),
        ("an object for a member", JSON, text(r#"{"email":{"a":1},"name":"Ada"}"#), InvalidRequest, &["email"]),
        ("an array for a member", JSON, text(r#"{"email":["a"],"name":"Ada"}"#), InvalidRequest, &["email"]),
        ("a boolean for a member", JSON, text(r#"{"email":true,"name":"Ada"}"#), InvalidRequest, &["email"]),
        ("more than 64 KiB", JSON, vec![b' '; 64 * 1024 + 1], BodyTooLarge, &[]),
        (
            "64 KiB are allowed",
            JSON,
            text(&format!("{ADA}{}", " ".repeat(64 * 1024 - ADA.len()))),
            BrokerUnavailable,
            &[],
        ),
    ];
    check("POST", "/v1/users", rows).await;
}

/// Another reader of the same text may take the other value.
#[tokio::test]
async fn a_member_that_comes_twice_is_refused_by_name() {
    let text = |text: &str| text.as_bytes().to_vec();
    let rows: Vec<Row> = vec![
        (
            "a member twice",
            JSON,
            text(r#"{"email":"a@x.org","name":"A","email":"b@x.org"}"#),
            InvalidRequest,
            &["email"],
        ),
        (
            "a member twice the same",
            JSON,
            text(r#"{"email":"a@x.org","name":"A","name":"A"}"#),
            InvalidRequest,
            &["name"],
        ),
        (
            "an escaped name twice",
            JSON,
            text(r#"{"email":"a@x.org","name":"A","\u0065mail":"b@x.org"}"#),
            InvalidRequest,
            &["email"],
        ),
        (
            "a member twice in an object that is no value of ours",
            JSON,
            text(r#"{"email":{"a":1,"a":2},"name":"A"}"#),
            InvalidRequest,
            &["email"],
        ),
        (
            "a member twice in an unknown one",
            JSON,
            text(r#"{"email":"a@x.org","name":"A","x":[{"a":1,"a":2}]}"#),
            InvalidRequest,
            &["x"],
        ),
    ];
    check("POST", "/v1/users", rows).await;
}

/// Another reader of the same request may take the other value.
#[tokio::test]
async fn a_field_with_one_value_that_comes_twice_is_refused_by_name() {
    let rows = [
        ("Content-Type", [JSON, "text/plain"]),
        ("Content-Encoding", ["identity", "gzip"]),
        ("Authorization", ["Bearer a", "Bearer b"]),
        ("Idempotency-Key", ["a", "b"]),
        ("Origin", ["http://localhost", "https://evil.example"]),
        ("Sec-Fetch-Site", ["same-origin", "cross-site"]),
        ("If-Modified-Since", ["a", "a"]),
        ("User-Agent", ["a", "b"]),
    ];
    let app = App::unconnected();
    for (name, values) in rows {
        let lower = name.to_lowercase();
        let twice: Vec<_> = values.iter().map(|value| (lower.as_str(), *value)).collect();
        let headers: Vec<_> =
            [("content-type", JSON)].into_iter().filter(|(name, _)| *name != lower).chain(twice).collect();
        for (method, path) in [("POST", "/v1/users"), ("GET", USER), ("GET", "/docs")] {
            let answer = app.send(request(method, path, &headers, ADA)).await;
            answer.assert_problem(InvalidRequest, &[name], &format!("{method} {path}"));
        }
    }
    // A list may come in several lines.
    let lists = [
        ("prefer", "wait=0"),
        ("prefer", "x"),
        ("if-none-match", "\"1\""),
        ("if-none-match", "\"2\""),
        ("accept", "a/b"),
        ("accept", "*/*"),
    ];
    let answer = app.send(request::<&str>("GET", "/docs", &lists, poem::Body::empty())).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_patch_body_that_is_not_valid_is_refused_before_publishing() {
    let text = |text: &str| text.as_bytes().to_vec();
    let rows: Vec<Row> = vec![
        ("valid, to prove that the rows below are what is refused", MERGE, text(ADA), BrokerUnavailable, &[]),
        ("plain JSON is accepted too", JSON, text(r#"{"name":"Ada"}"#), BrokerUnavailable, &[]),
        ("a JSON patch is another language", "application/json-patch+json", text("[]"), UnsupportedMediaType, &[]),
        ("no content type", "", text(ADA), UnsupportedMediaType, &[]),
        ("no body", MERGE, vec![], InvalidRequest, &["body"]),
        ("an empty patch", MERGE, text("{}"), InvalidRequest, &["body"]),
        ("an unknown member alone", MERGE, text(r#"{"status":"suspended"}"#), InvalidRequest, &["body", "status"]),
        ("null would remove the e-mail", MERGE, text(r#"{"email":null}"#), InvalidRequest, &["email"]),
        ("null would remove the name", MERGE, text(r#"{"email":"a@x.org","name":null}"#), InvalidRequest, &["name"]),
        (
            "every fault is reported",
            MERGE,
            text(r#"{"email":"a","name":"","x":0}"#),
            InvalidRequest,
            &["email", "name", "x"],
        ),
    ];
    check("PATCH", USER, rows).await;
}

#[tokio::test]
async fn a_change_of_a_user_who_cannot_exist_is_not_published() {
    let rows: Vec<Row> = vec![("version 4", MERGE, ADA.as_bytes().to_vec(), UserNotFound, &[])];
    check("PATCH", "/v1/users/9c5b94b1-35ad-49bb-b118-8e8fc24abf80", rows).await;
}

#[tokio::test]
async fn a_compressed_body_is_refused_as_such() {
    let headers = [("content-type", JSON), ("content-encoding", "gzip")];
    let answer = App::unconnected().send(request("POST", "/v1/users", &headers, "\u{1f}")).await;
    answer.assert_problem(UnsupportedMediaType, &[], "gzip");
    let headers = [("content-type", JSON), ("content-encoding", "identity"), ("content-encoding", "gzip")];
    let answer = App::unconnected().send(request("POST", "/v1/users", &headers, "\u{1f}")).await;
    answer.assert_problem(InvalidRequest, &["Content-Encoding"], "gzip in the second line");
    let headers = [("content-type", JSON), ("content-encoding", "identity")];
    let answer = App::unconnected().send(request("POST", "/v1/users", &headers, ADA)).await;
    answer.assert_problem(BrokerUnavailable, &[], "identity is no encoding");
}

#[tokio::test]
async fn ten_thousand_unknown_members_are_not_answered_with_ten_thousand_faults() {
    let members: Vec<String> = (0..6_000).map(|n| format!("\"{n}\":0")).collect();
    let body = format!("{{{}}}", members.join(","));
    let answer = App::unconnected().send(request("POST", "/v1/users", &[("content-type", JSON)], body)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.len() < 4096, "{} bytes", answer.body.len());
    assert!(answer.text().contains("email"), "what was noted first stays: {}", answer.text());
}

#[tokio::test]
async fn an_unknown_member_is_shown_shortened_and_without_control_characters() {
    let body = json!({ "email": "ada@example.org", "name": "Ada", format!("\n{}", "x".repeat(500)): 0 }).to_string();
    let answer = App::unconnected().send(request("POST", "/v1/users", &[("content-type", JSON)], body)).await;
    answer.assert_problem(InvalidRequest, &["x".repeat(64).as_str()], "a long name with a line break");
}
