//! `Idempotency-Key` on the wire: which key a command came under, and what was asked for.
//!
//! # Why hashes?
//! They have one length whatever the client sends, and neither a client's key nor personal data is stored a second time.
//! Both are computed by every publisher, so what goes into them is as frozen as the wire names.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Command, Principal};

/// Makes a command take effect once however often it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// [`Digest::of_key`].
    pub key: Digest,
    /// [`Digest::of_request`]; another one under the same key is rejected.
    pub fingerprint: Digest,
}

/// A SHA-256 value; in JSON 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is no digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256 value; write it as 64 hexadecimal digits in lower case")]
pub struct InvalidDigest;

impl Digest {
    /// The hash of a client's key. Keys of different principals never meet.
    pub fn of_key(principal: &Principal, key: &str) -> Self {
        // No principal has a control character, so the zero ends it.
        let parts = [principal.as_str().as_bytes(), &[0], key.as_bytes()];
        Self::of(&parts.concat())
    }

    /// The fingerprint of a request: the hash of `[wire name, if_match, members in alphabetical order]` as JSON without
    /// white space. The id of a user to create is no part of it: the client did not send it.
    pub fn of_request(command: &Command, if_match: Option<i64>) -> Self {
        Self::of_conditional(command, if_match)
    }

    /// The same for a request that names several versions, as a list.
    pub fn of_request_for_any(command: &Command, versions: &[i64]) -> Self {
        Self::of_conditional(command, versions)
    }

    fn of_conditional(command: &Command, if_match: impl Serialize) -> Self {
        let data = serde_json::to_value(command).ok().and_then(|mut tagged| tagged.get_mut("data").map(Value::take));
        let mut members: BTreeMap<String, Value> = match data {
            Some(Value::Object(members)) => members.into_iter().collect(),
            // Every command has members.
            _ => BTreeMap::new(),
        };
        if let Command::CreateUser(_) = command {
            members.remove("user_id");
        }
        // Strings and integers: nothing here can fail to serialise.
        Self::of(&serde_json::to_vec(&(command.wire_name(), if_match, members)).unwrap_or_default())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(InvalidDigest),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes: Vec<u8> =
            pairs.iter().map(|[high, low]| Ok(value(*high)? << 4 | value(*low)?)).collect::<Result<_, _>>()?;
        match <[u8; 32]>::try_from(bytes) {
            Ok(bytes) if rest.is_empty() => Ok(Self(bytes)),
            _ => Err(InvalidDigest),
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}
