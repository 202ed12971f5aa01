//! The public keys of the issuer (JWKS, RFC 7517), from a file or a URL.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use common::health::{CheckFailure, Health};
use common::shutdown::Shutdown;
use common::telemetry::meter;
use common::transport::Authorities;
use jsonwebtoken::{Algorithm, DecodingKey};
use opentelemetry::KeyValue;
use opentelemetry::metrics::Gauge;
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::fresh::{Fresh, Pace};
use super::settings::KeySource;
use crate::body::shown;

/// Issuers announce a key hours before they sign with it, and are not to be flooded for tokens of strangers. A key that its
/// issuer took back counts for a day at most while that cannot be seen.
const PACE: Pace =
    Pace { interval: Duration::from_mins(5), gap: Duration::from_secs(5), limit: Duration::from_hours(24) };
const DEADLINE: Duration = Duration::from_secs(5);
/// Many times what any issuer has.
const LARGEST: usize = 256 * 1024;
/// Keys that are tried for one token; more under one id are a fault of the issuer.
const MOST_CANDIDATES: usize = 8;

/// The keys that tokens can be signed with.
#[derive(Debug)]
pub(super) struct KeySet {
    signers: Vec<Signer>,
    left_out: Vec<LeftOut>,
}

/// A key of the set that is not used.
#[derive(Debug)]
struct LeftOut {
    id: Option<String>,
    reason: Unusable,
}

/// Why a key is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unusable {
    /// It is for encryption, or does not verify.
    Purpose,
    /// Its algorithm is unknown here, or signs nothing.
    Algorithm,
    /// Its type or curve is unknown here.
    Type,
    /// A member that it needs is missing or cannot be read.
    Malformed,
}

impl Unusable {
    const ALL: [Self; 4] = [Self::Purpose, Self::Algorithm, Self::Type, Self::Malformed];

    const fn label(self) -> &'static str {
        match self {
            Self::Purpose => "purpose",
            Self::Algorithm => "algorithm",
            Self::Type => "type",
            Self::Malformed => "malformed",
        }
    }
}

/// The members of a key that are read (RFC 7517, RFC 7518 §6); others may be anything.
#[derive(Debug, Deserialize)]
struct PublicKey {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

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
        KeySource::Url(url, authorities) => {
            let client = client(&url, &authorities)
                .context("AUTH_JWKS: HTTPS needs certificate authorities; install ca-certificates");
            Place::Url(client?, url)
        }
    };
    let counted = meter()
        .u64_gauge("rollcall.api.token_keys")
        .with_description("Keys of the issuer by state: known, or why one is left out")
        .build();
    let load = move || {
        let (place, counted) = (place.clone(), counted.clone());
        async move {
            let text = match place {
                Place::File(path) => tokio::fs::read(path).await.map_err(|fault| fault.kind().to_string().into()),
                Place::Url(client, url) => fetch(&client, url).await,
            };
            let set = text.and_then(|text| KeySet::parse(&text).map_err(CheckFailure::from));
            let set = set.map_err(|failure| failure.within("AUTH_JWKS"));
            set.inspect(|set| set.observe(&counted))
        }
    };
    Ok(Fresh::start(shutdown, health, "token-keys", PACE, load))
}

#[derive(Clone)]
enum Place {
    File(PathBuf),
    Url(reqwest::Client, Url),
}

fn client(url: &Url, authorities: &Authorities) -> reqwest::Result<reqwest::Client> {
    // A redirect could lead to where nobody checked the scheme.
    let client = reqwest::Client::builder().timeout(DEADLINE).redirect(Policy::none());
    if url.scheme() == "https" {
        return match authorities.pem() {
            Some(pem) => client.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?).build(),
            None => client.build(),
        };
    }
    // What is on this machine is not asked for through a proxy, and needs no authorities, which a container may not have.
    client.no_proxy().tls_certs_only([]).build()
}

async fn fetch(client: &reqwest::Client, url: Url) -> Result<Vec<u8>, CheckFailure> {
    let away = |fault: reqwest::Error| CheckFailure::caused("the issuer does not answer", &fault.without_url());
    let mut answer = client.get(url).send().await.map_err(away)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("the issuer answered {}", answer.status().as_u16()).into());
    }
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(away)? {
        text.extend_from_slice(&chunk);
        if text.len() > LARGEST {
            return Err(format!("the issuer sends more than {LARGEST} bytes").into());
        }
    }
    Ok(text)
}

impl KeySet {
    /// Reads a set; keys that cannot verify signatures, or are of a kind that is unknown here, are left out.
    fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<Value>,
        }
        let Ok(Raw { keys }) = serde_json::from_slice(text) else {
            return Err("not a JSON Web Key Set; it has the form {\"keys\": [...]}".to_owned());
        };
        let (mut signers, mut left_out) = (Vec::new(), Vec::new());
        for key in keys {
            let id = key["kid"].as_str().map(str::to_owned);
            match signer(key) {
                Ok(signer) => signers.push(signer),
                Err(reason) => left_out.push(LeftOut { id, reason }),
            }
        }
        if signers.is_empty() {
            return Err("has no key that can verify signatures: RSA, EC or Ed25519, for use sig".to_owned());
        }
        Ok(Self { signers, left_out })
    }

    /// The keys that may have signed under this id with this algorithm; without an id those for the algorithm.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let fitting = self.signers.iter().filter(|signer| {
            signer.key.family() == algorithm.family()
                && signer.algorithm.is_none_or(|only| only == algorithm)
                && (id.is_none() || signer.id.as_deref() == id)
        });
        fitting.take(MOST_CANDIDATES).map(|signer| signer.key.clone()).collect()
    }

    /// Counts the keys, and names those that are left out.
    fn observe(&self, counted: &Gauge<u64>) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        counted.record(count(self.signers.len()), &[KeyValue::new("state", "known")]);
        for reason in Unusable::ALL {
            let number = self.left_out.iter().filter(|key| key.reason == reason).count();
            counted.record(count(number), &[KeyValue::new("state", reason.label())]);
        }
        if !self.left_out.is_empty() {
            let keys: Vec<_> = self.left_out.iter().map(ToString::to_string).collect();
            tracing::info!(keys = keys.join(", "), "keys of the issuer are left out");
        }
    }
}

fn signer(key: Value) -> Result<Signer, Unusable> {
    let key: PublicKey = serde_json::from_value(key).map_err(|_| Unusable::Malformed)?;
    let verifies = key.key_ops.is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
    if !verifies || key.purpose.is_some_and(|purpose| purpose != "sig") {
        return Err(Unusable::Purpose);
    }
    let algorithm = key.alg.map(|name| name.parse::<Algorithm>()).transpose().map_err(|_| Unusable::Algorithm)?;
    let needed = |member: Option<String>| member.ok_or(Unusable::Malformed);
    let decoded = match (key.kty.as_str(), key.crv.as_deref()) {
        ("RSA", _) => DecodingKey::from_rsa_components(&needed(key.n)?, &needed(key.e)?),
        ("EC", Some("P-256" | "P-384")) => DecodingKey::from_ec_components(&needed(key.x)?, &needed(key.y)?),
        ("OKP", Some("Ed25519")) => DecodingKey::from_ed_components(&needed(key.x)?),
        _ => return Err(Unusable::Type),
    };
    let decoded = decoded.map_err(|_| Unusable::Malformed)?;
    if algorithm.is_some_and(|algorithm| algorithm.family() != decoded.family()) {
        return Err(Unusable::Algorithm);
    }
    Ok(Signer { id: key.kid, algorithm, key: decoded })
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} known", self.signers.len())?;
        match self.left_out.len() {
            0 => Ok(()),
            number => write!(f, ", {number} left out"),
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_deref().map_or_else(|| "without an id".to_owned(), shown);
        write!(f, "{id} ({})", self.reason.label())
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
        ];
        for (id, algorithm, found) in rows {
            assert_eq!(!set.find(id, algorithm).is_empty(), found, "{id:?} {algorithm:?}");
        }
        assert_eq!(set.find(None, Algorithm::RS256).len(), 3, "any of them may have signed");
    }

    #[test]
    fn keys_of_one_id_are_all_tried_up_to_a_bound() {
        let two = set(&[rsa("a", &[]), rsa("a", &[("use", "sig")]), ed(Some("a"))]).expect("a set");
        assert_eq!((two.find(Some("a"), Algorithm::RS256).len(), two.find(Some("a"), Algorithm::EdDSA).len()), (2, 1));
        let many = set(&vec![rsa("a", &[]); 20]).expect("a set");
        assert_eq!(many.find(Some("a"), Algorithm::RS256).len(), MOST_CANDIDATES);
    }

    #[test]
    fn members_that_are_not_looked_at_may_be_anything() {
        let mut key = rsa("a", &[]);
        key["x5c"] = json!("one text");
        key["x5t"] = json!(7);
        key["ext"] = json!({"any": [true]});
        assert_eq!(set(&[key]).expect("a set").to_string(), "1 known");
    }

    #[test]
    fn what_verifies_no_signature_does_not_count() {
        let useless = [
            (json!({"kty": "oct", "kid": "s", "k": "c2VjcmV0", "alg": "HS256"}), "s (type)"),
            (json!({"kty": "AKP", "kid": "p", "alg": "ML-DSA-44", "pub": "AA"}), "p (algorithm)"),
            (json!({"kty": "AKP", "kid": "q", "pub": "AA"}), "q (type)"),
            (json!({"kty": "EC", "kid": "c", "crv": "secp256k1", "x": "AA", "y": "AA"}), "c (type)"),
            (json!({"kty": "OKP", "kid": "x", "crv": "X25519", "x": "AA"}), "x (type)"),
            (rsa("enc", &[("use", "enc")]), "enc (purpose)"),
            (rsa("oaep", &[("alg", "RSA-OAEP")]), "oaep (algorithm)"),
            (rsa("ec", &[("alg", "ES256")]), "ec (algorithm)"),
            (json!({"kty": "RSA", "kid": "half"}), "half (malformed)"),
            (json!({"kid": "bare"}), "bare (malformed)"),
            (json!("no object"), "without an id (malformed)"),
        ];
        let keys: Vec<_> = useless.iter().map(|(key, _)| key.clone()).collect();
        let fault = set(&keys).expect_err("nothing of use");
        assert!(fault.contains("no key that can verify"), "{fault}");
        let all = set(&[&keys[..], &[ed(None)]].concat()).expect("one of use");
        assert_eq!(all.to_string(), "1 known, 11 left out");
        let named: Vec<_> = all.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(named, useless.map(|(_, named)| named));
        for text in ["", "{}", "[]", "{\"keys\": 1}", "<html>"] {
            let fault = KeySet::parse(text.as_bytes()).expect_err(text);
            assert!(fault.contains("JSON Web Key Set"), "{fault}");
        }
    }
}
