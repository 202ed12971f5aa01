//! The OpenAPI document; `mend` is what the generator cannot say or says in a way that others stumble over,
//! with `examples`.

mod examples;
mod mend;

use std::sync::Arc;

use poem_openapi::{LicenseObject, OpenApiService, ServerObject, Tags};
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::{Uuid, uuid};

use crate::app::Api;
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

/// The ids and the instant in examples.
pub(crate) const EXAMPLE_USER: Uuid = uuid!("01890a5d-ac96-774b-bcce-b302099a8057");
pub(crate) const EXAMPLE_COMMAND: Uuid = uuid!("01890a5d-ac96-774b-bcce-b30209a9a5c3");
pub(crate) const EXAMPLE_TIME: OffsetDateTime = datetime!(2026-11-22 08:31:12.006 UTC);

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
        .license(LicenseObject::new("MIT OR Apache-2.0").url("https://spdx.org/licenses/"))
        .server(ServerObject::new("/").description("The instance that serves this document"))
}

/// The document as it is served and checked in.
pub fn document(service: &Service) -> String {
    text(&mended(service))
}

/// The document with its mends.
pub(crate) fn mended(service: &Service) -> Value {
    let mut document = serde_json::from_str(&service.spec()).unwrap_or_default();
    mend::all(&mut document);
    document
}

/// The document as text.
pub(crate) fn text(document: &Value) -> String {
    format!("{document:#}\n")
}

/// The methods of each path in the document.
pub(crate) fn allowed_methods(document: &Value) -> AllowedMethods {
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
