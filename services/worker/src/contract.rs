//! The AsyncAPI document of the change events.

use common::event::{CONTENT_TYPE, TYPES};
use serde_json::{Map, Value, json};

/// The document as it is checked in. `user` and `status` are the schemas of the same names in the HTTP contract: an event
/// carries the representation that the API gives.
pub fn document(user: &Value, status: &Value) -> String {
    let name = |kind: &str| kind.replace('.', "_");
    let channels: Map<String, Value> = TYPES.iter().map(|kind| (name(kind), channel(kind))).collect();
    let operations: Map<String, Value> =
        TYPES.iter().map(|kind| (format!("publish_{}", name(kind)), operation(&name(kind)))).collect();
    let messages: Map<String, Value> = TYPES.iter().map(|kind| (name(kind), message(kind))).collect();
    let document = json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rollcall change events",
            "version": "1.0.0",
            "description": "One CloudEvents 1.0 message per change of a user, in structured JSON mode, persistent, on one \
                topic exchange. Bind a queue of your own to the exchange `events` (with BROKER_PREFIX in front, if the \
                deployment has one), with `users.#` or single types as routing keys. Messages come at least once; tell \
                repetitions by `id`. The first messages of one user's events come in the order of its changes; \
                `data.version` grows by one with each. Let no queue refuse messages when it is full (`x-overflow` \
                `reject-publish`): the worker would try again without end, and the other subscribers would see repetitions. What is published while no queue is bound is not kept.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {
                "DeletedUser": deleted(),
                "User": user,
                "UserStatus": status,
            },
        },
    });
    format!("{document:#}\n")
}

fn channel(kind: &str) -> Value {
    let name = kind.replace('.', "_");
    json!({
        "address": kind,
        "messages": { name.as_str(): { "$ref": format!("#/components/messages/{name}") } },
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": { "name": "events", "type": "topic", "durable": true, "autoDelete": false, "vhost": "/" },
                "bindingVersion": "0.3.0",
            },
        },
    })
}

fn operation(name: &str) -> Value {
    json!({
        "action": "send",
        "channel": { "$ref": format!("#/channels/{name}") },
        "messages": [{ "$ref": format!("#/channels/{name}/messages/{name}") }],
        "bindings": { "amqp": { "deliveryMode": 2, "mandatory": false, "timestamp": true, "bindingVersion": "0.3.0" } },
    })
}

fn message(kind: &str) -> Value {
    let data = if kind == "users.deleted" { "DeletedUser" } else { "User" };
    json!({
        "name": kind,
        "title": title(kind),
        "contentType": CONTENT_TYPE,
        "payload": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
            "properties": {
                "specversion": { "const": "1.0" },
                "id": {
                    "type": "string",
                    "format": "uuid",
                    "description": "The id of the command that made the change; GET /v1/commands/{id} tells of it.",
                },
                "source": {
                    "type": "string",
                    "format": "uri-reference",
                    "description": "Which deployment it comes from (EVENT_SOURCE).",
                },
                "type": { "const": kind },
                "subject": { "type": "string", "format": "uuid", "description": "The user's id." },
                "time": { "type": "string", "format": "date-time", "description": "When the change was made." },
                "datacontenttype": { "const": "application/json" },
                "traceparent": { "type": "string", "description": "The request's trace (CloudEvents Distributed Tracing)." },
                "tracestate": { "type": "string", "description": "What the systems on the way added to it." },
                "data": { "$ref": format!("#/components/schemas/{data}") },
            },
        },
        "bindings": { "amqp": { "messageType": kind, "bindingVersion": "0.3.0" } },
    })
}

fn title(kind: &str) -> String {
    let past = kind.rsplit('.').next().unwrap_or(kind);
    format!("A user was {past}")
}

fn deleted() -> Value {
    json!({
        "title": "DeletedUser",
        "description": "What is left of a deleted user",
        "type": "object",
        "required": ["id", "version"],
        "properties": {
            "id": { "type": "string", "format": "uuid", "description": "The user's id." },
            "version": {
                "type": "integer",
                "format": "int64",
                "description": "Counts the changes; the deletion is the last.",
            },
        },
    })
}
