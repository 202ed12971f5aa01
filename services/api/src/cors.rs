//! Which pages of other origins may call the API from a browser (Fetch Standard, CORS protocol). Without a setting none may.

use poem::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use poem::{Request, Response};
use url::Url;

/// Fields that a page may send beside those that always are allowed.
const REQUEST_FIELDS: &str =
    "authorization, content-type, idempotency-key, if-match, if-none-match, prefer, traceparent, tracestate";
/// Fields that a page may read beside those that it always may.
const RESPONSE_FIELDS: &str = "accept, accept-encoding, accept-patch, etag, link, location, preference-applied, ratelimit, \
     ratelimit-policy, retry-after, www-authenticate";
const METHODS: &str = "GET, HEAD, POST, PATCH, DELETE";
/// For how long a browser need not ask again, in seconds.
const MAX_AGE: &str = "600";

/// The origins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// None but the API's own, which needs no leave.
    #[default]
    Own,
    /// Every one.
    Any,
    /// These.
    Listed(Vec<HeaderValue>),
}

impl Origins {
    /// Reads a list, separated by commas, or `*`.
    ///
    /// # Errors
    /// Names the entry that is no origin.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origin = |entry: &str| {
            let url = Url::parse(entry).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
            let same = url.is_some_and(|url| url.origin().ascii_serialization() == entry);
            HeaderValue::from_str(entry).ok().filter(|_| same)
        };
        let read = |entry: &str| {
            origin(entry.trim()).ok_or_else(|| {
                format!(
                    "{entry:?} is no origin; write scheme://host or scheme://host:port in lower case, without a path"
                )
            })
        };
        text.split(',').map(read).collect::<Result<_, _>>().map(Self::Listed)
    }

    /// Whether pages of this origin are let in by name.
    pub(crate) fn lists(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Own => false,
            Self::Any => true,
            Self::Listed(origins) => origins.contains(origin),
        }
    }

    /// The answer to a browser that asks before a request; `None` for everything else.
    pub(crate) fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if *self == Self::Own || request.method() != Method::OPTIONS || !asks {
            return None;
        }
        let answer = Response::builder()
            .status(StatusCode::NO_CONTENT)
            .header(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS)
            .header(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_FIELDS)
            .header(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        Some(answer.finish())
    }

    /// Says to the browser whether the page of this origin may read the answer.
    pub(crate) fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let allowed = match (self, origin) {
            (Self::Own, _) => return,
            (Self::Any, _) => Some(HeaderValue::from_static("*")),
            (Self::Listed(_), origin) => origin.filter(|origin| self.lists(origin)).cloned(),
        };
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(allowed) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(RESPONSE_FIELDS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_origin_is_named() {
        for wrong in [
            "example.org",
            "https://example.org/",
            "https://Example.org",
            "ftp://example.org",
            "null",
            "https://a, b",
            "",
        ] {
            Origins::parse(wrong).expect_err(wrong);
        }
        let two = Origins::parse("https://example.org, http://localhost:3000").expect("two origins");
        let expected = ["https://example.org", "http://localhost:3000"].map(HeaderValue::from_static).to_vec();
        assert_eq!(two, Origins::Listed(expected));
        assert_eq!(Origins::parse("*"), Ok(Origins::Any));
    }
}
