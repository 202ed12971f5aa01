//! Query parameters that no operation knows, or that come twice, are refused.
//!
//! # Why not ignore them?
//! A filter that is misspelt (`?emial=`) would list everybody, and a switch that somebody expects (`?dry_run=true`) would
//! be a write. What is added for measuring or against caches is added to pages that people open; programs carry their
//! traces in headers (`traceparent`). So only what the contract names may come, for every operation alike. Probes, documents
//! and metrics do not look at their query, and anything may come there.
//!
//! # Why in two steps?
//! The middleware knows the contract and notes what may come. [`check`] runs in the parameter that every operation begins
//! with, once it is known who asks: nothing of a request is looked at before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use poem::http::Method;
use poem::{Endpoint, Middleware, Request, Response};
use serde_json::Value;
use url::form_urlencoded;

use crate::body::{MOST_UNKNOWN, shown};
use crate::edge::fits;
use crate::problem::{FieldFault, Problem};

/// The names that each operation takes, under its path template and method.
type Names = BTreeMap<(String, Method), Known>;

/// The names that the operation of a request takes.
#[derive(Debug, Clone)]
struct Known(Arc<BTreeSet<String>>);

/// The middleware.
#[derive(Debug)]
pub(crate) struct KnownQuery(Arc<Names>);

impl KnownQuery {
    /// For the operations of the contract.
    pub(crate) fn new(document: &Value) -> Self {
        let items = document["paths"].as_object().into_iter().flatten();
        let operations = items.flat_map(|(path, item)| {
            item.as_object().into_iter().flatten().filter_map(move |(method, operation)| {
                let method = method.to_uppercase().parse().ok()?;
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let query = parameters.filter(|parameter| parameter["in"] == "query");
                let names = query.filter_map(|parameter| parameter["name"].as_str()).map(str::to_owned);
                Some(((path.clone(), method), Known(Arc::new(names.collect()))))
            })
        });
        Self(Arc::new(operations.collect()))
    }
}

impl<E: Endpoint<Output = Response>> Middleware<E> for KnownQuery {
    type Output = KnownQueryEndpoint<E>;

    fn transform(&self, inner: E) -> KnownQueryEndpoint<E> {
        KnownQueryEndpoint { inner, names: Arc::clone(&self.0) }
    }
}

#[derive(Debug)]
pub(crate) struct KnownQueryEndpoint<E> {
    inner: E,
    names: Arc<Names>,
}

impl<E: Endpoint<Output = Response>> Endpoint for KnownQueryEndpoint<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        if request.uri().query().is_some_and(|query| !query.is_empty()) {
            let (path, method) = (request.uri().path(), request.method());
            let operation = self.names.iter().find(|((template, m), _)| m == method && fits(template, path));
            if let Some(known) = operation.map(|(_, known)| known.clone()) {
                request.set_data(known);
            }
        }
        self.inner.call(request).await
    }
}

/// Looks at the names of a request's query.
///
/// # Errors
/// Names each parameter that is unknown or comes twice.
pub(crate) fn check(request: &Request) -> Result<(), Problem> {
    let (Some(query), Some(Known(known))) = (request.uri().query(), request.data::<Known>()) else { return Ok(()) };
    let faults = faults(query, known);
    if faults.is_empty() { Ok(()) } else { Err(Problem::invalid(faults)) }
}

fn faults(query: &str, known: &BTreeSet<String>) -> Vec<FieldFault> {
    let (mut seen, mut named, mut faults) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        let detail = if !known.contains(name.as_ref()) {
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            match known.as_slice() {
                [] => "is unknown; remove it, this operation takes no query parameters".to_owned(),
                known => format!("is unknown; remove it, or write one of {}", known.join(", ")),
            }
        } else if seen.contains(&name) {
            "is there more than once; give it once".to_owned()
        } else {
            seen.insert(name);
            continue;
        };
        if named.insert(name.clone()) && faults.len() < MOST_UNKNOWN {
            let field = if name.is_empty() { "query".to_owned() } else { shown(&name) };
            faults.push(FieldFault { field, detail });
        }
    }
    faults
}
