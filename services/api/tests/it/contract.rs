//! The generated contract: current, complete, and true of the answers that the other tests see.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Arc, LazyLock};

use common::shutdown::Shutdown;
use rollcall_api::app::Api;
use rollcall_api::contract;
use rollcall_api::problem::ProblemKind;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::support::{Answer, App};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/rollcall.json");

static CONTRACT: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(FILE).expect("the contract");
    serde_json::from_str(&text).expect("the contract in JSON")
});

/// Every operation with its method in capitals.
pub(crate) fn operations() -> impl Iterator<Item = (String, &'static str, &'static Value)> {
    let paths = CONTRACT["paths"].as_object().expect("paths").iter();
    let items = paths.map(|(path, item)| (path.as_str(), item.as_object().expect("a path item")));
    items.flat_map(|(path, item)| item.iter().map(move |(method, op)| (method.to_uppercase(), path, op)))
}

fn statuses(operation: &Value) -> BTreeSet<String> {
    operation["responses"].as_object().expect("responses").keys().cloned().collect()
}

/// The contract must mention the answer's status at the operation that gave it.
#[track_caller]
pub(crate) fn assert_documented(method: &str, path: &str, answer: &Answer, reason: &str) {
    let path = path.split('?').next().unwrap_or_default();
    let fits = |template: &str| {
        template.split('/').count() == path.split('/').count()
            && template.split('/').zip(path.split('/')).all(|(t, p)| t == p || t.starts_with('{'))
    };
    let found = operations().find(|(m, template, _)| m == method && fits(template));
    let (_, template, operation) = found.unwrap_or_else(|| panic!("{reason}: {method} {path} is not in the contract"));
    let status = answer.status.as_u16().to_string();
    assert!(statuses(operation).contains(&status), "{reason}: {method} {template} does not document {status}");
}

#[tokio::test]
async fn the_file_is_what_the_code_generates() {
    let api = Api::unconnected(&Shutdown::default()).expect("an API without servers");
    let generated = contract::document(&contract::service(&Arc::new(api)));
    let file = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(file == generated, "openapi/rollcall.json is stale: run `cargo run -- generate`");
    let served = App::unconnected().get("/openapi.json").await;
    assert_eq!(served.header("content-type"), Some("application/json"));
    assert!(served.text() == file, "/openapi.json is not the file");
}

/// Hash maps between the code and the text would show as differences that nobody made.
#[tokio::test]
async fn the_contract_is_the_same_bytes_each_time() {
    let generate = || {
        let api = Api::unconnected(&Shutdown::default()).expect("an API without servers");
        contract::document(&contract::service(&Arc::new(api)))
    };
    let first = generate();
    assert!((0..5).all(|_| generate() == first), "two runs differ");
}

/// Every problem of an operation, with an example that is one of its status and says nothing that is not in its schema.
#[test]
fn every_failure_lists_its_problems_with_true_examples() {
    let mut seen = HashSet::new();
    let schema = &CONTRACT["components"]["schemas"]["Problem"]["properties"];
    for (_, _, operation) in operations() {
        let failures = operation["responses"].as_object().expect("responses").iter();
        for (status, response) in failures.filter(|(status, _)| status.as_str() >= "400") {
            let at = format!("{} {status}", operation["operationId"]);
            let examples = response["content"]["application/problem+json"]["examples"].as_object();
            let examples = examples.unwrap_or_else(|| panic!("{at} names no problem"));
            assert!(!examples.is_empty(), "{at} names no problem");
            for (name, example) in examples {
                let kind = ProblemKind::ALL.iter().find(|kind| kind.name() == name);
                let kind = kind.unwrap_or_else(|| panic!("{at}: {name} is no problem"));
                let value = &example["value"];
                assert_eq!(
                    (value["status"].to_string(), kind.status().to_string()),
                    (status.clone(), status.clone()),
                    "{at}"
                );
                assert_eq!(
                    (&value["type"], &value["title"]),
                    (&kind.uri().into(), &kind.title().into()),
                    "{at} {name}"
                );
                assert!(
                    value.as_object().expect("an object").keys().all(|member| !schema[member].is_null()),
                    "{at} {name}"
                );
                assert!(
                    response["description"].as_str().is_some_and(|text| text.contains(kind.title())),
                    "{at} {name}"
                );
                seen.insert(*kind);
            }
            let headers = response["headers"].as_object();
            let has = |name: &str| headers.is_some_and(|headers| headers[name]["required"] == true);
            match status.as_str() {
                "401" => assert!(has("WWW-Authenticate"), "{at}"),
                "429" => assert!(["Retry-After", "RateLimit", "RateLimit-Policy"].into_iter().all(has), "{at}"),
                "503" => assert!(has("Retry-After"), "{at}"),
                // What may be there: the counts of the rate, a challenge to those who lack a scope.
                _ => assert!(headers.is_some_and(|headers| headers.keys().all(|name| !has(name))), "{at}"),
            }
        }
    }
    // What is answered where no operation is, or by what is none.
    let elsewhere = [ProblemKind::NoSuchRoute, ProblemKind::MethodNotAllowed];
    for kind in ProblemKind::ALL {
        assert_eq!(seen.contains(kind), !elsewhere.contains(kind), "{kind:?}");
    }
}

/// What tools show, and what generators make method and type names of.
#[test]
fn every_operation_parameter_and_answer_is_described() {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    for (_, _, operation) in operations() {
        let name = &operation["operationId"];
        assert!(text(&operation["summary"]) && text(&operation["description"]), "{name}");
        assert_eq!(operation["tags"].as_array().map(Vec::len), Some(1), "{name}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(text(&parameter["description"]), "{name} {}", parameter["name"]);
        }
        for (status, response) in operation["responses"].as_object().expect("responses") {
            assert!(text(&response["description"]), "{name} {status}");
            for (header, described) in response["headers"].as_object().into_iter().flatten() {
                assert!(text(&described["description"]), "{name} {status} {header}");
                assert!(!header.contains(':'), "{name} {status}: {header} is a mark that nobody took");
            }
            if let Some(media) = response.pointer("/content/application~1json") {
                assert!(media.get("example").or(media.get("examples")).is_some(), "{name} {status} has no example");
            }
        }
        let body = operation["requestBody"]["content"].as_object().into_iter().flat_map(|content| content.values());
        body.for_each(|media| assert!(media["example"].is_object(), "{name} shows no request"));
    }
}

#[test]
fn the_operations_are_those_of_the_design() {
    let found: BTreeSet<_> = operations()
        .map(|(method, path, op)| format!("{method} {path} {}", op["operationId"].as_str().unwrap_or("-")))
        .collect();
    let expected = [
        "DELETE /v1/users/{user_id} delete_user",
        "GET /v1/commands/{command_id} get_command",
        "GET /v1/users list_users",
        "GET /v1/users/{user_id} get_user",
        "GET /v1/users/{user_id}/history get_user_history",
        "PATCH /v1/users/{user_id} update_user",
        "POST /v1/users create_user",
        "POST /v1/users/{user_id}/reactivate reactivate_user",
        "POST /v1/users/{user_id}/suspend suspend_user",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
    let ids: HashSet<_> = operations().map(|(_, _, op)| op["operationId"].to_string()).collect();
    assert_eq!(ids.len(), expected.len(), "operation ids are unique");
}

#[test]
fn every_operation_documents_its_failures_as_problem_documents() {
    for (method, path, operation) in operations() {
        let name = &operation["operationId"];
        let documented = statuses(operation);
        let mut needed = BTreeSet::from(["400", "401", "403", "414", "431", "500", "503"]);
        if path.contains('{') {
            needed.insert("404");
        }
        if method != "GET" {
            needed.extend(["409", "422", "504"]);
            let takes_key =
                operation["parameters"].as_array().into_iter().flatten().any(|p| p["name"] == "Idempotency-Key");
            assert!(takes_key, "{name} takes no Idempotency-Key");
        }
        if operation.get("requestBody").is_some() {
            needed.extend(["408", "413", "415"]);
        }
        let takes_condition =
            operation["parameters"].as_array().into_iter().flatten().any(|parameter| parameter["name"] == "If-Match");
        if takes_condition {
            needed.insert("412");
        }
        for status in needed {
            assert!(documented.contains(status), "{name} does not document {status}");
        }
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let code: u16 = status.parse().unwrap_or_else(|_| panic!("{name}: {status} is no status"));
            let types: Vec<_> = response["content"].as_object().into_iter().flat_map(|c| c.keys()).collect();
            match code {
                400.. => {
                    assert_eq!(types, ["application/problem+json"], "{name} {status}");
                    let schema = &response["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{name} {status}");
                }
                204 | 304 => assert!(types.is_empty(), "{name} {status}"),
                _ => assert_eq!(types, ["application/json"], "{name} {status}"),
            }
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} {status}");
        }
    }
}

/// A new operation has the scope of its kind, or its exception here.
#[test]
fn every_operation_asks_for_the_scope_of_its_kind() {
    for (method, path, operation) in operations() {
        let expected: &[&str] = match (method.as_str(), path) {
            ("GET", "/v1/commands/{command_id}") => &["users:read", "users:write"],
            ("GET", path) if path.ends_with("/history") => &["history:read"],
            ("GET", _) => &["users:read"],
            _ => &["users:write"],
        };
        assert_eq!(operation["x-required-scope"], serde_json::json!(expected), "{method} {path}");
    }
    let scheme = &CONTRACT["components"]["securitySchemes"]["bearer"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&"http".into(), &"bearer".into()));
}

#[test]
fn a_promise_to_look_again_comes_with_where_and_when() {
    for (_, _, operation) in operations() {
        if let Some(accepted) = operation["responses"].get("202") {
            for header in ["Location", "Retry-After"] {
                let documented =
                    accepted["headers"].as_object().expect("headers").keys().any(|h| h.eq_ignore_ascii_case(header));
                assert!(documented, "{} 202 {header}", operation["operationId"]);
            }
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| walk(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let mut references = Vec::new();
    walk(&CONTRACT, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let target = reference.strip_prefix('#').and_then(|pointer| CONTRACT.pointer(pointer));
        assert!(target.is_some(), "{reference}");
    }
}

/// JSON in which no object has a member twice; most readers keep one of them in silence.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Walk)
    }
}

struct Walk;

impl<'de> Visitor<'de> for Walk {
    type Value = Unambiguous;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unambiguous, A::Error> {
        let mut seen = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Unambiguous>()? {
            if seen.insert(key.clone(), value).is_some() {
                return Err(A::Error::custom(format_args!("the member {key:?} is there twice")));
            }
        }
        Ok(Unambiguous)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Unambiguous, A::Error> {
        while seq.next_element::<Unambiguous>()?.is_some() {}
        Ok(Unambiguous)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_unit<E: Error>(self) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }
}

#[tokio::test]
async fn the_generator_writes_no_member_twice() {
    let twice = serde_json::from_str::<Unambiguous>(r#"{"a":{"b":1,"b":2}}"#);
    assert!(twice.is_err_and(|fault| fault.to_string().contains("twice")), "the check itself works");
    let api = Api::unconnected(&Shutdown::default()).expect("an API without servers");
    // What the library writes, before the mends: those would hide it.
    let raw = contract::service(&Arc::new(api)).spec();
    serde_json::from_str::<Unambiguous>(&raw).map(drop).expect("unique members");
}
