//! Signature of a command: proof that a process with the deployment's key made it (HMAC-SHA-256, RFC 2104).
//!
//! It travels in the AMQP header `rollcall-signature`, as `hmac-sha256 KEY-ID HEX`, and covers the message's `message_id`, its
//! `type` and its body. Who only has an account at the broker cannot make commands, nor change the principal of one.
//! [Replies](super::CommandReply) are signed in the same way, with the name of their queue as the id.
//!
//! # How is it introduced, and how is a key replaced?
//! A worker without keys ignores signatures, and an API without keys makes none. So the APIs get the key first, and the workers
//! once the queues hold signed commands only. A setting may have two keys: the first signs, both are accepted. A new key is
//! added as the second everywhere, then becomes the first, and then the old one is removed.

use std::fmt::{self, Write as _};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};

/// The name of the AMQP header.
pub const SIGNATURE_HEADER: &str = "rollcall-signature";
const ALGORITHM: &str = "hmac-sha256";
const KEY_BYTES: usize = 32;
const MOST_KEYS: usize = 2;
/// Of a key's hash, as its id.
const ID_BYTES: usize = 4;

/// The keys of a deployment; none where commands are not signed.
#[derive(Clone, Default)]
pub struct CommandKeys(Vec<Key>);

#[derive(Clone)]
struct Key {
    id: String,
    mac: Hmac<Sha256>,
}

/// Why a message is not taken for a command of this deployment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// No header, or one of another form.
    #[error(
        "unsigned: this worker has a COMMAND_KEY, and the message has no header {SIGNATURE_HEADER} that it can read"
    )]
    Missing,
    /// Another deployment's key, or one that was removed.
    #[error("signed with the key {0:?}, which this worker does not have")]
    UnknownKey(String),
    /// The message is not the one that was signed.
    #[error("its signature does not fit the message")]
    Wrong,
}

impl CommandKeys {
    /// Reads one key, or two with a comma in between; the first signs.
    ///
    /// # Errors
    /// Says what is expected; never quotes a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = |text: &str| {
            let bytes = unhex(text.trim()).filter(|bytes| bytes.len() == KEY_BYTES)?;
            let id = hex(&Sha256::digest(&bytes)[..ID_BYTES]);
            Some(Key { id, mac: Hmac::new_from_slice(&bytes).ok()? })
        };
        let keys: Option<Vec<Key>> = text.split(',').map(key).collect();
        let expected = || {
            format!(
                "expected {KEY_BYTES} random bytes in hex, as `openssl rand -hex {KEY_BYTES}` gives them, or two of \
                     these with a comma in between"
            )
        };
        keys.filter(|keys| keys.len() <= MOST_KEYS).map(Self).ok_or_else(expected)
    }

    /// The value of the header; `None` without keys.
    pub fn sign(&self, id: &str, kind: &str, body: &[u8]) -> Option<String> {
        let key = self.0.first()?;
        let code = key.over(id, kind, body).finalize().into_bytes();
        Some(format!("{ALGORITHM} {} {}", key.id, hex(&code)))
    }

    /// Checks the value of the header; everything is accepted without keys.
    ///
    /// # Errors
    /// See [`SignatureError`].
    pub fn verify(&self, header: Option<&str>, id: &str, kind: &str, body: &[u8]) -> Result<(), SignatureError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let parts: Vec<&str> = header.unwrap_or_default().split(' ').collect();
        let [ALGORITHM, name, code] = parts[..] else { return Err(SignatureError::Missing) };
        let code = unhex(code).ok_or(SignatureError::Missing)?;
        let unknown = || SignatureError::UnknownKey(name.chars().filter(char::is_ascii_alphanumeric).take(8).collect());
        let key = self.0.iter().find(|key| key.id == name).ok_or_else(unknown)?;
        // In constant time.
        key.over(id, kind, body).verify_slice(&code).map_err(|_| SignatureError::Wrong)
    }
}

impl Key {
    /// Each part with its length, so that none can be moved into the next.
    fn over(&self, id: &str, kind: &str, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        for part in [id.as_bytes(), kind.as_bytes(), body] {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part);
        }
        mac
    }
}

impl fmt::Debug for CommandKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| u8::try_from(high * 16 + low).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const SECOND: &str = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn keys(text: &str) -> CommandKeys {
        CommandKeys::parse(text).expect("keys")
    }

    #[test]
    fn a_signature_covers_every_part_of_the_message() {
        let keys = keys(FIRST);
        let signature = keys.sign("id", "users.create", b"body").expect("a key");
        assert_eq!(keys.verify(Some(&signature), "id", "users.create", b"body"), Ok(()));
        for (id, kind, body) in [
            ("ie", "users.create", "body"),
            ("id", "users.delete", "body"),
            ("id", "users.create", "bodx"),
            ("", "idusers.create", "body"),
        ] {
            assert_eq!(keys.verify(Some(&signature), id, kind, body.as_bytes()), Err(SignatureError::Wrong));
        }
        for header in [None, Some(""), Some("hmac-sha512 00 00"), Some(&signature[..signature.len() - 1])] {
            assert_eq!(keys.verify(header, "id", "users.create", b"body"), Err(SignatureError::Missing), "{header:?}");
        }
    }

    #[test]
    fn two_keys_are_accepted_while_one_replaces_the_other() {
        let (old, both, new) = (keys(FIRST), keys(&format!("{SECOND},{FIRST}")), keys(SECOND));
        let verify = |keys: &CommandKeys, signature: &Option<String>| keys.verify(signature.as_deref(), "i", "k", b"b");
        for (signer, accepted_by) in [(&old, [&old, &both]), (&both, [&both, &new]), (&new, [&both, &new])] {
            let signature = signer.sign("i", "k", b"b");
            for keys in accepted_by {
                assert_eq!(verify(keys, &signature), Ok(()));
            }
        }
        assert!(matches!(verify(&new, &old.sign("i", "k", b"b")), Err(SignatureError::UnknownKey(_))));
        let none = CommandKeys::default();
        assert_eq!((none.sign("i", "k", b"b"), verify(&none, &None)), (None, Ok(())), "off without a key");
    }

    #[test]
    fn a_key_is_named_by_its_hash_and_never_quoted() {
        for text in ["", "secret", &FIRST[1..], &format!("{FIRST},{FIRST},{FIRST}"), &format!("{FIRST}é")] {
            let fault = CommandKeys::parse(text).expect_err(text);
            assert!(fault.contains("openssl rand -hex 32") && !fault.contains("secret"), "{fault}");
        }
        let shown = format!("{:?}", keys(FIRST));
        assert!(!shown.contains("0001020304") && shown.len() < 20, "{shown}");
    }
}
