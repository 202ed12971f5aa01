//! The OpenAPI document, and what is mended in it.

use std::sync::Arc;

use poem_openapi::{OpenApiService, Tags};
use serde_json::{Value, json};

use crate::app::Api;
use crate::auth::SCHEME;
use crate::commands::CommandsApi;
use crate::edge::AllowedMethods;
use crate::users::UsersApi;

/// The groups of operations.
#[derive(Tags)]
pub(crate) enum Tag {
    /// The directory. Reads come from the database; every write becomes a command and is applied a moment later.
    Users,
    /// What became of a write.
    Commands,
}

/// Both groups of operations.
pub type Service = OpenApiService<(UsersApi, CommandsApi), ()>;

/// The service behind the document.
pub fn service(api: &Arc<Api>) -> Service {
    let operations = (UsersApi(Arc::clone(api)), CommandsApi(Arc::clone(api)));
    OpenApiService::new(operations, "Rollcall", "1.0.0")
        .description(
            "A user directory that does not lose a write. Reads are answered from PostgreSQL. Writes are accepted as \
             commands: a 202 says that the broker has the command for good, and `Location` is where its outcome can be \
             asked for. With `Prefer: wait=N` the answer is the outcome itself when it comes within N seconds. \
             A write with an `Idempotency-Key` can be sent again without taking effect again. \
             Errors are problem documents (RFC 9457); every `type` is described at its path.",
        )
        .license("MIT OR Apache-2.0")
        .server("/")
}

/// The document as it is served and checked in.
pub fn document(service: &Service) -> String {
    let mut document: Value = serde_json::from_str(&service.spec()).unwrap_or_default();
    plain_media_types(&mut document);
    scopes(&mut document);
    format!("{document:#}\n")
}

/// `application/json; charset=utf-8` is a valid key, but generators look for `application/json`.
fn plain_media_types(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(media) = members.remove("application/json; charset=utf-8") {
                members.insert("application/json".to_owned(), media);
            }
            members.values_mut().for_each(plain_media_types);
        }
        Value::Array(items) => items.iter_mut().for_each(plain_media_types),
        _ => {}
    }
}

/// A bearer scheme has no scopes in OpenAPI 3.0: those of an operation, of which any one will do, become a member of their own
/// and a sentence of the description.
fn scopes(document: &mut Value) {
    let operations =
        document.get_mut("paths").and_then(Value::as_object_mut).into_iter().flat_map(|paths| paths.values_mut());
    for operation in operations.filter_map(Value::as_object_mut).flat_map(|item| item.values_mut()) {
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
}

/// The methods of each path in the document.
pub(crate) fn allowed_methods(document: &str) -> AllowedMethods {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let paths = document.get("paths").and_then(Value::as_object).cloned().unwrap_or_default();
    let methods = |item: &Value| -> Vec<String> {
        let mut methods: Vec<_> =
            item.as_object().into_iter().flat_map(|item| item.keys()).map(|m| m.to_uppercase()).collect();
        if methods.iter().any(|method| method == "GET") {
            methods.push("HEAD".to_owned());
        }
        methods
    };
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}
