//! What is changed in the contract before the generator reads it, each with its reason. The contract itself stays as it is.

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

/// Schemas that stand for types of the client's own.
pub(crate) const WRITTEN_BY_HAND: [(&str, &str); 3] = [
    ("Timestamp", "crate::Timestamp"),
    ("WrittenUser", "crate::Written<crate::types::User>"),
    ("WrittenNothing", "crate::Written<()>"),
];

/// What a value must be like.
const CHECKS: [&str; 5] = ["minLength", "maxLength", "pattern", "minimum", "maximum"];

/// Mends the whole document.
pub(crate) fn mend(document: &mut Value) -> anyhow::Result<()> {
    for path in members(&mut document["paths"])? {
        for operation in members(path)? {
            mend_operation(operation)?;
        }
    }
    let schemas = document["components"]["schemas"].as_object_mut().context("the contract has no schemas")?;
    // `Written` stands for it.
    schemas.remove("WriteOutcome").context("the contract has no WriteOutcome")?;
    for schema in schemas.values_mut() {
        mend_schema(schema);
    }
    for (name, _) in WRITTEN_BY_HAND {
        ensure!(
            schemas.insert(name.to_owned(), json!({ "type": "object" })).is_none(),
            "the contract has a {name} now"
        );
    }
    Ok(())
}

fn members(value: &mut Value) -> anyhow::Result<impl Iterator<Item = &mut Value>> {
    Ok(value.as_object_mut().context("an object was expected")?.values_mut())
}

fn mend_operation(operation: &mut Value) -> anyhow::Result<()> {
    // The generator knows two kinds of answers, those of 2xx and of 4xx and 5xx. Without If-None-Match there is no 304.
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["name"] != "If-None-Match");
        parameters.iter_mut().filter_map(|parameter| parameter.get_mut("schema")).for_each(mend_schema);
    }
    if let Some(body) = operation.get_mut("requestBody") {
        rename_media_types(body);
    }
    let responses = operation["responses"].as_object_mut().context("an operation without responses")?;
    for response in responses.values_mut() {
        rename_media_types(response);
    }
    // Every status from 400 on comes with the same document, those that no operation lists (431, say) included.
    let before = responses.len();
    responses.retain(|status, _| status.starts_with('2'));
    ensure!(responses.len() < before, "an operation that cannot fail");
    let problem =
        json!({ "description": "A problem.", "content": { "application/json": { "schema": reference("Problem") } } });
    responses.extend(["4XX", "5XX"].map(|range| (range.to_owned(), problem.clone())));
    // It also knows one type for all of 2xx. A write is a user, or nothing, when its outcome was waited for and may be read, and
    // else a command.
    if responses.contains_key("202") {
        let name = if responses.contains_key("204") { "WrittenNothing" } else { "WrittenUser" };
        let content = json!({ "application/json": { "schema": reference(name) } });
        for (_, response) in responses.iter_mut().filter(|(status, _)| status.starts_with('2')) {
            response["content"] = content.clone();
        }
    }
    Ok(())
}

/// It takes no JSON under another name. The service takes a merge patch under this one, too.
fn rename_media_types(holder: &mut Value) {
    let Some(content) = holder.get_mut("content").and_then(Value::as_object_mut) else { return };
    let renamed: Map<String, Value> =
        std::mem::take(content).into_values().map(|media| ("application/json".to_owned(), media)).collect();
    *content = renamed;
}

fn mend_schema(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(mend_schema),
        Value::Object(members) => {
            // It would use chrono; times are `time`'s in this workspace.
            if members.get("format").is_some_and(|format| format == "date-time") {
                *schema = reference("Timestamp");
                return;
            }
            // A reference beside a description would become a type of its own.
            if let Some(Value::Array(all)) = members.get("allOf")
                && let Some(only) = all.iter().find(|part| part.get("$ref").is_some())
            {
                *schema = only.clone();
                return;
            }
            // Each would become a type with its own check. The service checks, and its answer names the mend.
            members.retain(|name, _| !CHECKS.contains(&name.as_str()));
            members.values_mut().for_each(mend_schema);
        }
        _ => {}
    }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
