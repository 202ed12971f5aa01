//! Documents that never change while the process runs: the front page, Swagger UI and the contract, each with an `ETag` and a
//! compressed form. Of scripts only those run that a page has from here, known by their hashes (CSP Level 3 §6.7.2.3).

use std::sync::{LazyLock, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flate2::Compression;
use poem::http::{HeaderValue, StatusCode, header};
use poem::{Endpoint, Request, Response};
use poem_openapi::OpenApiService;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::compression;
use crate::headers::{lines, none_match};

/// Everything comes from this host: the pages could not load from elsewhere if they wanted to.
fn policy(page: &str, styles: &str) -> Option<HeaderValue> {
    let scripts = hashes(page, "script");
    let policy = format!(
        "default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src data:; style-src {styles}; script-src \
         {scripts}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    );
    HeaderValue::from_str(&policy).ok()
}

/// The sources that allow the contents of these elements.
fn hashes(page: &str, element: &str) -> String {
    let (begin, end) = (format!("<{element}"), format!("</{element}>"));
    let mut sources = Vec::new();
    let mut rest = page;
    while let Some((content, after)) =
        rest.split_once(&begin).and_then(|(_, tag)| tag.split_once('>')?.1.split_once(&end))
    {
        sources.push(format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content))));
        rest = after;
    }
    sources.join(" ")
}

/// For a person who opens the port.
const FRONT: &str = include_str!("front.html");

/// One document, which is made when the first client asks for it: the page of Swagger UI takes megabytes that most instances
/// never need.
#[derive(Debug)]
pub(crate) struct Fixed {
    content_type: &'static str,
    document: LazyLock<Document, Box<dyn FnOnce() -> Document + Send>>,
}

#[derive(Debug)]
struct Document {
    /// Of a page.
    policy: Option<HeaderValue>,
    plain: Form,
    compressed: OnceLock<Option<Form>>,
}

/// A strong tag names these bytes and no others.
#[derive(Debug)]
struct Form {
    etag: String,
    body: Bytes,
}

impl Form {
    fn new(body: Bytes) -> Self {
        let etag = format!("\"{}\"", Uuid::new_v5(&Uuid::NAMESPACE_OID, &body).simple());
        Self { etag, body }
    }
}

impl Document {
    fn new(body: impl Into<Bytes>, policy: Option<HeaderValue>) -> Self {
        Self { policy, plain: Form::new(body.into()), compressed: OnceLock::new() }
    }
}

impl Fixed {
    /// What this is, and where everything is.
    pub(crate) fn front() -> Self {
        Self::new("text/html; charset=utf-8", || {
            let page = FRONT.replace("{version}", env!("CARGO_PKG_VERSION"));
            let policy = policy(&page, &hashes(&page, "style"));
            Document::new(page, policy)
        })
    }

    /// The contract.
    pub(crate) fn contract(document: Bytes) -> Self {
        Self::new("application/json", move || Document::new(document, None))
    }

    /// Swagger UI with the contract and all of its scripts inside.
    pub(crate) fn page(document: Bytes) -> Self {
        Self::new("text/html; charset=utf-8", move || {
            let empty = OpenApiService::new((), "", "");
            let page = empty.swagger_ui_html().replace(&empty.spec(), &String::from_utf8_lossy(&document));
            // Browsers ask for an icon that is not there, unless the page has one.
            let page = page.replacen("<head>", "<head><link rel=\"icon\" href=\"data:,\">", 1);
            // Its scripts set styles by themselves.
            let policy = policy(&page, "'unsafe-inline'");
            Document::new(page, policy)
        })
    }

    fn new(content_type: &'static str, make: impl FnOnce() -> Document + Send + 'static) -> Self {
        Self { content_type, document: LazyLock::new(Box::new(make)) }
    }
}

impl Endpoint for Fixed {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let Document { policy, plain, compressed } = &*self.document;
        let compressed = if compression::accepted(request.headers()) {
            let compress = || compression::gzip(&plain.body, Compression::default()).map(|body| Form::new(body.into()));
            compressed.get_or_init(compress).as_ref()
        } else {
            None
        };
        let form = compressed.unwrap_or(plain);
        let response = Response::builder()
            .header(header::ETAG, &form.etag)
            .header(header::VARY, HeaderValue::from_static("accept-encoding"))
            .header(header::CACHE_CONTROL, "no-cache, no-transform")
            .header(header::REFERRER_POLICY, "no-referrer");
        let response = match policy {
            Some(policy) => response.header(header::CONTENT_SECURITY_POLICY, policy),
            None => response,
        };
        if none_match(lines(request.headers(), "if-none-match").as_deref(), &form.etag) {
            return Ok(response.status(StatusCode::NOT_MODIFIED).finish());
        }
        let response = if compressed.is_some() { response.header(header::CONTENT_ENCODING, "gzip") } else { response };
        Ok(response.content_type(self.content_type).body(form.body.clone()))
    }
}
