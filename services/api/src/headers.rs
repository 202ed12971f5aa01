//! Request headers and parameters that need more than a type.

use std::time::Duration;

use crate::problem::{Problem, ProblemKind};

/// A longer wait is cut to this.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The wait that `Prefer: wait=N` asks for (RFC 7240 §4.3), at most [`LONGEST_WAIT`]. Other preferences are ignored.
///
/// # Errors
/// A `wait` that is no number of seconds.
pub(crate) fn wait(prefer: Option<&str>) -> Result<Option<Duration>, Problem> {
    let preferences = prefer.unwrap_or_default().split([',', ';']).map(str::trim);
    let Some(value) = preferences
        .filter_map(|preference| preference.split_once('='))
        .find_map(|(name, value)| name.trim().eq_ignore_ascii_case("wait").then_some(value.trim().trim_matches('"')))
    else {
        return Ok(None);
    };
    let seconds: u32 = value.parse().map_err(|_| {
        Problem::invalid_field("Prefer", "wait is no whole number of seconds from 0 up; write it like wait=5")
    })?;
    Ok(Some(Duration::from_secs(seconds.into()).min(LONGEST_WAIT)))
}

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
    if tag.contains('"') || !tag.is_ascii() {
        return Err(fault());
    }
    match tag.parse() {
        Ok(version) if entity_tag(version) == value => Ok(Some(version)),
        _ => Err(Problem::new(ProblemKind::VersionLost)),
    }
}

/// Whether `If-None-Match` names the version (RFC 9110 §13.1.2, weak comparison).
pub(crate) fn none_match(header: Option<&str>, version: i64) -> bool {
    let tag = entity_tag(version);
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
        "status" => "is neither active nor suspended",
        _ => "cannot be read; see the contract at /openapi.json",
    }
}
