//! The text of an API key: `rollcall_<id>_<secret><checksum>`.
//!
//! # Why these parts?
//! The prefix is what secret scanners look for. The id is public: lists and logs name a key by it. The secret has 160 bits,
//! so a plain SHA-256 of the key is enough to store: there is nothing to guess, which a slow hash would make slower. The
//! checksum is a CRC-32 of all before it: a key that was mistyped or cut is refused without a look at any list.

use std::fmt;

use sha2::{Digest as _, Sha256};

const PREFIX: &str = "rollcall_";
/// Five bits a character, in lower case, without those that are read as others (i, l, o, u).
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_CHARS: usize = 10;
const SECRET_CHARS: usize = 32;
/// Where each character of the checksum begins in its 32 bits.
const CHECKSUM_SHIFTS: [u32; 7] = [30, 25, 20, 15, 10, 5, 0];
const CHECKSUM_CHARS: usize = CHECKSUM_SHIFTS.len();

/// A key, which proves who a client is. Never stored and never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It does not look like one.
    #[error("not an API key")]
    NotAKey,
    /// Its checksum does not hold.
    #[error("an API key with a typing error, or a part of one")]
    Mistyped,
}

impl ApiKey {
    /// A fresh key.
    pub fn mint() -> Self {
        let mut random = [0; ID_CHARS + SECRET_CHARS];
        // The thread's generator: ChaCha, seeded by the operating system.
        rand::fill(&mut random);
        let (id, secret) = random.split_at(ID_CHARS);
        let letters = |bytes: &[u8]| bytes.iter().map(|byte| letter(u32::from(*byte))).collect::<String>();
        let text = format!("{PREFIX}{}_{}", letters(id), letters(secret));
        let checksum = checksum(&text);
        Self(text + &checksum)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// See [`InvalidKey`].
    pub fn parse(text: &str) -> Result<Self, InvalidKey> {
        if !Self::resembles(text) {
            return Err(InvalidKey::NotAKey);
        }
        let spelled = text.get(PREFIX.len()..).and_then(|rest| rest.split_once('_')).is_some_and(|(id, secret)| {
            id.len() == ID_CHARS
                && secret.len() == SECRET_CHARS + CHECKSUM_CHARS
                && id.bytes().chain(secret.bytes()).all(|byte| ALPHABET.contains(&byte))
        });
        let Some((body, sum)) = spelled.then(|| text.split_at(text.len() - CHECKSUM_CHARS)) else {
            return Err(InvalidKey::Mistyped);
        };
        if checksum(body) == sum { Ok(Self(text.to_owned())) } else { Err(InvalidKey::Mistyped) }
    }

    /// Whether a text is meant to be a key.
    pub fn resembles(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// The public part.
    pub fn id(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + ID_CHARS]
    }

    /// The whole key, for the one time that it is shown.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored: the SHA-256 of the whole key.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}, …)", self.id())
    }
}

/// The character of the lowest five bits.
fn letter(bits: u32) -> char {
    char::from(ALPHABET[(bits & 31) as usize])
}

fn checksum(text: &str) -> String {
    let sum = crc32(text.as_bytes());
    CHECKSUM_SHIFTS.map(|bits| letter(sum >> bits)).iter().collect()
}

/// CRC-32 as in Ethernet and zip (reflected, polynomial 0xEDB88320): every change within 32 bits is found.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_the_one_that_everybody_computes() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
        // Written down once: keys that were handed out must hold.
        let known = "rollcall_0123456789_0123456789abcdefghjkmnpqrstvwxyz";
        assert_eq!(checksum(known), "0563mgc");
    }

    #[test]
    fn every_key_is_another_and_shows_no_secret() {
        let keys: Vec<_> = (0..1000).map(|_| ApiKey::mint()).collect();
        assert_eq!(keys.iter().map(ApiKey::id).collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys.iter().map(ApiKey::hash).collect::<HashSet<_>>().len(), keys.len());
        for key in &keys {
            assert_eq!(ApiKey::parse(key.expose()).as_ref(), Ok(key));
            let shown = format!("{key:?}");
            assert!(shown.contains(key.id()) && !shown.contains(&key.expose()[20..]), "{shown}");
        }
    }

    #[test]
    fn what_was_never_a_key_is_told_from_one_that_was_mistyped() {
        let key = ApiKey::mint();
        for text in ["", "rollcall", "Rollcall_x", "eyJhbGciOiJub25lIn0.e30.", &key.expose()[1..]] {
            assert_eq!(ApiKey::parse(text), Err(InvalidKey::NotAKey), "{text:?}");
        }
        let text = key.expose();
        for text in
            [&text[..text.len() - 1], &format!("{text}0"), &text.to_uppercase().replacen("ROLLCALL", "rollcall", 1)]
        {
            assert_eq!(ApiKey::parse(text), Err(InvalidKey::Mistyped), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_key_with_one_changed_character_is_refused(at in 0_usize..59, other in any::<char>()) {
            let key = ApiKey::mint();
            let mut characters: Vec<char> = key.expose().chars().collect();
            prop_assert_eq!(characters.len(), 59);
            prop_assume!(characters[at] != other);
            characters[at] = other;
            prop_assert!(ApiKey::parse(&characters.into_iter().collect::<String>()).is_err());
        }

        #[test]
        fn two_characters_that_changed_places_are_refused(at in 0_usize..58) {
            let key = ApiKey::mint();
            let mut characters: Vec<char> = key.expose().chars().collect();
            prop_assume!(characters[at] != characters[at + 1]);
            characters.swap(at, at + 1);
            prop_assert!(ApiKey::parse(&characters.into_iter().collect::<String>()).is_err());
        }

        #[test]
        fn no_text_makes_the_reader_fall_over(text in "(rollcall_)?\\PC{0,80}") {
            if let Ok(key) = ApiKey::parse(&text) {
                prop_assert_eq!(key.expose(), text);
            }
        }
    }
}
