//! Host check: the names by which a service is addressed that serves this machine only, without asking for a proof.
//!
//! # Why check the name?
//! A page of any site may have its own name resolve to this machine (DNS rebinding), and then reads the answers as its own.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::uri::{Authority, Uri};
use http::{HeaderMap, header};
use poem::{Endpoint, EndpointExt, Response};

use super::problem;

/// Whether a request names this machine by `localhost` or an IP address; only HTTP/1.0 comes without a name, which no browser
/// speaks. A target that names a host counts before the field (RFC 9112 §3.2.2).
pub fn names_this_machine(target: &Uri, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST);
    target.authority().is_none_or(|named| is_local(named.as_str()))
        && host.is_none_or(|host| host.to_str().is_ok_and(is_local))
}

/// No site can make a browser believe that these are its own.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let port = authority.port().map(|port| port.as_u16()).is_some() || authority.as_str() == authority.host();
    let address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(name) => name.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<Ipv4Addr>().is_ok(),
    };
    port && (address || name == "localhost" || name.ends_with(".localhost"))
}

/// Answers only requests that name this machine, but `/healthz` always.
pub fn checked(endpoint: impl Endpoint<Output = Response> + 'static) -> impl Endpoint<Output = Response> {
    endpoint.around(async |endpoint, request| {
        if request.uri().path() == "/healthz" || names_this_machine(request.uri(), request.headers()) {
            endpoint.call(request).await
        } else {
            Ok(problem::foreign_host())
        }
    })
}

#[cfg(test)]
mod tests {
    use poem::endpoint::make;
    use poem::http::StatusCode;
    use poem::{IntoResponse, Request};

    use super::*;

    #[tokio::test]
    async fn probes_of_this_machine_answer_to_its_own_names_only() {
        let endpoint = checked(make(async |_| Ok::<_, poem::Error>("ok".into_response())));
        let rows = [
            ("/readyz", "evil.example", 403),
            ("/metrics", "evil.example:8081", 403),
            ("/healthz", "evil.example", 200),
            ("/readyz", "localhost:8081", 200),
            ("/metrics", "127.0.0.1:8081", 200),
        ];
        for (path, host, status) in rows {
            let uri: Uri = path.parse().expect("a path");
            let answer = endpoint.get_response(Request::builder().uri(uri).header("host", host).finish()).await;
            assert_eq!(answer.status(), StatusCode::from_u16(status).expect("a status"), "{path} {host}");
        }
    }
}
