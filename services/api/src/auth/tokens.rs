//! Access tokens: JWTs (RFC 7519) that the configured issuer signed for this service.
//!
//! # Why is the algorithm looked up twice?
//! A token names its algorithm itself, and who lets it choose accepts one that was "signed" with a public key as an HMAC
//! secret. Here the name must stand in a list that can only have asymmetric ones, and the key must be one for it.

use common::access::Scopes;
use common::command::Principal;
use common::health::Health;
use common::shutdown::Shutdown;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;

use super::Identity;
use super::denial::{Denial, Reason};
use super::fresh::Fresh;
use super::key_set::{self, KeySet};
use super::settings::TokenSettings;

/// What any issuer sends, and as much as a request's head may have.
const LONGEST: usize = 8192;
/// By how much clocks may differ.
const LEEWAY_SECONDS: u64 = 30;

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
}

/// What a token says of its bearer; times, issuer and audience are checked before it is read.
#[derive(Debug, Deserialize)]
struct Claims {
    /// The library takes a list of issuers, too, of which one is enough; RFC 7519 §4.1.1 knows no list.
    iss: String,
    sub: String,
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
        let TokenSettings { issuer, audience, algorithms, keys } = settings;
        let signers = key_set::start(shutdown, health, keys)?;
        Ok(Self { signers, terms: Terms { algorithms, issuer, audience } })
    }

    /// Whom this token names.
    pub(super) async fn identify(&self, token: &str) -> Result<Identity, Denial> {
        if token.len() > LONGEST {
            return Err(Reason::Malformed.into());
        }
        let header = decode_header(token).map_err(|_| Reason::Malformed)?;
        if !self.terms.algorithms.contains(&header.alg) {
            return Err(Reason::Algorithm.into());
        }
        // RFC 7515 §4.1.11: what must be understood and is not.
        if header.crit.is_some() {
            return Err(Reason::Malformed.into());
        }
        let (kid, algorithm) = (header.kid.as_deref(), header.alg);
        let key = |set: &KeySet| set.find(kid, algorithm).cloned();
        let mut signer = self.signers.value().and_then(|set| key(&set));
        let mut answered = true;
        if signer.is_none() {
            answered = self.signers.ask().await;
            signer = self.signers.value().and_then(|set| key(&set));
        }
        let missing = if answered && self.signers.complete() { Reason::UnknownSigner } else { Reason::Unavailable };
        self.terms.identify(token, &signer.ok_or(missing)?, algorithm)
    }
}

impl Terms {
    fn identify(&self, token: &str, key: &jsonwebtoken::DecodingKey, algorithm: Algorithm) -> Result<Identity, Denial> {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(token, key, &validation).map_err(|fault| denial(fault.kind()))?.claims;
        if claims.iss != self.issuer {
            return Err(Reason::Issuer.into());
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

fn denial(fault: &ErrorKind) -> Denial {
    let reason = match fault {
        ErrorKind::ExpiredSignature => Reason::ExpiredToken,
        ErrorKind::ImmatureSignature => Reason::EarlyToken,
        ErrorKind::InvalidIssuer => Reason::Issuer,
        ErrorKind::InvalidAudience => Reason::Audience,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName | ErrorKind::MissingAlgorithm => {
            Reason::Algorithm
        }
        ErrorKind::InvalidSignature
        | ErrorKind::InvalidEcdsaKey
        | ErrorKind::InvalidEddsaKey
        | ErrorKind::InvalidRsaKey(_) => Reason::Signature,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => Reason::Claims,
        _ => Reason::Malformed,
    };
    reason.into()
}
