//! Whether a request comes from a program or a page of this machine, when nobody has to log in and only loopback is served.
//!
//! # Why is listening on loopback not enough?
//! A browser here carries out what any page of the web says. Such a page may send simple requests to every address (CSRF), or
//! have its own name resolve to this machine (DNS rebinding), and then reads the answers as its own.

use common::http::host::names_this_machine;
use poem::http::uri::Uri;
use poem::http::{HeaderMap, HeaderValue, header};

use crate::cors::Origins;
use crate::problem::{Problem, ProblemKind};

/// Refuses what names this machine by a name that others may own, and what comes from another page than its own and those
/// of `origins`.
pub(super) fn check(target: &Uri, headers: &HeaderMap, origins: &Origins) -> Result<(), Problem> {
    check_host(target, headers)?;
    let refuse = |detail: &str| Err(Problem::new(ProblemKind::CrossSite).detail(detail));
    let host = headers.get(header::HOST);
    let foreign =
        headers.get_all(header::ORIGIN).iter().any(|origin| !is_page_of(origin, host) && !origins.lists(origin));
    // Browsers leave out Origin where a page embeds or opens something, and say so in another field (Fetch Metadata).
    let embedded = !headers.contains_key(header::ORIGIN)
        && headers.get_all("sec-fetch-site").iter().any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
    if embedded {
        return refuse(
            "another site's page asks for this, as Sec-Fetch-Site says; open the address itself, or set AUTH",
        );
    }
    if foreign {
        return refuse("Origin is another site's page; list it in CORS_ORIGINS, or set AUTH");
    }
    Ok(())
}

/// Refuses what names this machine by a name that others may own.
pub(super) fn check_host(target: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    if names_this_machine(target, headers) {
        return Ok(());
    }
    let detail = "Host is a name that may be anybody's; ask for localhost or for an IP address, or set AUTH";
    Err(Problem::new(ProblemKind::CrossSite).detail(detail))
}

/// Whether a page came from the same host and port; a proxy may have spoken TLS to it.
fn is_page_of(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = host.and_then(|host| host.to_str().ok());
    matches!((origin, host), (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(host: Option<&str>, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if let Some(value) = value {
                headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
            }
        }
        check(&Uri::from_static("/v1/users"), &headers, &Origins::parse("https://desk.example.org").expect("an origin"))
            .is_ok()
    }

    #[test]
    fn a_name_that_may_be_anybodys_is_refused() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "app.localhost:8080",
            "localhost.",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.0.0.7",
        ] {
            assert!(admitted(Some(host), None), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.nip.io",
            "",
            "evil.example@localhost",
            "localhost:x",
            "localhost:99999",
            "[127.0.0.1]:1",
        ] {
            assert!(!admitted(Some(host), None), "{host}");
        }
        assert!(admitted(None, None));
    }

    #[test]
    fn a_page_of_another_site_is_refused_unless_it_is_listed() {
        let here = Some("localhost:8080");
        for origin in ["http://localhost:8080", "https://localhost:8080", "https://desk.example.org"] {
            assert!(admitted(here, Some(origin)), "{origin}");
        }
        for origin in ["http://localhost:3000", "http://localhost", "https://evil.example", "null", "localhost:8080"] {
            assert!(!admitted(here, Some(origin)), "{origin}");
        }
    }

    #[test]
    fn what_another_site_embeds_is_refused_though_it_names_no_origin() {
        let origins = Origins::parse("https://desk.example.org").expect("an origin");
        let admitted = |site: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:8080"));
            headers.insert("sec-fetch-site", HeaderValue::from_static(site));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            check(&Uri::from_static("/v1/users"), &headers, &origins).is_ok()
        };
        assert!(!admitted("cross-site", None) && !admitted("Cross-Site", None));
        for site in ["none", "same-origin", "same-site"] {
            assert!(admitted(site, None), "{site}");
        }
        assert!(admitted("cross-site", Some("https://desk.example.org")), "a page that is listed");
        assert!(!admitted("cross-site", Some("https://evil.example")));
    }

    #[test]
    fn a_target_that_names_another_host_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("localhost"));
        let admitted = |target| check(&Uri::from_static(target), &headers, &Origins::Own).is_ok();
        assert!(admitted("/v1/users") && admitted("http://127.0.0.1:8080/v1/users"));
        assert!(!admitted("http://evil.example/v1/users"));
    }
}
