//! JSON payload: an answer is serialised straight into its body.
//!
//! # Why not the library's payload?
//! It builds a tree of values first, in which every member and every text is an allocation of its own. The schema in the contract
//! is the library's; a test compares what both write.

use poem::{IntoResponse, Response};
use poem_openapi::payload::{Json as LibraryJson, Payload};
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use serde::Serialize;

/// An answer in JSON.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: Type> Payload for Json<T> {
    const CONTENT_TYPE: &'static str = LibraryJson::<T>::CONTENT_TYPE;

    fn schema_ref() -> MetaSchemaRef {
        T::schema_ref()
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        poem::web::Json(self.0).into_response()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use poem_openapi::types::ToJSON;

    use super::*;

    /// Asserts that a value is written as the library would write it, by whose schema clients read it.
    #[track_caller]
    pub(crate) fn assert_written_as_described<T: Serialize + ToJSON>(value: &T) {
        assert_eq!(Some(serde_json::to_value(value).expect("JSON")), value.to_json());
    }
}
