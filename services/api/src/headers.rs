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

/// A longer wait is cut to this.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The wait that `Prefer: wait=N` asks for (RFC 7240 §4.3), at most [`LONGEST_WAIT`]. Other preferences are ignored, and
/// of several waits the first counts.
///
/// # Errors
/// A `wait` that is no number of seconds.
pub(crate) fn wait(prefer: Option<&str>) -> Result<Option<Duration>, Problem> {
    // What follows a semicolon is a parameter of the preference before it.
    let preferences =
        outside_quotes(prefer.unwrap_or_default(), ',').filter_map(|text| outside_quotes(text, ';').next());
    let Some(value) = preferences
        .map(|preference| preference.split_once('=').unwrap_or((preference, "")))
        .find_map(|(name, value)| name.trim().eq_ignore_ascii_case("wait").then_some(value.trim().trim_matches('"')))
    else {
        return Ok(None);
    };
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        let fault = "wait is no whole number of seconds from 0 up; write it like wait=5";
        return Err(Problem::invalid_field("Prefer", fault));
    }
    // Digits that overflow are a very long wait.
    Ok(Some(value.parse().map_or(LONGEST_WAIT, Duration::from_secs).min(LONGEST_WAIT)))
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

/// Ours are much shorter.
const LONGEST_TAG: usize = 64;

/// The version that `If-Match` names (RFC 9110 §13.1.1): none for `*`, which every existing user matches.
///
/// # Errors
/// A value that is not one strong tag; or 412 at once for a tag that this service cannot have sent.
pub(crate) fn if_match(header: Option<&str>) -> Result<Option<i64>, Problem> {
    let Some(value) = header.map(str::trim) else { return Ok(None) };
    if value == "*" {
        return Ok(None);
    }
    let fault = || {
        Problem::invalid_field(
            "If-Match",
            "is not one strong entity tag; send the ETag of the user as you got it, quotes included, like \"3\"",
        )
    };
    let tag = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(fault)?;
    // RFC 9110 §8.8.3, without the bytes beyond ASCII.
    if tag.len() > LONGEST_TAG || !tag.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
        return Err(fault());
    }
    match tag.parse() {
        Ok(version) if entity_tag(version) == value => Ok(Some(version)),
        _ => Err(Problem::new(ProblemKind::VersionLost)),
    }
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
    header
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .any(|candidate| candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == tag)
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
