//! gzip for answers that are worth it. Those with an `ETag` are left as they are, but for the fixed documents, which keep both
//! forms: a strong tag names bytes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use poem::http::{HeaderMap, HeaderValue, StatusCode, header};
use poem::{Body, Response};

use crate::headers::lines;

/// Below, it would not fit into fewer packets.
const SMALLEST: usize = 1400;

/// Whether the client takes gzip (RFC 9110 §12.5.3).
pub(crate) fn accepted(headers: &HeaderMap) -> bool {
    let accepted = lines(headers, "accept-encoding").unwrap_or_default();
    let quality = |name: &str| {
        accepted.split(',').find_map(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let found = parts.next()?.eq_ignore_ascii_case(name);
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            found.then_some(quality)
        })
    };
    quality("gzip").or_else(|| quality("*")).is_some_and(|quality: f64| quality > 0.0)
}

/// The compressed form; `None` where it would be larger.
pub(crate) fn gzip(bytes: &[u8], level: Compression) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), level);
    // Writing to memory does not fail.
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().filter(|compressed| compressed.len() < bytes.len())
}

/// Compresses an answer if the client takes it and it is worth it.
pub(crate) async fn compress(accepted: bool, mut response: Response) -> Response {
    let headers = response.headers();
    let text = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let fits = response.status() == StatusCode::OK
        && (text.starts_with("application/json") || text.starts_with("text/"))
        && !headers.contains_key(header::ETAG)
        && !headers.contains_key(header::CONTENT_ENCODING);
    if !fits {
        return response;
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if !accepted {
        return response;
    }
    // Every body here is in memory already.
    let Ok(bytes) = response.take_body().into_bytes().await else { return response };
    let compressed = if bytes.len() >= SMALLEST { gzip(&bytes, Compression::fast()) } else { None };
    match compressed {
        None => response.set_body(bytes),
        Some(compressed) => {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.set_body(Body::from(compressed));
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_takes_is_read_from_all_of_its_fields() {
        let rows = [
            (&[][..], false),
            (&["gzip"], true),
            (&["br, GZIP;q=0.5"], true),
            (&["gzip;q=0"], false),
            (&["gzip; q=0.0, *"], false),
            (&["*"], true),
            (&["identity", "gzip"], true),
            (&["identity"], false),
        ];
        for (fields, expected) in rows {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(header::ACCEPT_ENCODING, HeaderValue::from_static(field));
            }
            assert_eq!(accepted(&headers), expected, "{fields:?}");
        }
    }
}
