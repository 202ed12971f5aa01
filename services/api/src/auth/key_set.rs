//! The public keys of the issuer (JWKS, RFC 7517), from a file or a URL.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use common::health::Health;
use common::shutdown::{Shutdown, chain};
use jsonwebtoken::jwk::{Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::fresh::{Fresh, Pace};
use super::settings::KeySource;

/// Issuers announce a key hours before they sign with it, and are not to be flooded for tokens of strangers.
const PACE: Pace = Pace { interval: Duration::from_mins(5), gap: Duration::from_secs(5) };
const DEADLINE: Duration = Duration::from_secs(5);
/// Many times what any issuer has.
const LARGEST: usize = 256 * 1024;

/// The keys that tokens can be signed with.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Signer>);

#[derive(Debug)]
struct Signer {
    id: Option<String>,
    /// The only algorithm that it may be used with, if it says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Starts loading them.
pub(super) fn start(shutdown: &Shutdown, health: &Health, source: KeySource) -> anyhow::Result<Fresh<KeySet>> {
    let place = match source {
        KeySource::File(path) => Place::File(path),
        KeySource::Url(url) => {
            let client =
                client(&url).context("AUTH_JWKS: HTTPS needs certificate authorities; install ca-certificates");
            Place::Url(client?, url)
        }
    };
    let load = move || {
        let place = place.clone();
        async move {
            let text = match place {
                Place::File(path) => tokio::fs::read(path).await.map_err(|fault| fault.kind().to_string()),
                Place::Url(client, url) => fetch(&client, url).await,
            };
            text.and_then(|text| KeySet::parse(&text)).map_err(|reason| format!("AUTH_JWKS: {reason}"))
        }
    };
    Ok(Fresh::start(shutdown, health, "token-keys", PACE, load))
}

#[derive(Clone)]
enum Place {
    File(PathBuf),
    Url(reqwest::Client, Url),
}

fn client(url: &Url) -> reqwest::Result<reqwest::Client> {
    // A redirect could lead to where nobody checked the scheme.
    let client = reqwest::Client::builder().timeout(DEADLINE).redirect(Policy::none());
    if url.scheme() == "https" {
        return client.build();
    }
    // What is on this machine is not asked for through a proxy, and needs no authorities, which a container may not have.
    client.no_proxy().tls_certs_only([]).build()
}

async fn fetch(client: &reqwest::Client, url: Url) -> Result<Vec<u8>, String> {
    let told = |fault: reqwest::Error| chain(&fault.without_url());
    let mut answer = client.get(url).send().await.map_err(told)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("the issuer answered {}", answer.status().as_u16()));
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(told)? {
        text.extend_from_slice(&chunk);
        if text.len() > LARGEST {
            return Err(format!("the issuer sends more than {LARGEST} bytes"));
        }
    }
    Ok(text)
}

impl KeySet {
    /// Reads a set; keys that cannot verify signatures, or are of a kind that nobody here knows, do not count.
    fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<Value>,
        }
        let Ok(Raw { keys }) = serde_json::from_slice(text) else {
            return Err("not a JSON Web Key Set; it has the form {\"keys\": [...]}".to_owned());
        };
        let signers: Vec<_> = keys.into_iter().filter_map(signer).collect();
        if signers.is_empty() {
            return Err("has no key that can verify signatures: RSA, EC or Ed25519, for use sig".to_owned());
        }
        Ok(Self(signers))
    }

    /// The key that signs under this id with this algorithm; without an id the only one that could.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut fitting = self.0.iter().filter(|signer| {
            signer.key.family() == algorithm.family()
                && signer.algorithm.is_none_or(|only| only == algorithm)
                && (id.is_none() || signer.id.as_deref() == id)
        });
        let first = fitting.next()?;
        (id.is_some() || fitting.next().is_none()).then_some(&first.key)
    }
}

fn signer(jwk: Value) -> Option<Signer> {
    let jwk: Jwk = serde_json::from_value(jwk).ok()?;
    let common = &jwk.common;
    let signs = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let verifies = common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    // One that names an algorithm that is for encryption, or unknown here, signs nothing.
    let algorithm = common.key_algorithm.map(|name| name.to_string().parse()).transpose().ok()?;
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|key| key.family() != AlgorithmFamily::Hmac)?;
    (signs && verifies).then(|| Signer { id: common.key_id.clone(), algorithm, key })
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} known", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ed(id: Option<&str>) -> Value {
        // RFC 8037 A.2.
        let mut key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        if let Some(id) = id {
            key["kid"] = json!(id);
        }
        key
    }

    fn rsa(id: &str, more: &[(&str, &str)]) -> Value {
        let mut key =
            json!({"kty": "RSA", "kid": id, "n": "sXchDaQebHnPiGvyDOAT4saGEUetSyo9MKLOoWFsueri", "e": "AQAB"});
        for (name, value) in more {
            key[*name] = json!(value);
        }
        key
    }

    fn set(keys: &[Value]) -> Result<KeySet, String> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_is_found_by_its_id_for_its_kind_only() {
        let set = set(&[ed(Some("a")), rsa("b", &[]), rsa("c", &[("alg", "RS256")]), rsa("d", &[("use", "sig")])]);
        let set = set.expect("a set");
        assert_eq!(set.to_string(), "4 known");
        let rows = [
            (Some("a"), Algorithm::EdDSA, true),
            (Some("a"), Algorithm::RS256, false),
            (Some("b"), Algorithm::RS256, true),
            (Some("b"), Algorithm::PS512, true),
            (Some("b"), Algorithm::EdDSA, false),
            (Some("b"), Algorithm::HS256, false),
            (Some("c"), Algorithm::RS256, true),
            (Some("c"), Algorithm::PS256, false),
            (Some("d"), Algorithm::RS256, true),
            (Some("e"), Algorithm::RS256, false),
            (None, Algorithm::EdDSA, true),
            // Two could have.
            (None, Algorithm::RS256, false),
        ];
        for (id, algorithm, found) in rows {
            assert_eq!(set.find(id, algorithm).is_some(), found, "{id:?} {algorithm:?}");
        }
    }

    #[test]
    fn what_verifies_no_signature_does_not_count() {
        let useless = [
            json!({"kty": "oct", "kid": "s", "k": "c2VjcmV0", "alg": "HS256"}),
            json!({"kty": "AKP", "kid": "p", "alg": "ML-DSA-44", "pub": "AA"}),
            rsa("enc", &[("use", "enc")]),
            rsa("oaep", &[("alg", "RSA-OAEP")]),
            json!({"kty": "RSA", "kid": "half"}),
            json!("no object"),
        ];
        let fault = set(&useless).expect_err("nothing of use");
        assert!(fault.contains("no key that can verify"), "{fault}");
        let all = [&useless[..], &[ed(None)]].concat();
        assert_eq!(set(&all).expect("one of use").to_string(), "1 known");
        for text in ["", "{}", "[]", "{\"keys\": 1}", "<html>"] {
            let fault = KeySet::parse(text.as_bytes()).expect_err(text);
            assert!(fault.contains("JSON Web Key Set"), "{fault}");
        }
    }
}
