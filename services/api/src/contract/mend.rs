//! What the generator cannot say of the operations, and what others stumble over in what it writes. Each mend says why.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::examples::{self, Answer};
use crate::auth::SCHEME;
use crate::cursor;
use crate::problem::{CONTENT_TYPE, MARK, ProblemKind};

/// All mends, in their order.
pub(super) fn all(document: &mut Value) {
    // A place for each kind of rule, in the order in which they stand below.
    everywhere(document);
    schemas(document);
    let schemas = document["components"]["schemas"].clone();
    for operation in operations(document) {
        scopes(operation);
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            describe(parameter);
        }
        request_example(operation, &schemas);
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        let scope = operation["x-required-scope"][0].as_str().unwrap_or_default().to_owned();
        for (status, response) in operation.get_mut("responses").and_then(Value::as_object_mut).into_iter().flatten() {
            let answer = Answer { operation: &id, status, scope: &scope };
            problems(answer, response);
            headers(answer, response);
            if answer.of_read() {
                cached(answer, response);
            }
            response_example(answer, response, &schemas);
            links(&id, response);
        }
    }
    document["components"]["links"] = all_links();
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let items =
        document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flat_map(|paths| paths.values_mut());
    items.filter_map(Value::as_object_mut).flat_map(|item| item.values_mut())
}

/// - `application/json; charset=utf-8` is a valid key, but generators look for `application/json`.
/// - `deprecated: false` and `explode` are written out where they say what goes without saying.
/// - Bounds of integers come as `200.0`, which generators for typed languages print as a fraction.
/// - OpenAPI knows `int32` and `int64`; validators warn of `uint32`.
/// - `allOf` of a reference and a description makes generators invent a type for each use; in OpenAPI 3.0 nothing may stand
///   beside a bare reference, so an `allOf` of the reference alone remains, with the description beside it.
fn everywhere(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(media) = members.remove("application/json; charset=utf-8") {
                members.insert("application/json".to_owned(), media);
            }
            if members.get("deprecated") == Some(&Value::Bool(false)) {
                members.remove("deprecated");
            }
            if members.contains_key("in") {
                members.remove("explode");
            }
            for bound in ["minimum", "maximum"] {
                if let Some(number) = members.get(bound).and_then(Value::as_f64).filter(|n| n.fract() == 0.0) {
                    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction, and bounds are small")]
                    members.insert(bound.to_owned(), (number as i64).into());
                }
            }
            for (unsigned, signed) in [("uint16", "int32"), ("uint32", "int32")] {
                if members.get("format").is_some_and(|format| format == unsigned) {
                    members.insert("format".to_owned(), signed.into());
                }
            }
            if let Some(Value::Array(parts)) = members.get_mut("allOf") {
                parts.retain(|part| part.get("$ref").is_some());
            }
            members.values_mut().for_each(everywhere);
        }
        Value::Array(items) => items.iter_mut().for_each(everywhere),
        _ => {}
    }
}

/// A name without white space at either end, control characters and invisible characters. A pattern that every tool reads has
/// no classes of Unicode, so it does not know invisible characters beyond U+FFFF, nor behind what a joiner may stand.
fn name_pattern() -> String {
    const SPACES: &str = r"\u0020\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000";
    const CONTROLS: &str = r"\u0000-\u001f\u007f-\u009f";
    const JOINERS: &str = r"\u200c\u200d";
    const INVISIBLE: &str = r"\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb";
    let edge = format!("[^{SPACES}{CONTROLS}{JOINERS}{INVISIBLE}]");
    format!("^{edge}(?:[^{CONTROLS}{INVISIBLE}]*{edge})?$")
}

/// The checks of the command contract as schemas: the bodies are read by hand, so the generator knows none of them.
fn schemas(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    for body in ["NewUser", "UserPatch"] {
        let schema = &mut schemas[body];
        // Unknown members are refused.
        schema["additionalProperties"] = false.into();
        schema["properties"]["email"]["format"] = "email".into();
        schema["properties"]["name"]["pattern"] = name_pattern().into();
    }
    schemas["UserPatch"]["minProperties"] = 1.into();
    schemas["User"]["properties"]["email"]["format"] = "email".into();
    for (schema, member) in [("User", "version"), ("Command", "user_version"), ("HistoryEntry", "user_version")] {
        schemas[schema]["properties"][member]["minimum"] = 1.into();
    }
    schemas["Problem"]["properties"]["type"]["format"] = "uri-reference".into();
    for page in ["UserPage", "HistoryPage"] {
        for member in ["next_cursor", "prev_cursor"] {
            schemas[page]["properties"][member]["pattern"] = cursor::PATTERN.into();
        }
        schemas[page]["properties"]["items"]["maxItems"] = 200.into();
    }
}

/// A bearer scheme has no scopes in OpenAPI 3.0: those of an operation, of which any one will do, become a member of their own
/// and a sentence of the description.
fn scopes(operation: &mut Value) {
    let named = operation["security"].as_array().into_iter().flatten().filter_map(Value::as_object);
    let scopes: Vec<String> = named.flat_map(|scheme| scheme.keys().cloned()).collect();
    let marked: Vec<_> = scopes.iter().map(|scope| format!("`{scope}`")).collect();
    let sentence = format!("Needs the scope {}.", marked.join(" or "));
    let description = match operation["description"].as_str() {
        Some(text) => format!("{text}\n\n{sentence}"),
        None => sentence,
    };
    operation["description"] = description.into();
    operation["security"] = json!([{ SCHEME: [] }]);
    operation["x-required-scope"] = scopes.into();
}

/// Header and query parameters are read by hand as well. An example is what tools send unless told otherwise: so there is none
/// where that would change the answer, like a filter or a condition, and none of a key that is to be fresh each time.
fn describe(parameter: &mut Value) {
    let pattern = match parameter["name"].as_str().unwrap_or_default() {
        "If-Match" => r#"^(?:[*]|"[!#-~]{0,64}")$"#,
        "Idempotency-Key" => r#"^(?:[!#-~][!-~]{0,254}|"(?:[!#-\[\]-~]|\\["\\]){1,255}")$"#,
        "cursor" => cursor::PATTERN,
        "email" => r"^[^\u0000]*$",
        "Prefer" => {
            parameter["example"] = "wait=5".into();
            return;
        }
        "user_id" => {
            parameter["example"] = super::EXAMPLE_USER.to_string().into();
            return;
        }
        "command_id" => {
            parameter["example"] = super::EXAMPLE_COMMAND.to_string().into();
            return;
        }
        _ => return,
    };
    parameter["schema"]["pattern"] = pattern.into();
    if parameter["in"] == "header" {
        parameter["schema"]["minLength"] = 1.into();
    }
}

/// The name of the schema that a media type refers to.
fn schema_name(media: &Value) -> Option<&str> {
    media["schema"]["$ref"].as_str()?.strip_prefix("#/components/schemas/")
}

/// Examples of schemas are not shown for a request or response by every tool.
fn request_example(operation: &mut Value, schemas: &Value) {
    let content = operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
    for media in content.into_iter().flat_map(|content| content.values_mut()) {
        if let Some(example) = schema_name(media).map(|name| &schemas[name]["example"]).filter(|e| !e.is_null()) {
            media["example"] = example.clone();
        }
    }
}

fn response_example(answer: Answer<'_>, response: &mut Value, schemas: &Value) {
    let Some(media) = response.pointer_mut("/content/application~1json") else { return };
    let Some(schema) = schema_name(media).map(str::to_owned) else { return };
    if answer.operation == "get_command" {
        media["examples"] = examples::looked_up();
        return;
    }
    if schema == "WriteOutcome" {
        media["examples"] = answer.outcomes();
        return;
    }
    let example = answer.body(&schema).unwrap_or_else(|| schemas[&schema]["example"].clone());
    if !example.is_null() {
        media["example"] = example;
    }
}

/// The generator has no place for the examples of a response: its problems come as names of headers.
fn problems(answer: Answer<'_>, response: &mut Value) {
    let Some(named) = response.get_mut("headers").and_then(Value::as_object_mut) else { return };
    let marks: Vec<_> = named.keys().filter(|name| name.starts_with(MARK)).cloned().collect();
    let (mut lines, mut examples) = (Vec::new(), BTreeMap::new());
    for mark in marks {
        named.remove(&mark);
        if let Some(kind) = ProblemKind::named(mark.trim_start_matches(MARK)) {
            lines.push((kind.title(), kind.description().trim()));
            examples.insert(kind.name(), json!({ "summary": kind.title(), "value": kind.example(answer.of_read()) }));
        }
    }
    let description = match lines.as_slice() {
        [] => return,
        [(title, description)] => format!("{title}. {description}"),
        several => several.iter().map(|(title, text)| format!("- {title}. {text}")).collect::<Vec<_>>().join("\n"),
    };
    response["description"] = description.into();
    response["content"][CONTENT_TYPE]["examples"] = json!(examples);
}

/// Headers come in capitals and without a word, and those of problems do not come at all.
fn headers(answer: Answer<'_>, response: &mut Value) {
    let described = |name: &str| -> Value {
        let (description, schema): (&str, Value) = match name {
            "Location" => (
                "Where the outcome, or what was created, can be read.",
                json!({ "type": "string", "format": "uri-reference" }),
            ),
            "ETag" => (
                "The version of the user; `If-Match` and `If-None-Match` take it.",
                json!({ "type": "string", "pattern": "^\"[0-9]+\"$" }),
            ),
            "Retry-After" => {
                ("In how many seconds to ask again.", json!({ "type": "integer", "format": "int32", "minimum": 0 }))
            }
            "Preference-Applied" => (
                "The wait that was granted; absent unless one was asked for (RFC 7240).",
                json!({ "type": "string", "pattern": "^wait=[0-9]+$" }),
            ),
            "Link" => (
                "The pages before and behind this one (RFC 8288): `rel=\"prev\"` and `rel=\"next\"`; absent when there is neither.",
                json!({ "type": "string" }),
            ),
            "WWW-Authenticate" => ("What would let the client in (RFC 6750).", json!({ "type": "string" })),
            "Accept" | "Accept-Patch" => ("The media type that is taken.", json!({ "type": "string" })),
            "Accept-Encoding" => {
                ("How the body may be encoded; there when that was the fault.", json!({ "type": "string" }))
            }
            "RateLimit" => (
                "How many requests are left (`r`), and in how many seconds all of them are again (`t`); absent where there is no limit.",
                json!({ "type": "string" }),
            ),
            "RateLimit-Policy" => (
                "How many requests (`q`) a caller may send at once, and as many again in so many seconds (`w`); absent where there is no limit.",
                json!({ "type": "string" }),
            ),
            _ => (
                "Nothing of this may be kept without asking again; it is for this client alone.",
                json!({ "type": "string" }),
            ),
        };
        json!({ "description": description, "schema": schema, "example": answer.header(name) })
    };
    let mut named = Map::new();
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let known = ["Location", "ETag", "Retry-After", "Preference-Applied", "Link"];
        let name = known.iter().find(|known| known.eq_ignore_ascii_case(name)).map_or(name.as_str(), |name| *name);
        let mut mended = described(name);
        if header["required"] == true {
            mended["required"] = true.into();
        }
        named.insert(name.to_owned(), mended);
    }
    if answer.status == "403" {
        // A page of another site is told nothing that would let it in.
        named.insert("WWW-Authenticate".to_owned(), described("WWW-Authenticate"));
    }
    if answer.status == "415" {
        for name in [if answer.operation == "update_user" { "Accept-Patch" } else { "Accept" }, "Accept-Encoding"] {
            named.insert(name.to_owned(), described(name));
        }
    }
    // Whatever is answered counts, but not what is no request.
    for name in ["RateLimit", "RateLimit-Policy"] {
        named.insert(name.to_owned(), described(name));
    }
    for name in always(answer.status) {
        let mut header = described(name);
        header["required"] = true.into();
        named.insert((*name).to_owned(), header);
    }
    response["headers"] = named.into();
}

/// The headers that every answer with this status has.
fn always(status: &str) -> &'static [&'static str] {
    match status {
        "401" => &["WWW-Authenticate"],
        "429" => &["Retry-After", "RateLimit", "RateLimit-Policy"],
        "503" => &["Retry-After"],
        _ => &[],
    }
}

/// What may be kept matters where something is read.
fn cached(answer: Answer<'_>, response: &mut Value) {
    if matches!(answer.status, "200" | "304") {
        response["headers"]["Cache-Control"] = json!({
            "description": "It may be kept by this client alone, and not be shown again without asking.",
            "required": true,
            "schema": { "type": "string" },
            "example": answer.header("Cache-Control"),
        });
    }
}

/// Where an answer leads. Only what is always there is linked: tools take a link that cannot be followed for a fault, and a last
/// page leads nowhere.
fn links(operation: &str, response: &mut Value) {
    let Some(media) = response.pointer("/content/application~1json") else { return };
    let names: &[&str] = match schema_name(media) {
        Some("User") => &["GetUser", "UpdateUser", "DeleteUser", "SuspendUser", "ReactivateUser", "GetUserHistory"],
        // A pending command that is looked up does not say whose it is.
        Some("Command") if operation == "get_command" => &["GetCommand"],
        Some("Command") => &["GetCommand", "GetUserOfCommand"],
        _ => return,
    };
    let links = names.iter().map(|name| ((*name).to_owned(), json!({ "$ref": format!("#/components/links/{name}") })));
    response["links"] = links.collect::<Map<_, _>>().into();
}

/// The generator knows no links.
fn all_links() -> Value {
    let link = |operation: &str, parameter: &str, from: &str, description: &str| {
        json!({
            "operationId": operation,
            "parameters": { parameter: format!("$response.body#/{from}") },
            "description": description,
        })
    };
    json!({
        "GetUser": link("get_user", "user_id", "id", "The user as it is now."),
        "UpdateUser": link("update_user", "user_id", "id", "Changes it; send the `ETag` as `If-Match` to lose nobody's change."),
        "DeleteUser": link("delete_user", "user_id", "id", "Deletes it."),
        "SuspendUser": link("suspend_user", "user_id", "id", "Suspends it."),
        "ReactivateUser": link("reactivate_user", "user_id", "id", "Reactivates it."),
        "GetUserHistory": link("get_user_history", "user_id", "id", "What was done to it."),
        "GetCommand": link("get_command", "command_id", "id", "What became of the command."),
        "GetUserOfCommand": link("get_user", "user_id", "user_id", "The user, once the command has succeeded."),
    })
}
