//! The broker's URL: one virtual host and one user, at one host or at several of the same cluster.

use lapin::uri::AMQPUri;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::BrokerSettings;
use super::reserved::unencoded;

/// The library reads these and ignores all others, among them those that other clients take for TLS.
const PARAMETERS: &[&str] = &["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"];

/// Checks a RabbitMQ URL, which may name several hosts: `amqp://user:password@a:5672,b:5672/vhost`.
///
/// # Errors
/// Says what is wrong without any part of the URL that could be secret.
pub fn amqp_url(text: &str) -> Result<SecretString, String> {
    uris(text)?;
    Ok(SecretString::from(text))
}

impl BrokerSettings {
    /// One URI for each host, with the heartbeat that the supervision counts on, unless the URL names one.
    pub(crate) fn uris(&self) -> Result<Vec<AMQPUri>, String> {
        let current = self.file.as_ref().and_then(|file| file.current(amqp_url));
        let mut uris = uris(current.as_ref().unwrap_or(&self.url).expose_secret())?;
        for uri in &mut uris {
            uri.query.heartbeat.get_or_insert(crate::broker::HEARTBEAT_SECONDS);
        }
        Ok(uris)
    }
}

fn uris(text: &str) -> Result<Vec<AMQPUri>, String> {
    if let Some(fault) = unencoded(text) {
        return Err(fault);
    }
    let start = text.find("://").map_or(text.len(), |scheme| scheme + 3);
    let end = text[start..].find(['/', '?']).map_or(text.len(), |length| start + length);
    // A password may hold a comma, and no host an "@".
    let hosts = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    text[hosts..end].split(',').map(|host| uri(&format!("{}{host}{}", &text[..hosts], &text[end..]))).collect()
}

/// Reads a URL of one host.
fn uri(text: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(text).map_err(|fault| format!("is no URL ({fault})"))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(format!("has the scheme {:?}; expected amqp or amqps", url.scheme()));
    }
    match url.host() {
        None | Some(url::Host::Domain("")) => {
            return Err("names no host; for several write amqp://user:password@a:5672,b:5672/vhost".to_owned());
        }
        // The library reads no address in brackets and connects to localhost instead.
        Some(url::Host::Ipv6(_)) => return Err("has an IPv6 address; give the host's name".to_owned()),
        Some(_) => {}
    }
    if let Some((name, _)) = url.query_pairs().find(|(name, _)| !PARAMETERS.contains(&&**name)) {
        // A password with a question mark in it can end up here: what cannot be a parameter's name is not shown.
        let name = if name.chars().all(|c| c.is_ascii_alphabetic() || c == '_') { &*name } else { "…" };
        return Err(format!("has the unknown parameter {name:?}; known are {}", PARAMETERS.join(", ")));
    }
    // The library's own message may quote the value.
    text.parse().map_err(|_| format!("has an unusable value in one of {}", PARAMETERS.join(", ")))
}
