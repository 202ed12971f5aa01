//! One request to one instance, and what its answer means.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Shared;
use crate::torture::promises::{Kind, Request};

/// For outcomes; below the deadline of the answer.
const WAIT: &str = "wait=5";
/// The problem of a command that is parked.
const PARKED: &str = "command-parked";

/// What came back.
pub(super) enum Answer {
    /// The command resource.
    Promised(Value),
    /// Waited for: the user, none when it was deleted.
    Succeeded(Option<Value>),
    /// Waited for.
    Rejected { id: Uuid, reason: String },
    /// Waited for: an operator has to look, and the outcome comes then.
    Parked(Uuid),
    /// Nothing was promised.
    Refused,
    /// It may be applied or not.
    Unknown,
}

/// Sends it once.
pub(super) async fn send(shared: &Shared, base: &str, request: &Request, user: Option<Uuid>) -> Answer {
    let path = path(request.kind, user);
    let _under_way = shared.gate.read().await;
    let mut call = shared.http.request(method(request.kind), format!("{base}{path}"));
    call = match request.kind {
        Kind::Create => call.json(&json!({ "email": request.email, "name": request.name })),
        Kind::Update => call.json(&json!({ "name": request.name })),
        Kind::Suspend | Kind::Reactivate | Kind::Delete => call,
    };
    if let Some(version) = request.if_match {
        call = call.header("if-match", format!("\"{version}\""));
    }
    if let Some(key) = &request.key {
        call = call.header("idempotency-key", key);
    }
    if request.wait {
        call = call.header("prefer", WAIT);
    }
    let Ok(answer) = call.send().await else { return Answer::Unknown };
    let status = answer.status();
    // An answer that was cut off after its head is one of which nothing is known.
    let Ok(text) = answer.text().await else { return Answer::Unknown };
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    match status {
        StatusCode::ACCEPTED => Answer::Promised(body),
        StatusCode::NO_CONTENT => Answer::Succeeded(None),
        StatusCode::OK | StatusCode::CREATED => Answer::Succeeded(Some(body)),
        StatusCode::SERVICE_UNAVAILABLE => Answer::Refused,
        StatusCode::GATEWAY_TIMEOUT => Answer::Unknown,
        other => match rejection(&body) {
            Some((id, reason)) if request.wait && reason == PARKED => Answer::Parked(id),
            Some((id, reason)) if request.wait => Answer::Rejected { id, reason },
            _ => {
                shared.wrong(format!("{path} was answered with {other}: {text}"));
                Answer::Unknown
            }
        },
    }
}

/// What a problem says of a command.
fn rejection(problem: &Value) -> Option<(Uuid, String)> {
    let id = problem["command_id"].as_str()?.parse().ok()?;
    let reason = problem["type"].as_str()?.rsplit('/').next()?;
    Some((id, reason.to_owned()))
}

fn method(kind: Kind) -> Method {
    match kind {
        Kind::Create | Kind::Suspend | Kind::Reactivate => Method::POST,
        Kind::Update => Method::PATCH,
        Kind::Delete => Method::DELETE,
    }
}

fn path(kind: Kind, user: Option<Uuid>) -> String {
    let user = user.unwrap_or_default();
    match kind {
        Kind::Create => "/v1/users".to_owned(),
        Kind::Update | Kind::Delete => format!("/v1/users/{user}"),
        Kind::Suspend => format!("/v1/users/{user}/suspend"),
        Kind::Reactivate => format!("/v1/users/{user}/reactivate"),
    }
}
