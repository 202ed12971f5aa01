//! What a client of an older contract would stumble over in a newer one. It errs on the side of asking: a change that it does
//! not understand, like another pattern, is named.

use std::collections::BTreeSet;

use serde_json::Value;

/// Who writes what a schema describes: a stricter request breaks clients, and so does a response that says less.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// Both contracts, and what was found.
struct Comparison<'d> {
    old: &'d Value,
    new: &'d Value,
    found: Vec<String>,
    /// Pairs of references that are being compared: schemas may contain themselves.
    open: Vec<(String, String)>,
}

/// Every breaking change, each with its place.
pub(super) fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut comparison = Comparison { old, new, found: Vec::new(), open: Vec::new() };
    for (path, item) in members(&old["paths"]) {
        for (method, before) in members(item) {
            let at = format!("{} {path}", method.to_uppercase());
            match new["paths"][path].get(method) {
                Some(after) => comparison.operation(&at, before, after),
                None => comparison.note(&at, "is gone"),
            }
        }
    }
    comparison.found
}

impl Comparison<'_> {
    fn note(&mut self, at: &str, what: impl AsRef<str>) {
        self.found.push(format!("{at} {}", what.as_ref()));
    }

    fn operation(&mut self, at: &str, before: &Value, after: &Value) {
        if before["operationId"] != after["operationId"] {
            self.note(
                at,
                format!("is called {} now, which is a method's name in generated clients", after["operationId"]),
            );
        }
        // Any one of them will do, so each that is gone shuts somebody out.
        for scope in strings(&before["x-required-scope"]).difference(&strings(&after["x-required-scope"])) {
            self.note(at, format!("no longer serves those with the scope {scope}"));
        }
        self.parameters(at, before, after);
        self.content(&format!("{at} request"), Side::Request, &before["requestBody"], &after["requestBody"]);
        if before["requestBody"]["required"] != true && after["requestBody"]["required"] == true {
            self.note(at, "needs a body now");
        }
        for (status, response) in members(&before["responses"]) {
            let at = format!("{at} {status}");
            let Some(answer) = after["responses"].get(status) else {
                self.note(&at, "is no longer answered");
                continue;
            };
            for (name, _) in members(&response["headers"]) {
                if answer["headers"].get(name).is_none() {
                    self.note(&at, format!("has no header {name} any more"));
                }
            }
            self.content(&at, Side::Response, response, answer);
        }
    }

    fn parameters(&mut self, at: &str, before: &Value, after: &Value) {
        let key = |parameter: &Value| (parameter["in"].clone(), parameter["name"].clone());
        let (before, after) = (items(&before["parameters"]), items(&after["parameters"]));
        for parameter in before {
            let at = format!("{at} parameter {}", name(parameter));
            match after.iter().find(|other| key(other) == key(parameter)) {
                Some(other) => {
                    if parameter["required"] != true && other["required"] == true {
                        self.note(&at, "is required now");
                    }
                    self.schema(&at, Side::Request, &parameter["schema"], &other["schema"]);
                }
                None => self.note(&at, "is gone"),
            }
        }
        for parameter in after.iter().filter(|parameter| parameter["required"] == true) {
            if !before.iter().any(|other| key(other) == key(parameter)) {
                self.note(at, format!("needs the new parameter {}", name(parameter)));
            }
        }
    }

    fn content(&mut self, at: &str, side: Side, before: &Value, after: &Value) {
        for (media_type, media) in members(&before["content"]) {
            match after["content"].get(media_type) {
                Some(other) => self.schema(at, side, &media["schema"], &other["schema"]),
                None => self.note(at, format!("has no {media_type} any more")),
            }
        }
    }

    fn schema(&mut self, at: &str, side: Side, before: &Value, after: &Value) {
        let pair = (before["$ref"].to_string(), after["$ref"].to_string());
        let named = before.get("$ref").is_some() && after.get("$ref").is_some();
        if named && self.open.contains(&pair) {
            return;
        }
        self.open.push(pair);
        let (before, after) = (resolved(self.old, before), resolved(self.new, after));
        for keyword in ["type", "format"] {
            if before[keyword] != after[keyword] && (keyword == "type" || after.get(keyword).is_some()) {
                self.note(at, format!("has the {keyword} {} instead of {}", after[keyword], before[keyword]));
            }
        }
        self.values(at, side, before, after);
        let (needed_before, needed_after) = (strings(&before["required"]), strings(&after["required"]));
        for (member, schema) in members(&before["properties"]) {
            match after["properties"].get(member) {
                Some(other) => self.schema(&format!("{at}.{member}"), side, schema, other),
                None => self.note(&format!("{at}.{member}"), "is gone"),
            }
        }
        let changed = match side {
            Side::Request => needed_after.difference(&needed_before),
            Side::Response => needed_before.difference(&needed_after),
        };
        for member in changed {
            match side {
                Side::Request => self.note(&format!("{at}.{member}"), "is required now"),
                Side::Response if after["properties"].get(member).is_some() => {
                    self.note(&format!("{at}.{member}"), "may be missing now");
                }
                Side::Response => {}
            }
        }
        if before.get("items").is_some() {
            self.schema(&format!("{at}[]"), side, &before["items"], &after["items"]);
        }
        self.open.pop();
    }

    /// What values there may be: fewer break who sends them, more break who reads them.
    fn values(&mut self, at: &str, side: Side, before: &Value, after: &Value) {
        let (old, new) = (strings(&before["enum"]), strings(&after["enum"]));
        match side {
            Side::Request if !new.is_empty() && old.is_empty() => self.note(at, "takes only certain values now"),
            Side::Request => {
                for value in old.difference(&new).filter(|_| !new.is_empty()) {
                    self.note(at, format!("no longer takes {value}"));
                }
            }
            Side::Response => {
                for value in new.difference(&old).filter(|_| !old.is_empty()) {
                    self.note(at, format!("can be {value} now"));
                }
            }
        }
        if side == Side::Response {
            return;
        }
        for (bound, tighter) in
            [("minimum", 1.0), ("minLength", 1.0), ("minProperties", 1.0), ("maximum", -1.0), ("maxLength", -1.0)]
        {
            if let Some(limit) = after[bound].as_f64()
                && before[bound].as_f64().is_none_or(|earlier| (limit - earlier) * tighter > 0.0)
            {
                self.note(at, format!("has the {bound} {limit} now"));
            }
        }
        if after.get("pattern").is_some() && before["pattern"] != after["pattern"] {
            self.note(at, "has another pattern");
        }
        if after["additionalProperties"] == false && before["additionalProperties"] != false {
            self.note(at, "refuses unknown members now");
        }
    }
}

/// The schema behind a reference, or behind the only part of an `allOf`.
fn resolved<'d>(document: &'d Value, schema: &'d Value) -> &'d Value {
    let behind = match (schema["$ref"].as_str(), items(&schema["allOf"])) {
        (Some(reference), _) => reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer)),
        (None, [only]) => Some(only),
        _ => None,
    };
    behind.map_or(schema, |behind| resolved(document, behind))
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value) -> BTreeSet<&str> {
    items(value).iter().filter_map(Value::as_str).collect()
}

fn name(parameter: &Value) -> &str {
    parameter["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn contract() -> Value {
        serde_json::from_str(&super::super::contract().expect("a contract")).expect("JSON")
    }

    type Change = fn(&mut Value);

    fn found(change: Change) -> Vec<String> {
        let old = contract();
        let mut new = old.clone();
        change(&mut new);
        assert_ne!(old, new, "the change changes nothing");
        changes(&old, &new)
    }

    fn remove(value: &mut Value, pointer: &str, member: &str) {
        let members = value.pointer_mut(pointer).and_then(Value::as_object_mut).expect("an object");
        members.remove(member).expect("the member");
    }

    #[tokio::test]
    async fn a_contract_does_not_break_itself() {
        let contract = contract();
        assert_eq!(changes(&contract, &contract), Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_breaks_a_client_is_named() {
        let rows: &[(&str, Change)] = &[
            ("GET /v1/users/{user_id}/history is gone", |c| remove(c, "/paths/~1v1~1users~1{user_id}~1history", "get")),
            ("DELETE /v1/users/{user_id} is gone", |c| remove(c, "/paths", "/v1/users/{user_id}")),
            ("GET /v1/users is called", |c| c["paths"]["/v1/users"]["get"]["operationId"] = "users".into()),
            ("users:write", |c| c["paths"]["/v1/users"]["post"]["x-required-scope"] = json!(["admin"])),
            ("GET /v1/users/{user_id} 200.email is gone", |c| {
                remove(c, "/components/schemas/User/properties", "email");
            }),
            ("GET /v1/users 200.items[].name may be missing now", |c| {
                c["components"]["schemas"]["User"]["required"] = json!(["id"]);
            }),
            ("GET /v1/users/{user_id} 200.version has the type \"string\"", |c| {
                c["components"]["schemas"]["User"]["properties"]["version"]["type"] = "string".into();
            }),
            ("POST /v1/users request.locale is required now", |c| {
                c["components"]["schemas"]["NewUser"]["properties"]["locale"] = json!({ "type": "string" });
                c["components"]["schemas"]["NewUser"]["required"] = json!(["email", "name", "locale"]);
            }),
            ("POST /v1/users request.name is gone", |c| remove(c, "/components/schemas/NewUser/properties", "name")),
            ("POST /v1/users request.name has the maxLength 100", |c| {
                c["components"]["schemas"]["NewUser"]["properties"]["name"]["maxLength"] = 100.into();
            }),
            ("GET /v1/users parameter status no longer takes suspended", |c| {
                c["components"]["schemas"]["UserStatus"]["enum"] = json!(["active"]);
            }),
            ("GET /v1/users/{user_id} 200.status can be deleted now", |c| {
                c["components"]["schemas"]["UserStatus"]["enum"] = json!(["active", "suspended", "deleted"]);
            }),
            ("GET /v1/users parameter limit is gone", |c| {
                let parameters = c["paths"]["/v1/users"]["get"]["parameters"].as_array_mut().expect("parameters");
                parameters.retain(|parameter| parameter["name"] != "limit");
            }),
            ("GET /v1/users needs the new parameter tenant", |c| {
                let parameters = c["paths"]["/v1/users"]["get"]["parameters"].as_array_mut().expect("parameters");
                parameters.push(json!({ "name": "tenant", "in": "query", "required": true, "schema": {} }));
            }),
            ("PATCH /v1/users/{user_id} parameter Prefer is required now", |c| {
                let parameters = c["paths"]["/v1/users/{user_id}"]["patch"]["parameters"].as_array_mut();
                let prefer = parameters.expect("parameters").iter_mut().find(|parameter| parameter["name"] == "Prefer");
                prefer.expect("the parameter")["required"] = true.into();
            }),
            ("POST /v1/users 202 is no longer answered", |c| remove(c, "/paths/~1v1~1users/post/responses", "202")),
            ("POST /v1/users 202 has no header Location any more", |c| {
                remove(c, "/paths/~1v1~1users/post/responses/202/headers", "Location");
            }),
            ("POST /v1/users request has no application/json any more", |c| {
                remove(c, "/paths/~1v1~1users/post/requestBody/content", "application/json");
            }),
        ];
        for (expected, change) in rows {
            let found = found(*change);
            assert!(found.iter().any(|change| change.contains(expected)), "{expected}: {found:?}");
        }
    }

    #[tokio::test]
    async fn what_no_client_notices_is_not_named() {
        let rows: &[(&str, Change)] = &[
            ("a new operation", |c| c["paths"]["/v1/teams"] = json!({ "get": { "operationId": "list_teams" } })),
            ("a new member of an answer", |c| {
                c["components"]["schemas"]["User"]["properties"]["locale"] = json!({ "type": "string" });
            }),
            ("a new optional member of a request", |c| {
                c["components"]["schemas"]["NewUser"]["properties"]["locale"] = json!({ "type": "string" });
            }),
            ("a longer name", |c| {
                c["components"]["schemas"]["NewUser"]["properties"]["name"]["maxLength"] = 300.into();
            }),
            ("a new status", |c| {
                c["paths"]["/v1/users"]["get"]["responses"]["418"] = json!({ "description": "A teapot" });
            }),
            ("another word", |c| c["info"]["description"] = "Users".into()),
        ];
        for (reason, change) in rows {
            assert_eq!(found(*change), Vec::<String>::new(), "{reason}");
        }
    }
}
