//! The broker's URL: one virtual host and one user, at one host or at several of the same cluster.

use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::BrokerSettings;
use super::reserved::unencoded;
use crate::transport::{Authorities, PlaintextHosts};

/// The library reads the others and ignores all that are not here, among them those that other clients take for TLS. RabbitMQ's
/// own clients call the file of authorities like that.
const PARAMETERS: &[&str] =
    &["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism", CERTIFICATES];
const CERTIFICATES: &str = "cacertfile";

/// One host of the URL.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) uri: AMQPUri,
    /// Who may vouch for it, with `amqps`.
    pub(crate) authorities: Authorities,
}

/// Checks a RabbitMQ URL, which may name several hosts: `amqp://user:password@a:5672,b:5672/vhost`.
///
/// # Errors
/// Says what is wrong without any part of the URL that could be secret.
pub fn amqp_url(text: &str) -> Result<SecretString, String> {
    endpoints(text)?;
    Ok(SecretString::from(text))
}

/// The same, and in the clear only on this machine or to hosts that are listed, which are given as well.
pub(super) fn protected(text: &str, plaintext: &PlaintextHosts) -> Result<(SecretString, Vec<String>), String> {
    let exposed = admitted(&endpoints(text)?, plaintext)?;
    Ok((SecretString::from(text), exposed))
}

fn admitted(endpoints: &[Endpoint], plaintext: &PlaintextHosts) -> Result<Vec<String>, String> {
    let open = endpoints.iter().filter(|endpoint| endpoint.uri.scheme == AMQPScheme::AMQP);
    let exposed = plaintext.check(open.map(|endpoint| &*endpoint.uri.authority.host), "amqps://")?;
    Ok(exposed.into_iter().map(str::to_owned).collect())
}

impl BrokerSettings {
    /// One for each host, with the heartbeat that the supervision counts on and the frame size that the library's buffers are
    /// made for, unless the URL names others.
    pub(crate) fn endpoints(&self) -> Result<Vec<Endpoint>, String> {
        let plaintext = &self.plaintext_hosts;
        let current = self.file.as_ref().and_then(|file| file.current(|text| protected(text, plaintext)));
        let mut endpoints = endpoints(current.as_ref().map_or(&self.url, |(url, _)| url).expose_secret())?;
        admitted(&endpoints, plaintext)?;
        for endpoint in &mut endpoints {
            endpoint.uri.query.heartbeat.get_or_insert(crate::broker::HEARTBEAT_SECONDS);
            endpoint.uri.query.frame_max.get_or_insert(crate::broker::FRAME_MAX);
        }
        Ok(endpoints)
    }
}

fn endpoints(text: &str) -> Result<Vec<Endpoint>, String> {
    if let Some(fault) = unencoded(text) {
        return Err(fault);
    }
    let start = text.find("://").map_or(text.len(), |scheme| scheme + 3);
    let end = text[start..].find(['/', '?']).map_or(text.len(), |length| start + length);
    // A password may hold a comma, and no host an "@".
    let hosts = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
    text[hosts..end].split(',').map(|host| endpoint(&format!("{}{host}{}", &text[..hosts], &text[end..]))).collect()
}

/// Reads a URL of one host.
fn endpoint(text: &str) -> Result<Endpoint, String> {
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
    let uri = text.parse().map_err(|_| format!("has an unusable value in one of {}", PARAMETERS.join(", ")))?;
    let mut files = url.query_pairs().filter(|(name, _)| name == CERTIFICATES).map(|(_, file)| file);
    let authorities = match (files.next(), files.next()) {
        (None, _) => Authorities::default(),
        (Some(_), _) if url.scheme() == "amqp" => {
            return Err(format!("has the parameter {CERTIFICATES:?}, which only counts with amqps://"));
        }
        (Some(_), Some(_)) => return Err(format!("has the parameter {CERTIFICATES:?} twice; write it once")),
        (Some(file), None) => Authorities::in_file(&*file)
            .map_err(|fault| format!("has the parameter {CERTIFICATES:?}, which {fault}"))?,
    };
    Ok(Endpoint { uri, authorities })
}
