//! Rate limits, pages of other origins, compression, and the fields that are on every answer.

use std::io::Read;
use std::num::NonZeroU32;

use flate2::read::GzDecoder;
use poem::Body;
use poem::http::HeaderValue;
use rollcall_api::cors::Origins;
use rollcall_api::limits::Limits;
use rollcall_api::problem::ProblemKind;
use rollcall_api::rate::RateSettings;

use crate::support::{App, request};

const USER: &str = "/v1/users/01890a5d-ac96-774b-bcce-b302099a8057";

fn limited(per_minute: u32, trusted_proxies: usize) -> App {
    let rate = RateSettings { per_minute: NonZeroU32::new(per_minute), trusted_proxies };
    App::limited(Limits { rate, ..Limits::default() })
}

#[tokio::test]
async fn beyond_its_limit_a_caller_is_told_when_to_come_again() {
    let app = limited(3, 0);
    for left in [2, 1, 0] {
        let answer = app.get(USER).await;
        assert_eq!(answer.status, 503, "served, as far as there are servers");
        assert_eq!(answer.header("ratelimit-policy"), Some("\"caller\";q=3;w=60"));
        let reset = (3 - left) * 20;
        assert_eq!(answer.header("ratelimit"), Some(format!("\"caller\";r={left};t={reset}").as_str()));
    }
    // Whatever the operation, and whatever is wrong with the request.
    for (method, path) in [("GET", USER), ("POST", "/v1/users"), ("DELETE", USER), ("GET", "/v1/users?limit=0")] {
        let answer = app.send(request(method, path, &[("content-type", "application/json")], "nonsense")).await;
        answer.assert_problem(ProblemKind::TooManyRequests, &[], &format!("{method} {path}"));
        let seconds: u32 = answer.header("retry-after").expect("a time").parse().expect("a number");
        assert!((1..=21).contains(&seconds), "{seconds}");
        assert_eq!(answer.header("ratelimit"), Some("\"caller\";r=0;t=60"));
    }
    let page = app.get("/healthz").await;
    assert_eq!((page.status.as_u16(), page.header("ratelimit")), (200, None), "probes and pages are not counted");
}

#[tokio::test]
async fn callers_behind_a_trusted_proxy_are_told_apart_by_what_it_appended() {
    let app = limited(1, 1);
    let status = async |forwarded: &str| app.get_with(USER, &[("x-forwarded-for", forwarded)]).await.status.as_u16();
    assert_eq!(status("10.0.0.1, 192.0.2.1").await, 503);
    assert_eq!(status("10.0.0.2, 192.0.2.1").await, 429, "what came before the proxy's entry is anybody's claim");
    assert_eq!(status("192.0.2.2").await, 503);
    assert_eq!(status("2001:db8::1").await, 503);
    assert_eq!(status("2001:db8::2").await, 429, "one subscriber");
    assert_eq!(status("2001:db8:0:1::1").await, 503);
    assert_eq!(status("::ffff:192.0.2.3").await, 503, "IPv4 in the form of IPv6");
    assert_eq!(status("::ffff:192.0.2.4").await, 503);
    assert_eq!(status("192.0.2.3").await, 429);
    let app = limited(1, 0);
    assert_eq!(app.get_with(USER, &[("x-forwarded-for", "192.0.2.1")]).await.status, 503);
    assert_eq!(app.get_with(USER, &[("x-forwarded-for", "192.0.2.2")]).await.status, 429, "believed by nobody");
}

#[tokio::test]
async fn only_pages_of_the_listed_origins_may_read_answers() {
    let listed = Origins::Listed(vec![HeaderValue::from_static("https://app.example.org")]);
    let app = App::limited(Limits { origins: listed, ..Limits::default() });
    let ask = |origin: &'static str| {
        let headers = [("origin", origin), ("access-control-request-method", "PATCH")];
        request("OPTIONS", USER, &headers, Body::empty())
    };
    let answer = app.send(ask("https://app.example.org")).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.org"));
    assert!(answer.header("access-control-allow-methods").expect("methods").contains("PATCH"));
    for field in ["authorization", "if-match", "idempotency-key", "prefer", "content-type"] {
        assert!(answer.header("access-control-allow-headers").expect("fields").contains(field), "{field}");
    }
    assert_eq!(app.send(ask("https://evil.example")).await.header("access-control-allow-origin"), None);

    // Errors too, and those most of all: a page must be able to tell its user what is wrong.
    let answer = app.get_with("/v1/users?limit=0", &[("origin", "https://app.example.org")]).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.org"));
    assert!(answer.header("access-control-expose-headers").expect("fields").contains("etag"));
    assert!(answer.header("vary").expect("a field").contains("origin"));
    let answer = app.get_with("/v1/users?limit=0", &[("origin", "https://evil.example")]).await;
    assert_eq!((answer.status.as_u16(), answer.header("access-control-allow-origin")), (400, None));
    let silent = App::unconnected().send(ask("https://app.example.org")).await;
    silent.assert_problem(ProblemKind::MethodNotAllowed, &[], "no origin is allowed unless it is set");
}

#[tokio::test]
async fn what_is_large_is_compressed_for_those_who_take_it() {
    let app = App::unconnected();
    for path in ["/", "/docs", "/openapi.json", "/problems"] {
        let plain = app.get(path).await;
        assert_eq!(plain.header("content-encoding"), None, "{path}");
        let compressed = app.get_with(path, &[("accept-encoding", "gzip, br")]).await;
        assert_eq!(compressed.header("content-encoding"), Some("gzip"), "{path}");
        assert!(
            compressed.body.len() * 3 < plain.body.len() * 2,
            "{path}: {} of {}",
            compressed.body.len(),
            plain.body.len()
        );
        let mut text = Vec::new();
        GzDecoder::new(&*compressed.body).read_to_end(&mut text).expect("gzip");
        assert_eq!(text, plain.body, "{path}");
        assert_eq!(compressed.header("vary"), Some("accept-encoding"), "{path}");
        assert_eq!(plain.header("vary"), Some("accept-encoding"), "{path}");
        let tags = (plain.header("etag"), compressed.header("etag"));
        assert!(tags.0.is_none() || tags.0 != tags.1, "{path}: a strong tag names bytes");
    }
    let small = app.get_with("/healthz", &[("accept-encoding", "gzip")]).await;
    assert_eq!((small.header("content-encoding"), small.text()), (None, "ok\n"));
}

#[tokio::test]
async fn only_documents_without_personal_data_are_kept_by_caches() {
    let app = App::unconnected();
    for path in ["/", "/docs", "/openapi.json", "/healthz", "/metrics", "/problems", "/v1/users?limit=0", "/nothing"] {
        let answer = app.get(path).await;
        let fixed = matches!(path, "/" | "/docs" | "/openapi.json");
        let expected = if fixed { "no-cache, no-transform" } else { "no-store, no-transform" };
        assert_eq!(answer.header("cache-control"), Some(expected), "{path}");
    }
}

#[tokio::test]
async fn the_front_page_leads_everywhere_and_loads_nothing_from_elsewhere() {
    let app = App::unconnected();
    let page = app.get("/").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.text().contains(&format!("version {}", env!("CARGO_PKG_VERSION"))), "{}", page.text());
    let links: Vec<&str> = page.text().split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    for link in links.iter().filter(|link| **link != "data:,") {
        assert!(link.starts_with('/'), "{link}");
        let answer = app.get(link).await;
        assert!(!matches!(answer.status.as_u16(), 404 | 405), "{link}: {}", answer.status);
    }
    assert!(links.len() > 6, "{links:?}");
}
