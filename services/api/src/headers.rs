//! Request headers and parameters that need more than a type.

use std::time::Duration;

use poem::http::HeaderMap;
use poem::{Request, RequestBody};
use poem_openapi::registry::{MetaParamIn, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};

use crate::problem::{Problem, ProblemKind};

/// A header field, its lines joined to one (RFC 9110 §5.3).
///
/// # Why not the library's parameter?
/// It takes the first line only, and none that has a byte outside ASCII: a condition would be dropped in silence.
#[derive(Debug)]
pub(crate) struct Field(pub(crate) Option<String>);

/// The lines of a field; what is not UTF-8 in them is replaced, so that it can match nothing.
pub(crate) fn lines(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    (!lines.is_empty()).then(|| lines.join(", "))
}

impl<'a> ApiExtractor<'a> for Field {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    const PARAM_IS_REQUIRED: bool = false;

    type ParamType = Option<String>;
    type ParamRawType = String;

    fn register(registry: &mut Registry) {
        <Option<String> as Type>::register(registry);
    }

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(<Option<String>>::schema_ref())
    }

    fn param_raw_type(&self) -> Option<&String> {
        self.0.as_ref()
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        options: ExtractParamOptions<Option<String>>,
    ) -> poem::Result<Self> {
        Ok(Self(lines(request.headers(), options.name)))
    }
}

/// Fields that have one value (RFC 9110, RFC 9651, Fetch Standard). Another reader of the same request may take the other one.
/// `Host` and `Content-Length` are looked at where the request is read, and of `traceparent` twice there is no trace.
const SINGLE: [&str; 19] = [
    "Access-Control-Request-Method",
    "Authorization",
    "Content-Encoding",
    "Content-Location",
    "Content-Range",
    "Content-Type",
    "Date",
    "Expect",
    "From",
    "Idempotency-Key",
    "If-Modified-Since",
    "If-Range",
    "If-Unmodified-Since",
    "Max-Forwards",
    "Origin",
    "Range",
    "Referer",
    "Sec-Fetch-Site",
    "User-Agent",
];

/// Refuses a field that is there more than once and has one value.
pub(crate) fn check_single(headers: &HeaderMap) -> Result<(), Problem> {
    // Nearly always all are different.
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    match SINGLE.into_iter().find(|name| headers.get_all(*name).iter().nth(1).is_some()) {
        Some(name) => Err(Problem::invalid_field(name, "is there more than once; send it once")),
        None => Ok(()),
    }
}

/// A longer wait is cut to this.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The wait that `Prefer: wait=N` asks for (RFC 7240 §4.3), at most [`LONGEST_WAIT`]. Other preferences, and what is no
/// preference, are ignored (§2); of several waits the first counts.
pub(crate) fn wait(prefer: Option<&str>) -> Option<Duration> {
    // What follows a semicolon is a parameter of the preference before it.
    let mut preferences =
        outside_quotes(prefer.unwrap_or_default(), ',').filter_map(|text| outside_quotes(text, ';').next());
    let value = preferences.find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then_some(value.trim().trim_matches('"'))
    })?;
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Digits that overflow are a very long wait.
    Some(value.parse().map_or(LONGEST_WAIT, Duration::from_secs).min(LONGEST_WAIT))
}

/// Splits at a separator that does not stand in a quoted string (RFC 9110 §5.6.4).
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        c == separator && !quoted
    })
}

/// An entity tag of a condition (RFC 9110 §8.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct EntityTag<'a> {
    weak: bool,
    /// With its quotes.
    opaque: &'a str,
}

/// The tags of a list (RFC 9110 §5.6.1); `None` when it is not one.
fn entity_tags(list: &str) -> Option<Vec<EntityTag<'_>>> {
    let blank = [' ', '\t'];
    let mut tags = Vec::new();
    let mut rest = list.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let weak = rest.starts_with("W/");
        let tag = if weak { &rest[2..] } else { rest };
        let end = tag.strip_prefix('"')?.find('"')? + 2;
        let (opaque, behind) = tag.split_at(end);
        if opaque.chars().any(|c| c.is_ascii_control() || c == ' ') {
            return None;
        }
        tags.push(EntityTag { weak, opaque });
        rest = behind.trim_start_matches(blank);
        if !rest.is_empty() {
            rest = rest.strip_prefix(',')?.trim_start_matches([' ', '\t', ',']);
        }
    }
    (!tags.is_empty()).then_some(tags)
}

/// The versions that `If-Match` names (RFC 9110 §13.1.1): none without a condition, and for `*`, which every existing user
/// matches.
///
/// # Errors
/// A value that is no list of tags; or 412 at once when no tag of it can match: this service never sent it, or it is weak.
pub(crate) fn if_match(header: Option<&str>) -> Result<Vec<i64>, Problem> {
    let Some(value) = header.map(str::trim).filter(|value| *value != "*") else { return Ok(Vec::new()) };
    let tags = entity_tags(value).ok_or_else(|| {
        Problem::invalid_field(
            "If-Match",
            "is no entity tag, list of them or *; send the ETag of the user as you got it, quotes included, like \"3\"",
        )
    })?;
    let version = |tag: &EntityTag<'_>| {
        let version = tag.opaque.trim_matches('"').parse().ok()?;
        (!tag.weak && entity_tag(version) == tag.opaque).then_some(version)
    };
    let mut versions: Vec<_> = tags.iter().filter_map(version).collect();
    versions.sort_unstable();
    versions.dedup();
    if !versions.is_empty() {
        return Ok(versions);
    }
    let lost = Problem::new(ProblemKind::VersionLost);
    if tags.iter().any(|tag| tag.weak) {
        return Err(lost.detail(
            "a weak tag (W/) never matches in If-Match (RFC 9110 §13.1.1); send the strong ETag of the service, which a \
             proxy that compresses answers may have weakened",
        ));
    }
    Err(lost)
}

/// The longest idempotency key.
const LONGEST_KEY: usize = 255;

/// The key that `Idempotency-Key` carries: visible ASCII characters, as they are or as a quoted string (RFC 9651 §3.3.3).
/// Several lines were joined by a blank, which no key has.
///
/// # Errors
/// A value that is not one key.
pub(crate) fn idempotency_key(header: Option<&str>) -> Result<Option<String>, Problem> {
    let Some(value) = header else { return Ok(None) };
    let key = if value.starts_with('"') { unquoted(value) } else { Some(value.to_owned()) };
    match key {
        Some(key) if (1..=LONGEST_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(key))
        }
        _ => Err(Problem::invalid_field(
            "Idempotency-Key",
            "is not one key of 1 to 255 visible ASCII characters; send a fresh UUID for each request and the same one \
             for its retries",
        )),
    }
}

/// What a quoted string says; `None` when it does not end as one, or has an escape that none knows.
fn unquoted(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => return rest.as_str().is_empty().then_some(text),
            '\\' => text.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => text.push(other),
        }
    }
}

/// Whether `If-None-Match` names the tag (RFC 9110 §13.1.2, weak comparison).
pub(crate) fn none_match(header: Option<&str>, tag: &str) -> bool {
    let value = header.unwrap_or_default().trim();
    value == "*" || entity_tags(value).is_some_and(|tags| tags.iter().any(|candidate| candidate.opaque == tag))
}

/// The `ETag` of a version.
pub(crate) fn entity_tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// What to say of a parameter whose type does not fit.
pub(crate) fn parameter_mend(name: &str) -> &'static str {
    match name {
        "user_id" => "is no UUID; give the id of a user as 36 characters like 01890a5d-ac96-774b-bcce-b302099a8057",
        "command_id" => "is no UUID; give the id from a 202 as 36 characters like 01890a5d-ac96-774b-bcce-b302099a8057",
        "limit" => "is no whole number from 1 to 200; leave it out for 50",
        "status" => "is unknown; give active or suspended, or leave it out for both",
        _ => "cannot be read; see the contract at /openapi.json",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_entity_tags_is_read_as_the_standard_has_it() {
        let tags = |list: &'static str| {
            let tags = entity_tags(list)?;
            Some(tags.iter().map(|tag| (tag.weak, tag.opaque)).collect::<Vec<_>>())
        };
        for (list, expected) in [
            ("\"1\"", vec![(false, "\"1\"")]),
            ("\"1\", W/\"7\"", vec![(false, "\"1\""), (true, "\"7\"")]),
            (" ,\"1\" ,, \"2\",", vec![(false, "\"1\""), (false, "\"2\"")]),
            ("\"a,b\",\"\"", vec![(false, "\"a,b\""), (false, "\"\"")]),
        ] {
            assert_eq!(tags(list), Some(expected), "{list}");
        }
        for list in
            ["", ",", "1", "\"1", "\"1\"2", "\"1\" \"2\"", "w/\"1\"", "W/ \"1\"", "*, \"1\"", "\"a b\"", "\"1\", *"]
        {
            assert_eq!(tags(list), None, "{list}");
        }
    }

    #[test]
    fn versions_come_from_strong_tags_of_ours() {
        let versions = |value| if_match(Some(value)).map_err(|problem| problem.kind);
        assert_eq!(if_match(None).expect("no condition"), Vec::<i64>::new());
        assert_eq!(versions("*"), Ok(vec![]));
        assert_eq!(versions("\"3\""), Ok(vec![3]));
        assert_eq!(versions("\"7\", W/\"2\", \"03\", \"1\", \"7\", \"abc\""), Ok(vec![1, 7]));
        for lost in ["W/\"3\"", "\"abc\"", "\"03\"", "\"\"", "\"a\", W/\"3\""] {
            assert_eq!(versions(lost), Err(ProblemKind::VersionLost), "{lost}");
        }
        for malformed in ["", "3", "\"3", "\"a b\"", "*, \"3\""] {
            assert_eq!(versions(malformed), Err(ProblemKind::InvalidRequest), "{malformed}");
        }
    }

    #[test]
    fn a_preference_that_cannot_be_read_is_ignored() {
        let seconds = |prefer| wait(Some(prefer)).map(|wait| wait.as_secs());
        for (prefer, expected) in [
            ("wait=5", Some(5)),
            ("WAIT = \"7\"; x=y", Some(7)),
            ("handling=strict, wait=0", Some(0)),
            ("wait=99999999999999999999999", Some(30)),
            ("wait=1, wait=b", Some(1)),
            ("wait", None),
            ("wait=", None),
            ("wait=-1", None),
            ("wait=1.5", None),
            ("wait=5s", None),
            ("x=\"a, wait=5\"", None),
            ("x; wait=5", None),
            ("=, ;;, \"", None),
        ] {
            assert_eq!(seconds(prefer), expected, "{prefer}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_the_same_with_and_without_quotes(key in "[!-~]{1,255}") {
            let quoted = format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""));
            prop_assert_eq!(idempotency_key(Some(&quoted)).expect("a key"), Some(key.clone()));
            if !key.starts_with('"') {
                prop_assert_eq!(idempotency_key(Some(&key)).expect("a key"), Some(key.clone()));
            }
        }

        #[test]
        fn no_header_makes_a_key_of_anything_else(text in "\\PC{0,300}") {
            if let Ok(Some(key)) = idempotency_key(Some(&text)) {
                prop_assert!((1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
