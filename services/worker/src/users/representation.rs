//! Representation of a user after a change, as JSON: the members and formats are those of the HTTP API. Events and replies to
//! waiting clients carry it.

use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Judged;

/// Of a deleted user only the id and the version are there.
#[derive(Debug, Serialize)]
struct Representation<'a> {
    id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    version: i64,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    created_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    updated_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    suspended_at: Option<OffsetDateTime>,
}

/// The user at this version.
pub(super) fn of(judged: &Judged, version: i64) -> Arc<str> {
    let representation = Representation {
        id: judged.id,
        email: judged.email.as_deref(),
        name: judged.name.as_deref(),
        status: judged.status.as_deref(),
        version,
        created_at: judged.created_at,
        updated_at: judged.updated_at,
        suspended_at: judged.suspended_at,
    };
    // Cannot fail: every member is text, a number or an instant of the database, whose years have four digits.
    serde_json::to_string(&representation).unwrap_or_default().into()
}
