//! Access tokens: JWTs (RFC 7519) that the configured issuer signed for this service.
//!
//! # Why is the algorithm looked up twice?
//! A token names its algorithm itself, and who lets it choose accepts one that was "signed" with a public key as an HMAC
//! secret. Here the name must stand in a list that can only have asymmetric ones, and the key must be one for it.
//!
//! # Why does the type count?
//! An issuer signs other things with the same keys: ID tokens, logout tokens, proofs. Each says in `typ` what it is, and RFC 9068
//! §4 has an access token refused that does not say so. Many issuers write `JWT` for all of them, hence `AUTH_JWT_TYPES`.
//!
//! # Why is only the signature left to the library?
//! It refuses a header for the type of a member that nothing here looks at, and an issuer may add such members any day
//! (RFC 7515 §4: what is not understood is ignored).

use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::access::Scopes;
use common::command::Principal;
use common::health::Health;
use common::shutdown::Shutdown;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::Identity;
use super::denial::{Denial, Reason};
use super::fresh::Fresh;
use super::key_set::{self, KeySet};
use super::settings::{TokenSettings, TokenType};

/// By how much clocks may differ.
const LEEWAY_SECONDS: f64 = 30.0;

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    signers: Fresh<KeySet>,
    terms: Terms,
}

#[derive(Debug)]
struct Terms {
    algorithms: Vec<Algorithm>,
    issuer: String,
    audience: String,
    types: Vec<TokenType>,
    longest: usize,
}

/// The parts of a token in compact form (RFC 7515 §3.1).
struct Token<'a> {
    header: &'a str,
    claims: &'a str,
    signature: &'a str,
    /// The signed part: the header and the claims.
    message: &'a str,
}

/// The members of a header that are read; others may be anything.
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// RFC 7515 §4.1.11: names what must be understood, and nothing of that kind is. Whatever its value.
    #[serde(default, deserialize_with = "there")]
    crit: bool,
}

/// The claims of a token about its bearer.
#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Words,
    exp: f64,
    nbf: Option<f64>,
    /// RFC 8693 §4.2: words with blanks between them.
    scope: Option<Words>,
    /// The same as some issuers call it.
    scp: Option<Words>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    List(Vec<String>),
}

impl Tokens {
    pub(super) fn start(shutdown: &Shutdown, health: &Health, settings: TokenSettings) -> anyhow::Result<Self> {
        let TokenSettings { issuer, audience, algorithms, types, keys, longest } = settings;
        let signers = key_set::start(shutdown, health, keys)?;
        Ok(Self { signers, terms: Terms { algorithms, issuer, audience, types, longest } })
    }

    /// Whom this token names.
    pub(super) async fn identify(&self, token: &str) -> Result<Identity, Denial> {
        let longest = self.terms.longest;
        if token.len() > longest {
            let detail = format!("{} bytes; AUTH_JWT_MAX_BYTES allows {longest}", token.len());
            return Err(Denial { detail: Some(detail), ..Reason::TokenTooLong(longest).into() });
        }
        let token = Token::parse(token).ok_or(Reason::Malformed)?;
        let header: Header = decoded(token.header).ok_or(Reason::Malformed)?;
        if header.crit {
            return Err(Denial { detail: Some("the header has crit".to_owned()), ..Reason::Malformed.into() });
        }
        let algorithm = header.alg.parse().ok().filter(|algorithm| self.terms.algorithms.contains(algorithm));
        let algorithm: Algorithm = algorithm.ok_or(Reason::Algorithm)?;
        let known = || self.signers.value().map(|set| set.find(header.kid.as_deref(), algorithm)).unwrap_or_default();
        let mut signers = known();
        let mut answered = true;
        if signers.is_empty() {
            answered = self.signers.ask().await;
            signers = known();
        }
        if signers.is_empty() {
            let missing = if answered && self.signers.complete() { Reason::UnknownSigner } else { Reason::Unavailable };
            return Err(missing.into());
        }
        if !signers.iter().any(|signer| token.is_signed_by(signer, algorithm)) {
            return Err(Reason::Signature.into());
        }
        // Behind the signature, so that the log can name the type.
        self.terms.check_type(header.typ.as_deref())?;
        self.terms.identify(&decoded(token.claims).ok_or(Reason::Claims)?)
    }
}

impl<'a> Token<'a> {
    fn parse(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        (!claims.contains('.')).then_some(Self { header, claims, signature, message })
    }

    fn is_signed_by(&self, key: &DecodingKey, algorithm: Algorithm) -> bool {
        crypto::verify(self.signature, self.message.as_bytes(), key, algorithm).unwrap_or(false)
    }
}

fn decoded<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

fn there<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(value).map(|_| true)
}

impl Terms {
    /// Refuses a token that does not say that it is one for this service.
    fn check_type(&self, typ: Option<&str>) -> Result<(), Denial> {
        if self.types.iter().any(|known| known.fits(typ)) {
            return Ok(());
        }
        let plain =
            |typ: &&str| typ.len() <= 40 && typ.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-./_".contains(&b));
        let named = typ.map_or("missing", |typ| Some(typ).filter(plain).unwrap_or("no plain word"));
        let allowed: Vec<_> = self.types.iter().map(ToString::to_string).collect();
        let detail = format!("typ is {named}; AUTH_JWT_TYPES allows {}", allowed.join(","));
        Err(Denial { detail: Some(detail), ..Reason::TokenType.into() })
    }

    /// Whom the claims of a token name whose signature was verified.
    fn identify(&self, claims: &Claims) -> Result<Identity, Denial> {
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0.0, |since| since.as_secs_f64());
        if claims.exp < now - LEEWAY_SECONDS {
            return Err(Reason::ExpiredToken.into());
        }
        if claims.nbf.is_some_and(|begin| begin > now + LEEWAY_SECONDS) {
            return Err(Reason::EarlyToken.into());
        }
        if claims.iss != self.issuer {
            return Err(Reason::Issuer.into());
        }
        let addressed = match &claims.aud {
            Words::Text(one) => *one == self.audience,
            Words::List(several) => several.contains(&self.audience),
        };
        if !addressed {
            return Err(Reason::Audience.into());
        }
        let principal = Principal::of_subject(&claims.sub)
            .map_err(|fault| Denial { detail: Some(format!("the subject {fault}")), ..Reason::Claims.into() })?;
        Ok(Identity { principal, scopes: claims.scopes() })
    }
}

impl Claims {
    /// The scopes that are ours; a token may have any others.
    fn scopes(&self) -> Scopes {
        let words = [&self.scope, &self.scp].into_iter().flatten().flat_map(|words| match words {
            Words::Text(text) => text.split(' ').collect::<Vec<_>>(),
            Words::List(list) => list.iter().map(String::as_str).collect(),
        });
        words.filter_map(|word| word.parse().ok()).collect()
    }
}
