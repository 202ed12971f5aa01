//! The contract's examples are true: each request is sent as it stands there, and what comes back has the documented headers
//! and the shape of the documented answer.

use std::collections::BTreeSet;

use reqwest::{Method, Response};
use serde_json::Value;

use crate::harness::System;

/// An operation of the contract: its method, path template and description.
fn operation<'c>(contract: &'c Value, id: &str) -> (String, &'c str, &'c Value) {
    let paths = contract["paths"].as_object().unwrap().iter();
    let mut all = paths.flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, found)| (method.to_uppercase(), path.as_str(), found))
    });
    all.find(|(_, _, found)| found["operationId"] == id).unwrap_or_else(|| panic!("no operation {id}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn resolved<'c>(contract: &'c Value, schema: &'c Value) -> &'c Value {
    schema["$ref"].as_str().and_then(|found| contract.pointer(&found[1..])).unwrap_or(schema)
}

fn required<'c>(contract: &'c Value, schema: &'c Value) -> Vec<&'c str> {
    resolved(contract, schema)["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

/// The example shows every member that is there, each of its type, and what it shows beside that is optional.
fn assert_shape(contract: &Value, at: &str, schema: &Value, example: &Value, answer: &Value) {
    let schema = resolved(contract, schema);
    assert_eq!(kind(example), kind(answer), "{at}: {example} and {answer}");
    if let (Some(example), Some(answer)) = (example.as_array(), answer.as_array()) {
        for item in answer {
            assert_shape(contract, at, &schema["items"], example.first().unwrap(), item);
        }
    }
    let (Some(example), Some(answer)) = (example.as_object(), answer.as_object()) else { return };
    // Of alternatives, the one whose members are all there.
    let mut alternatives = schema["oneOf"].as_array().into_iter().flatten();
    let fits = |schema: &&Value| required(contract, schema).into_iter().all(|name| example.contains_key(name));
    let schema = alternatives.find(fits).map_or(schema, |found| resolved(contract, found));
    for name in required(contract, schema) {
        assert!(example.contains_key(name) && answer.contains_key(name), "{at}: {name} is missing");
    }
    for (name, value) in answer {
        let described = &schema["properties"][name];
        assert!(!described.is_null(), "{at}: {name} is not in the contract");
        if let Some(shown) = example.get(name) {
            let described = described["allOf"].get(0).unwrap_or(described);
            assert_shape(contract, &format!("{at}.{name}"), described, shown, value);
        }
    }
}

async fn assert_documented(contract: &Value, id: &str, response: Response) -> Value {
    let (_, _, operation) = operation(contract, id);
    let at = format!("{id} {}", response.status().as_u16());
    let documented = &operation["responses"][response.status().as_str()];
    assert!(documented.is_object(), "{at} is not in the contract");
    for (name, header) in documented["headers"].as_object().into_iter().flatten() {
        let found = response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        assert!(found.is_some() || header["required"] != true, "{at}: {name} is missing");
        let (example, found) = (header["example"].as_str().unwrap_or_default(), found.unwrap_or_default());
        match name.as_str() {
            "Location" => assert_eq!(collection(example), collection(&found), "{at}"),
            // Without a wait the examples come in another order.
            "ETag" if response.headers().contains_key("preference-applied") => assert_eq!(example, found, "{at}"),
            _ => {}
        }
    }
    let body = response.bytes().await.unwrap();
    let Some(media) = documented.pointer("/content/application~1json") else {
        assert_eq!(body.len(), 0, "{at} has a body");
        return Value::Null;
    };
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let examples = media["examples"].as_object().into_iter().flat_map(|examples| examples.values());
    let fitting = examples.map(|example| &example["value"]).find(|example| example["status"] == answer["status"]);
    let example = media.get("example").or(fitting).unwrap_or_else(|| panic!("{at} has no example"));
    assert_shape(contract, &at, &media["schema"], example, &answer);
    // A create is `users.create`, whoever asks for it, and what was suspended says since when.
    for member in ["type", "status", "suspended_at"] {
        assert_eq!(example[member].is_null(), answer[member].is_null(), "{at}: {member}");
        if member != "suspended_at" && id != "get_command" {
            assert_eq!(example[member], answer[member], "{at}: {member}");
        }
    }
    if id != "get_user" && example["version"].is_number() {
        assert_eq!((&example["version"], &example["name"]), (&answer["version"], &answer["name"]), "{at}");
    }
    answer
}

/// A path without the id at its end.
fn collection(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

/// Sends what the contract shows: the example of each header and of the body. Only the ids are those of this directory.
async fn send(
    system: &System,
    url: impl Fn(&str) -> String,
    contract: &Value,
    id: &str,
    of: &str,
    wait: bool,
) -> Response {
    let (method, path, operation) = operation(contract, id);
    let path = path.replace("{user_id}", of).replace("{command_id}", of);
    let mut request = system.client.request(Method::from_bytes(method.as_bytes()).unwrap(), url(&path));
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    for parameter in parameters.filter(|parameter| parameter["in"] == "header" && parameter["example"].is_string()) {
        if wait || parameter["name"] != "Prefer" {
            request = request.header(parameter["name"].as_str().unwrap(), parameter["example"].as_str().unwrap());
        }
    }
    if let Some(content) = operation["requestBody"]["content"].as_object() {
        let (media_type, media) = content.iter().next().unwrap();
        request = request.header("content-type", media_type).body(media["example"].to_string());
    }
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_contract_is_answered_as_it_is_shown() {
    let system = System::prepare().await;
    let (api, _worker) = tokio::join!(system.api(), system.worker());
    let contract: Value = system.get(&api, "/openapi.json").await.json().await.unwrap();
    let url = |path: &str| api.url(path);
    let mut sent = BTreeSet::new();
    let mut check = async |id: &'static str, of: &str, wait: bool, status: u16| {
        let response = send(&system, url, &contract, id, of, wait).await;
        assert_eq!(response.status().as_u16(), status, "{id}");
        sent.insert(id.to_owned());
        assert_documented(&contract, id, response).await
    };
    let user = check("create_user", "", true, 201).await["id"].as_str().unwrap().to_owned();
    for (id, status) in [
        ("get_user", 200),
        ("list_users", 200),
        ("update_user", 200),
        ("suspend_user", 200),
        ("reactivate_user", 200),
        ("get_user_history", 200),
    ] {
        check(id, &user, true, status).await;
    }
    // The same without a wait, and what became of it.
    for id in ["update_user", "suspend_user", "reactivate_user"] {
        let command = check(id, &user, false, 202).await;
        check("get_command", command["id"].as_str().unwrap(), true, 200).await;
    }
    check("delete_user", &user, true, 204).await;
    check("get_user_history", &user, true, 200).await;
    let again = check("create_user", "", false, 202).await;
    check("get_command", again["id"].as_str().unwrap(), true, 200).await;
    check("delete_user", again["user_id"].as_str().unwrap(), false, 202).await;

    for id in ["list_users", "get_user_history"] {
        let (_, _, operation) = operation(&contract, id);
        let link = operation["responses"]["200"]["headers"]["Link"]["example"].as_str().unwrap();
        let target = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
        assert_eq!(system.get(&api, target).await.status(), 200, "{target}");
    }

    let all = contract["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values());
    let all: BTreeSet<_> = all.map(|operation| operation["operationId"].as_str().unwrap().to_owned()).collect();
    assert_eq!(sent, all, "an operation was not tried");
}
