//! Query parameters that no operation knows, or that come twice, are refused, and so are conditions that it does not look at,
//! and content where it takes none.
//!
//! # Why not ignore them?
//! A filter that is misspelt (`?emial=`) would list everybody, and a switch that somebody expects (`?dry_run=true`) would
//! be a write. What is added for measuring or against caches is added to pages that people open; programs carry their
//! traces in headers (`traceparent`). So only what the contract names may come, for every operation alike. Probes, documents
//! and metrics do not look at their query, and anything may come there. A write under a condition that is not looked at would
//! change what the client wanted left alone (RFC 9110 §13), and content that is not read may be what the client counts on.
//!
//! # Why in two steps?
//! The middleware knows the contract and notes what may come. [`check`] runs in the parameter that every operation begins
//! with, once it is known who asks: nothing of a request is looked at before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use poem::http::Method;
use poem::{Endpoint, Middleware, Request, RequestBody, Response};
use serde_json::Value;
use url::form_urlencoded;

use crate::body::{MOST_UNKNOWN, has_content, shown};
use crate::edge::fits;
use crate::problem::{FieldFault, Problem};

/// The names that each operation takes, under its path template and method.
type Names = BTreeMap<(String, Method), Known>;

/// What the operation of a request takes.
#[derive(Debug, Clone)]
struct Known(Arc<Parameters>);

#[derive(Debug)]
struct Parameters {
    query: BTreeSet<String>,
    takes_content: bool,
    /// Conditions that would go unheard.
    unheard: Vec<&'static str>,
}

/// What cannot hold where it is not looked at: `If-None-Match` of a read does, for what has no tag matches none.
const CONDITIONS: [(&str, &[Method]); 2] = [("If-Match", &[]), ("If-None-Match", &[Method::GET])];

/// The middleware.
#[derive(Debug)]
pub(crate) struct KnownQuery(Arc<Names>);

impl KnownQuery {
    /// For the operations of the contract.
    pub(crate) fn new(document: &Value) -> Self {
        let items = document["paths"].as_object().into_iter().flatten();
        let operations = items.flat_map(|(path, item)| {
            item.as_object().into_iter().flatten().filter_map(move |(method, operation)| {
                let method: Method = method.to_uppercase().parse().ok()?;
                let parameters = operation["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
                let named = |place| {
                    let there = parameters.iter().filter(move |parameter| parameter["in"] == place);
                    there.filter_map(|parameter| parameter["name"].as_str())
                };
                let unheard = CONDITIONS.into_iter().filter(|(name, harmless)| {
                    !harmless.contains(&method) && !named("header").any(|known| known == *name)
                });
                let unheard = unheard.map(|(name, _)| name).collect();
                let query = named("query").map(str::to_owned).collect();
                let takes_content = !operation["requestBody"].is_null();
                Some(((path.clone(), method), Known(Arc::new(Parameters { query, takes_content, unheard }))))
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
        let conditional = CONDITIONS.iter().any(|(name, _)| request.headers().contains_key(*name));
        let body = request.take_body();
        let content = !body.is_empty();
        request.set_body(body);
        if conditional || content || request.uri().query().is_some_and(|query| !query.is_empty()) {
            let (path, method) = (request.uri().path(), request.method());
            let operation = self.names.iter().find(|((template, m), _)| m == method && fits(template, path));
            if let Some(known) = operation.map(|(_, known)| known.clone()) {
                request.set_data(known);
            }
        }
        self.inner.call(request).await
    }
}

/// Looks at the names of a request's query, at its conditions, and for content where none is taken.
///
/// # Errors
/// Names each parameter that is unknown or comes twice, each condition that the operation does not look at, and the body.
pub(crate) async fn check(request: &Request, body: &mut RequestBody) -> Result<(), Problem> {
    let Some(Known(known)) = request.data::<Known>() else { return Ok(()) };
    let mut faults = faults(request.uri().query().unwrap_or_default(), &known.query);
    for name in known.unheard.iter().filter(|name| request.headers().contains_key(**name)) {
        let detail = "is no condition that this operation looks at; leave it out".to_owned();
        faults.push(FieldFault { field: (*name).to_owned(), detail });
    }
    if !known.takes_content && has_content(request, body).await? {
        let detail = "is not taken by this operation; send the request without content".to_owned();
        faults.push(FieldFault { field: "body".to_owned(), detail });
    }
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
