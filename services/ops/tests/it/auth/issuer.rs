//! An issuer of access tokens that serves its public keys over HTTP on loopback.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use time::OffsetDateTime;

pub(super) struct Issuer {
    port: u16,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    keys: Vec<Value>,
    away: bool,
}

/// A key to sign with.
pub(super) struct Key {
    id: String,
    key: EncodingKey,
}

impl Key {
    pub(super) fn mint(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { id: id.to_owned(), key: EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref()) }
    }
}

impl Issuer {
    /// Without any keys yet.
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = Arc::<Mutex<Answer>>::default();
        let served = Arc::clone(&answer);
        // Ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut head = BufReader::new(&stream).lines();
                let asked = head.next().and_then(Result::ok).unwrap_or_default();
                while head.next().and_then(Result::ok).is_some_and(|line| !line.is_empty()) {}
                let answer = served.lock().unwrap();
                let (status, body) = match asked.as_str() {
                    _ if answer.away => ("500 Away", String::new()),
                    "GET /keys HTTP/1.1" => ("200 OK", json!({ "keys": answer.keys }).to_string()),
                    _ => ("404 Not Found", String::new()),
                };
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Self { port, answer }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn key_set_url(&self) -> String {
        self.url() + "/keys"
    }

    /// Answers 500 from now on, or no longer.
    pub(super) fn away(&self, away: bool) {
        self.answer.lock().unwrap().away = away;
    }

    /// Publishes these and no others.
    pub(super) fn publish(&self, keys: &[&Key]) {
        let public = keys.iter().map(|key| {
            let mut jwk = Jwk::from_encoding_key(&key.key, Algorithm::ES256).unwrap();
            jwk.common.key_id = Some(key.id.clone());
            serde_json::to_value(jwk).unwrap()
        });
        self.answer.lock().unwrap().keys = public.collect();
    }

    /// A token that allows everything for five minutes.
    pub(super) fn token(&self, key: &Key, subject: &str) -> String {
        let typ = Some("at+jwt".to_owned());
        let header = Header { kid: Some(key.id.clone()), typ, ..Header::new(Algorithm::ES256) };
        let claims = json!({
            "iss": self.url(),
            "aud": "rollcall",
            "sub": subject,
            "exp": OffsetDateTime::now_utc().unix_timestamp() + 300,
            "scope": "users:read users:write",
        });
        encode(&header, &claims, &key.key).unwrap()
    }
}
