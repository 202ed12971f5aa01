//! Page cursors: opaque, versioned, and checked, so that one from elsewhere is refused instead of showing odd pages.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::problem::Problem;

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 1 + 16 + 2;
/// Where the checksum begins.
const SUMMED: usize = LENGTH - 2;
/// For the contract: what a cursor looks like.
pub(crate) const PATTERN: &str = "^[A-Za-z0-9_-]{27}$";

/// Which way a page lies from where its cursor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    /// After it, in the order of the list.
    Next,
    /// Before it.
    Previous,
}

/// A place in a list, and which way to go from it. The item that stands there does not belong to the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) toward: Toward,
    pub(crate) from: Uuid,
}

/// Why a text is no cursor of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Whole, but written by a release that writes them otherwise.
    Version,
    /// Changed, cut, of another list, or never a cursor.
    Foreign,
}

impl Cursor {
    /// Writes the cursor for the list of this name.
    pub(crate) fn encode(self, list: &str) -> String {
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION;
        bytes[1] = match self.toward {
            Toward::Next => 0,
            Toward::Previous => 1,
        };
        bytes[2..SUMMED].copy_from_slice(self.from.as_bytes());
        let sum = checksum(&bytes[..SUMMED], list);
        bytes[SUMMED..].copy_from_slice(&sum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Cursor::encode`] wrote for the same list.
    pub(crate) fn decode(text: &str, list: &str) -> Result<Self, Fault> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Fault::Foreign)?;
        // Every version ends with the checksum, whatever its length.
        let (summed, sum) = bytes.split_at_checked(bytes.len().saturating_sub(2)).ok_or(Fault::Foreign)?;
        if summed.is_empty() || sum != checksum(summed, list) {
            return Err(Fault::Foreign);
        }
        if summed[0] != VERSION || summed.len() != SUMMED {
            return Err(Fault::Version);
        }
        let toward = match summed[1] {
            0 => Toward::Next,
            1 => Toward::Previous,
            _ => return Err(Fault::Version),
        };
        let from = Uuid::from_slice(&summed[2..]).map_err(|_| Fault::Foreign)?;
        Ok(Self { toward, from })
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::invalid_field(
            "cursor",
            match fault {
                Fault::Version => "is of a version that this service does not know; leave it out to start again",
                Fault::Foreign => {
                    "is not one that a page of this list gave; take next_cursor or prev_cursor as it is, or leave it out"
                }
            },
        )
    }
}

/// Fletcher-16 over the cursor and then the list: it guards against mistakes; there is nothing to win by forging one.
fn checksum(bytes: &[u8], list: &str) -> [u8; 2] {
    let (low, high) = bytes.iter().chain(list.as_bytes()).fold((1_u16, 0_u16), |(low, high), byte| {
        let low = (low + u16::from(*byte)) % 255;
        (low, (high + low) % 255)
    });
    [u8::try_from(low).unwrap_or_default(), u8::try_from(high).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        (any::<bool>(), any::<u128>()).prop_map(|(next, from)| Cursor {
            toward: if next { Toward::Next } else { Toward::Previous },
            from: Uuid::from_u128(from),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(cursor in cursors(), list in any::<String>()) {
            prop_assert_eq!(Cursor::decode(&cursor.encode(&list), &list), Ok(cursor));
        }

        #[test]
        fn one_other_character_is_noticed(cursor in cursors(), at in 0..27_usize, other in "[A-Za-z0-9_-]") {
            let text = cursor.encode("users");
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            prop_assert!(changed == text || Cursor::decode(&changed, "users") == Err(Fault::Foreign));
        }

        #[test]
        fn a_cursor_looks_as_the_contract_says(cursor in cursors()) {
            let text = cursor.encode("users");
            prop_assert_eq!(text.len(), 27);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'));
            prop_assert_eq!(PATTERN, "^[A-Za-z0-9_-]{27}$");
        }

        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            if let Ok(cursor) = Cursor::decode(&text, "users") {
                prop_assert_eq!(cursor.encode("users"), text);
            }
        }
    }

    #[test]
    fn a_cursor_of_another_list_is_foreign() {
        let cursor = Cursor { toward: Toward::Next, from: Uuid::from_u128(7) };
        assert_eq!(Cursor::decode(&cursor.encode("users"), "history"), Err(Fault::Foreign));
    }

    #[test]
    fn a_whole_cursor_of_another_version_says_so() {
        for (version, length) in [(VERSION + 1, SUMMED), (VERSION + 1, 40), (0, 1), (VERSION, SUMMED + 8)] {
            let mut bytes = vec![9; length];
            bytes[0] = version;
            bytes.extend(checksum(&bytes, "users"));
            assert_eq!(Cursor::decode(&URL_SAFE_NO_PAD.encode(bytes), "users"), Err(Fault::Version), "{version}");
        }
    }
}
