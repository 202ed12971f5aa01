//! Paths, queries and headers that are refused, and how the headers that say how are read.

use common::command::CommandId;
use poem::Body;
use rollcall_api::problem::ProblemKind::{
    self, BrokerUnavailable, CommandNotFound, DatabaseUnavailable, InvalidRequest, UserNotFound, VersionLost,
};

use crate::support::{App, request};

const USER: &str = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";
const V4: &str = "9c5b94b1-35ad-49bb-b118-8e8fc24abf80";

type Row<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a [u8])], ProblemKind, &'a [&'a str]);

async fn check(rows: &[Row<'_>]) {
    let app = App::unconnected();
    for (reason, method, path, headers, kind, fields) in rows {
        let answer = app.send(request(method, path, headers, Body::empty())).await;
        answer.assert_problem(*kind, fields, reason);
        crate::contract::assert_documented(method, path, &answer, reason);
    }
}

#[tokio::test]
async fn an_id_that_cannot_be_one_is_refused_without_a_look_at_the_database() {
    let rows: &[Row] = &[
        ("no UUID", "GET", "/v1/users/7", &[], InvalidRequest, &["user_id"]),
        ("no UUID", "PATCH", "/v1/users/7", &[], InvalidRequest, &["user_id"]),
        ("no UUID", "DELETE", "/v1/users/7", &[], InvalidRequest, &["user_id"]),
        ("no UUID", "POST", "/v1/users/7/suspend", &[], InvalidRequest, &["user_id"]),
        ("no UUID", "POST", "/v1/users/7/reactivate", &[], InvalidRequest, &["user_id"]),
        ("no UUID", "GET", "/v1/commands/7", &[], InvalidRequest, &["command_id"]),
        ("a UUID cut short", "GET", "/v1/users/01890a5d-ac96-774b-bcce-b302099a805", &[], InvalidRequest, &["user_id"]),
        ("a blank", "GET", "/v1/users/%20", &[], InvalidRequest, &["user_id"]),
        ("an encoded slash", "GET", "/v1/users/a%2Fb", &[], InvalidRequest, &["user_id"]),
        ("an encoded NUL", "GET", "/v1/users/%00", &[], InvalidRequest, &["user_id"]),
        ("no hexadecimal behind the percent sign", "GET", "/v1/users/%zz", &[], InvalidRequest, &["user_id"]),
        ("version 4", "DELETE", &format!("/v1/users/{V4}"), &[], UserNotFound, &[]),
        ("version 4", "POST", &format!("/v1/users/{V4}/suspend"), &[], UserNotFound, &[]),
        ("version 4", "POST", &format!("/v1/users/{V4}/reactivate"), &[], UserNotFound, &[]),
        ("version 4", "GET", &format!("/v1/commands/{V4}"), &[], CommandNotFound, &[]),
        ("a possible one", "GET", USER, &[], DatabaseUnavailable, &[]),
        ("a possible one", "DELETE", USER, &[], BrokerUnavailable, &[]),
        ("a possible one", "POST", &format!("{USER}/suspend"), &[], BrokerUnavailable, &[]),
        ("a possible one", "POST", &format!("{USER}/reactivate"), &[], BrokerUnavailable, &[]),
        ("a possible one", "GET", &format!("/v1/commands/{}", CommandId::mint()), &[], DatabaseUnavailable, &[]),
    ];
    check(rows).await;
}

#[tokio::test]
async fn a_path_that_is_not_utf8_is_a_client_error() {
    let app = App::unconnected();
    for path in ["/%ff", "/v1/users/%ff", "/v1/commands/%c3%28", "/problems/%ff"] {
        let answer = app.get(path).await;
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
    }
}

#[tokio::test]
async fn a_list_query_that_is_not_valid_is_refused_without_a_look_at_the_database() {
    let rows: &[Row] = &[
        ("zero", "GET", "/v1/users?limit=0", &[], InvalidRequest, &["limit"]),
        ("more than a page holds", "GET", "/v1/users?limit=201", &[], InvalidRequest, &["limit"]),
        ("no number", "GET", "/v1/users?limit=abc", &[], InvalidRequest, &["limit"]),
        ("below zero", "GET", "/v1/users?limit=-1", &[], InvalidRequest, &["limit"]),
        ("a fraction", "GET", "/v1/users?limit=1.5", &[], InvalidRequest, &["limit"]),
        ("too large for an integer", "GET", "/v1/users?limit=99999999999", &[], InvalidRequest, &["limit"]),
        ("empty", "GET", "/v1/users?limit=", &[], InvalidRequest, &["limit"]),
        ("the largest page", "GET", "/v1/users?limit=200", &[], DatabaseUnavailable, &[]),
        ("an unknown status", "GET", "/v1/users?status=foo", &[], InvalidRequest, &["status"]),
        ("a status in capitals", "GET", "/v1/users?status=Active", &[], InvalidRequest, &["status"]),
        ("an e-mail with NUL", "GET", "/v1/users?email=a%00b", &[], InvalidRequest, &["email"]),
        ("a plus, which is a blank", "GET", "/v1/users?email=a+b@example.org", &[], InvalidRequest, &["email"]),
        ("an encoded plus", "GET", "/v1/users?email=a%2Bb@example.org", &[], DatabaseUnavailable, &[]),
        ("no e-mail", "GET", "/v1/users?email=", &[], InvalidRequest, &["email"]),
        ("half an e-mail", "GET", "/v1/users?email=ada", &[], InvalidRequest, &["email"]),
        ("an e-mail that is no UTF-8", "GET", "/v1/users?email=a%ff@example.org", &[], InvalidRequest, &["email"]),
        ("a forged cursor", "GET", "/v1/users?cursor=AZ_abc", &[], InvalidRequest, &["cursor"]),
        ("a cursor that is no base64", "GET", "/v1/users?cursor=%2B%2B%2B", &[], InvalidRequest, &["cursor"]),
        ("an empty cursor", "GET", "/v1/users?cursor=", &[], InvalidRequest, &["cursor"]),
        ("an id for a cursor", "GET", &format!("/v1/users?cursor={V4}"), &[], InvalidRequest, &["cursor"]),
        ("percent signs that encode nothing", "GET", "/v1/users?limit=%zz", &[], InvalidRequest, &["limit"]),
        ("no UTF-8", "GET", "/v1/users?status=%ff", &[], InvalidRequest, &["status"]),
        ("a history's page", "GET", &format!("{USER}/history?limit=201"), &[], InvalidRequest, &["limit"]),
        ("a history's cursor", "GET", &format!("{USER}/history?cursor=AZ_abc"), &[], InvalidRequest, &["cursor"]),
        ("a history that may be", "GET", &format!("{USER}/history?limit=200"), &[], DatabaseUnavailable, &[]),
    ];
    check(rows).await;
}

/// `?emial=` would list everybody, and `?dry_run=true` would not be one.
#[tokio::test]
async fn a_query_parameter_that_the_operation_does_not_know_is_refused_by_name() {
    let suspend = format!("{USER}/suspend");
    let many: Vec<_> = (0..50).map(|n| format!("x{n}=1")).collect();
    let many = many.join("&");
    let first: Vec<_> = (0..20).map(|n| format!("x{n}")).collect();
    let first: Vec<_> = first.iter().map(String::as_str).collect();
    let rows: &[Row] = &[
        ("a typing error", "GET", "/v1/users?emial=ada@example.org", &[], InvalidRequest, &["emial"]),
        ("beside known ones", "GET", "/v1/users?limit=1&Status=active", &[], InvalidRequest, &["Status"]),
        ("several", "GET", "/v1/users?a=1&limit=1&b=2&a=3", &[], InvalidRequest, &["a", "b"]),
        ("fifty", "GET", &format!("/v1/users?{many}"), &[], InvalidRequest, &first),
        ("without a value", "GET", "/v1/users?offset", &[], InvalidRequest, &["offset"]),
        ("without a name", "GET", "/v1/users?=1", &[], InvalidRequest, &["query"]),
        ("encoded", "GET", "/v1/users?%6Fffset=1", &[], InvalidRequest, &["offset"]),
        ("with a line break", "GET", "/v1/users?a%0Ab=1", &[], InvalidRequest, &["ab"]),
        ("known elsewhere", "GET", &format!("{USER}/history?email=a"), &[], InvalidRequest, &["email"]),
        ("where none is known", "GET", &format!("{USER}?fields=id"), &[], InvalidRequest, &["fields"]),
        ("a write's", "DELETE", &format!("{USER}?dry_run=true"), &[], InvalidRequest, &["dry_run"]),
        ("a write's", "POST", &format!("{suspend}?wait=5"), &[], InvalidRequest, &["wait"]),
        ("a command's", "GET", &format!("/v1/commands/{V4}?wait=5"), &[], InvalidRequest, &["wait"]),
        ("twice", "GET", "/v1/users?status=active&status=suspended", &[], InvalidRequest, &["status"]),
        ("twice the same", "GET", "/v1/users?limit=1&limit=1", &[], InvalidRequest, &["limit"]),
        ("a known one, encoded", "GET", "/v1/users?%6Cimit=1", &[], DatabaseUnavailable, &[]),
        ("nothing", "GET", "/v1/users?", &[], DatabaseUnavailable, &[]),
        ("only separators", "GET", "/v1/users?&&", &[], DatabaseUnavailable, &[]),
    ];
    check(rows).await;
    let app = App::unconnected();
    for path in ["/healthz?probe=1", "/openapi.json?v=2", "/docs?_=1", "/problems?x", "/metrics?x=1"] {
        assert_eq!(app.get(path).await.status, 200, "{path} is no operation of the contract");
    }
}

#[tokio::test]
async fn a_condition_that_the_operation_does_not_look_at_is_refused_by_name() {
    let any: &[(&str, &[u8])] = &[("if-none-match", b"*")];
    let one: &[(&str, &[u8])] = &[("if-match", b"\"1\"")];
    let suspend = format!("{USER}/suspend");
    let rows: &[Row] = &[
        ("a write", "DELETE", USER, any, InvalidRequest, &["If-None-Match"]),
        ("a write", "POST", &suspend, any, InvalidRequest, &["If-None-Match"]),
        ("a write", "POST", "/v1/users", any, InvalidRequest, &["If-None-Match"]),
        ("nothing is there yet", "POST", "/v1/users", one, InvalidRequest, &["If-Match"]),
        ("a read", "GET", USER, one, InvalidRequest, &["If-Match"]),
        ("beside a query", "GET", "/v1/users?x=1", one, InvalidRequest, &["x", "If-Match"]),
        // What has no tag matches none, and the read goes on.
        ("a list", "GET", "/v1/users", &[("if-none-match", b"\"1\"")], DatabaseUnavailable, &[]),
        ("a condition of reads", "GET", USER, &[("if-none-match", b"\"1\"")], DatabaseUnavailable, &[]),
        ("a condition of writes", "DELETE", USER, one, BrokerUnavailable, &[]),
    ];
    check(rows).await;
}

#[tokio::test]
async fn a_preference_that_cannot_be_read_is_ignored() {
    let suspend = format!("{USER}/suspend");
    let rows: &[Row] = &[
        ("below zero", "DELETE", USER, &[("prefer", b"wait=-1")], BrokerUnavailable, &[]),
        ("no number", "DELETE", USER, &[("prefer", b"wait=abc")], BrokerUnavailable, &[]),
        ("a unit", "POST", &suspend, &[("prefer", b"wait=5s")], BrokerUnavailable, &[]),
        ("nothing of the kind", "POST", &suspend, &[("prefer", b"=;\"\xff")], BrokerUnavailable, &[]),
        ("in the second line", "POST", &suspend, &[("prefer", b"x"), ("prefer", b"wait=z")], BrokerUnavailable, &[]),
        ("a command's", "GET", &format!("/v1/commands/{V4}"), &[("prefer", b"wait=z")], CommandNotFound, &[]),
        ("other preferences are ignored", "DELETE", USER, &[("prefer", b"handling=strict, x")], BrokerUnavailable, &[]),
        ("inside a quoted text", "DELETE", USER, &[("prefer", b"x=\"a, wait=b\"")], BrokerUnavailable, &[]),
        ("another preference's parameter", "DELETE", USER, &[("prefer", b"x; wait=b")], BrokerUnavailable, &[]),
        ("only the first counts", "DELETE", USER, &[("prefer", b"wait=1, wait=b")], BrokerUnavailable, &[]),
        ("a parameter of ours", "DELETE", USER, &[("prefer", b"wait=1; x=y")], BrokerUnavailable, &[]),
    ];
    check(rows).await;
}

/// A key that is dropped in silence would let a retry take effect twice.
#[tokio::test]
async fn an_idempotency_key_that_is_not_one_is_refused() {
    let suspend = format!("{USER}/suspend");
    let (longest, too_long) = ("k".repeat(255), "k".repeat(256));
    let (longest_quoted, too_long_quoted) = (format!("\"{longest}\""), format!("\"{too_long}\""));
    let bad: &[(&str, &[&[u8]])] = &[
        ("nothing", &[b""]),
        ("nothing in quotes", &[b"\"\""]),
        ("one quote", &[b"\""]),
        ("a quote that does not end", &[b"\"abc"]),
        ("text behind the quotes", &[b"\"abc\"d"]),
        ("a parameter behind the quotes", &[b"\"abc\";x=1"]),
        ("an escaped quote at the end", &[b"\"abc\\\""]),
        ("an unknown escape", &[b"\"a\\bc\""]),
        ("a blank inside", &[b"a b"]),
        ("a blank in quotes", &[b"\"a b\""]),
        ("a tab", &[b"a\tb"]),
        ("Latin-1", &[b"caf\xe9"]),
        ("UTF-8", &["café".as_bytes()]),
        ("256 characters", &[too_long.as_bytes()]),
        ("256 characters in quotes", &[too_long_quoted.as_bytes()]),
        ("two lines", &[b"a", b"b"]),
        ("two quoted lines", &[b"\"a\"", b"\"b\""]),
        ("the same line twice", &[b"a", b"a"]),
        ("an empty line behind it", &[b"a", b""]),
        ("an empty line before it", &[b"", b"a"]),
    ];
    let good: &[(&str, &[&[u8]])] = &[
        ("a UUID", &[b"8e03978e-40d5-43e8-bc93-6894a57f9324"]),
        ("a UUID in quotes", &[b"\"8e03978e-40d5-43e8-bc93-6894a57f9324\""]),
        ("one character", &[b"a"]),
        ("255 characters", &[longest.as_bytes()]),
        ("255 characters in quotes", &[longest_quoted.as_bytes()]),
        ("every kind of character", &[b"!#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~\""]),
        ("escapes in quotes", &[b"\"a\\\"b\\\\c\""]),
    ];
    let app = App::unconnected();
    for (rows, kind, fields) in [(bad, InvalidRequest, &["Idempotency-Key"][..]), (good, BrokerUnavailable, &[])] {
        for (reason, lines) in rows {
            let headers: Vec<_> = lines.iter().map(|line| ("idempotency-key", *line)).collect();
            for (method, path) in [("DELETE", USER), ("POST", suspend.as_str())] {
                let answer = app.send(request(method, path, &headers, Body::empty())).await;
                answer.assert_problem(kind, fields, reason);
                crate::contract::assert_documented(method, path, &answer, reason);
            }
        }
    }
}

#[tokio::test]
async fn every_write_reads_its_idempotency_key() {
    let app = App::unconnected();
    let (create, patch) = (r#"{"email": "ada@example.org", "name": "Ada"}"#, r#"{"name": "Ada"}"#);
    let rows = [
        ("POST", "/v1/users".to_owned(), create),
        ("PATCH", USER.to_owned(), patch),
        ("DELETE", USER.to_owned(), ""),
        ("POST", format!("{USER}/suspend"), ""),
        ("POST", format!("{USER}/reactivate"), ""),
    ];
    for (method, path, body) in &rows {
        let headers = [("content-type", "application/json"), ("idempotency-key", "a b")];
        let answer = app.send(request(method, path, &headers, *body)).await;
        answer.assert_problem(InvalidRequest, &["Idempotency-Key"], &format!("{method} {path}"));
    }
}

/// Whatever cannot be compared must never count as "no condition": that would lose somebody's update.
#[tokio::test]
async fn an_if_match_that_cannot_match_or_be_read_is_refused() {
    let suspend = format!("{USER}/suspend");
    let rows: &[Row] = &[
        ("no quotes", "DELETE", USER, &[("if-match", b"3")], InvalidRequest, &["If-Match"]),
        ("a weak tag", "DELETE", USER, &[("if-match", b"W/\"3\"")], VersionLost, &[]),
        ("weak and foreign tags", "DELETE", USER, &[("if-match", b"W/\"3\", \"x\"")], VersionLost, &[]),
        ("two tags", "DELETE", USER, &[("if-match", b"\"3\", \"4\"")], BrokerUnavailable, &[]),
        ("two lines", "DELETE", USER, &[("if-match", b"\"3\""), ("if-match", b"\"4\"")], BrokerUnavailable, &[]),
        ("a strong one of several", "DELETE", USER, &[("if-match", b"W/\"3\", \"4\"")], BrokerUnavailable, &[]),
        ("any or one", "DELETE", USER, &[("if-match", b"*, \"4\"")], InvalidRequest, &["If-Match"]),
        ("a blank in the tag", "DELETE", USER, &[("if-match", b"\"a b\"")], InvalidRequest, &["If-Match"]),
        ("half a tag", "POST", &suspend, &[("if-match", b"\"3")], InvalidRequest, &["If-Match"]),
        ("one quote", "POST", &suspend, &[("if-match", b"\"")], InvalidRequest, &["If-Match"]),
        ("nothing", "POST", &suspend, &[("if-match", b"")], InvalidRequest, &["If-Match"]),
        ("Latin-1 in the tag", "DELETE", USER, &[("if-match", b"\"\xe9\"")], VersionLost, &[]),
        ("UTF-8 in the tag", "DELETE", USER, &[("if-match", "\"é\"".as_bytes())], VersionLost, &[]),
        ("a tag that was never sent", "DELETE", USER, &[("if-match", b"\"abc\"")], VersionLost, &[]),
        ("a number written otherwise", "DELETE", USER, &[("if-match", b"\"03\"")], VersionLost, &[]),
        ("one strong tag", "DELETE", USER, &[("if-match", b"\"3\"")], BrokerUnavailable, &[]),
        ("whatever the version", "DELETE", USER, &[("if-match", b"*")], BrokerUnavailable, &[]),
    ];
    check(rows).await;
}
