//! Whoever signs access tokens, with keys that are made for the test.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

pub(super) const ISSUER: &str = "https://issuer.example.org/";
pub(super) const AUDIENCE: &str = "https://rollcall.example.org";

pub(super) struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
}

impl Issuer {
    pub(super) fn new() -> Self {
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).expect("an RSA key");
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("an EC key");
        Self { rsa, ec }
    }

    /// What it publishes: the RSA key as `rsa`, the other as `ec`.
    pub(super) fn key_set(&self) -> Value {
        let parts = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        // An uncompressed point: 4, x, y.
        let point = self.ec.public_key().as_ref();
        json!({ "keys": [
            {"kty": "RSA", "kid": "rsa", "use": "sig", "n": base64url(parts.n), "e": base64url(parts.e)},
            {"kty": "EC", "kid": "ec", "crv": "P-256", "x": base64url(&point[1..33]), "y": base64url(&point[33..])},
        ]})
    }

    /// Signed with RSA, whatever the header says.
    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let padding = if header["alg"] == "RS512" { &RSA_PKCS1_SHA512 } else { &RSA_PKCS1_SHA256 };
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        let random = SystemRandom::new();
        self.rsa.sign(padding, &random, message.as_bytes(), &mut signature).expect("a signature");
        format!("{message}.{}", base64url(signature))
    }

    /// A token that is good but for these claims; null takes one away.
    pub(super) fn token(&self, changes: &Value) -> String {
        self.sign(&json!({"alg": "RS256", "typ": "at+jwt", "kid": "rsa"}), &claims(changes))
    }

    /// The same, signed with the other key.
    pub(super) fn ec_token(&self, changes: &Value) -> String {
        let header = json!({"typ": "at+jwt", "alg": "ES256", "kid": "ec"});
        let message = message(&header, &claims(changes));
        let signature = self.ec.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature");
        format!("{message}.{}", base64url(signature))
    }

    /// The confusion: what is public becomes a secret.
    pub(super) fn forged_with_the_public_key(&self) -> [String; 3] {
        let der = self.rsa.public_key().as_der().expect("a public key");
        let body = STANDARD.encode(der.as_ref());
        let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        let modulus = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key()).n;
        [pem.into_bytes(), der.as_ref().to_vec(), modulus].map(|secret| {
            let header = Header { kid: Some("rsa".to_owned()), ..Header::new(Algorithm::HS256) };
            encode(&header, &claims(&json!({})), &EncodingKey::from_secret(&secret).expect("a secret"))
                .expect("a token")
        })
    }
}

/// Without a signature.
pub(super) fn unsigned(header: &Value) -> String {
    format!("{}.", message(header, &claims(&json!({}))))
}

/// A token with another payload than the one that was signed.
pub(super) fn with_claims(token: &str, changes: &Value) -> String {
    let parts: Vec<_> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], base64url(claims(changes).to_string()), parts[2])
}

/// Seconds from now, as tokens count.
pub(super) fn from_now(seconds: i64) -> i64 {
    OffsetDateTime::now_utc().unix_timestamp() + seconds
}

fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": from_now(300), "scope": "users:read users:write history:read",
    });
    let members = claims.as_object_mut().expect("an object");
    for (name, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    claims
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()))
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
