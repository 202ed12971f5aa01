//! Response fields that keep browsers from misusing an answer, on every answer of both services.

use http::header::{CONTENT_SECURITY_POLICY, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};

/// Fetch Standard §3.7.
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// An answer that is no page loads nothing and is shown in no frame (OWASP ASVS 5.0, 3.4.3, 3.4.4, 3.4.6 and 3.5.8).
const FIELDS: [(HeaderName, &str); 3] = [
    (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// Adds them, except for those that an answer has: a page has a policy of its own.
pub(super) fn protect(headers: &mut HeaderMap) {
    for (name, value) in FIELDS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// The same as text.
pub(super) fn lines() -> String {
    FIELDS.iter().fold(String::new(), |lines, (name, value)| format!("{lines}{name}: {value}\r\n"))
}
