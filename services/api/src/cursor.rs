//! Page cursors: opaque, versioned, and checked, so that one from elsewhere is refused instead of showing odd pages.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

const VERSION: u8 = 1;
const LENGTH: usize = 1 + 16 + 2;

/// Writes the cursor that continues after `last`.
pub(crate) fn encode(last: Uuid) -> String {
    let mut bytes = [0; LENGTH];
    bytes[0] = VERSION;
    bytes[1..17].copy_from_slice(last.as_bytes());
    let sum = checksum(&bytes[..17]);
    bytes[17..].copy_from_slice(&sum);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor; `None` for anything that [`encode`] did not write.
pub(crate) fn decode(text: &str) -> Option<Uuid> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let bytes: [u8; LENGTH] = bytes.try_into().ok()?;
    let id = Uuid::from_slice(&bytes[1..17]).ok()?;
    (bytes[0] == VERSION && bytes[17..] == checksum(&bytes[..17])).then_some(id)
}

/// Fletcher-16: it guards against mistakes; there is nothing to win by forging one.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let (low, high) = bytes.iter().fold((1_u16, 0_u16), |(low, high), byte| {
        let low = (low + u16::from(*byte)) % 255;
        (low, (high + low) % 255)
    });
    [u8::try_from(low).unwrap_or_default(), u8::try_from(high).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(id in any::<u128>().prop_map(Uuid::from_u128)) {
            prop_assert_eq!(decode(&encode(id)), Some(id));
        }

        #[test]
        fn one_other_character_is_noticed(id in any::<u128>(), at in 0..26_usize, other in "[A-Za-z0-9_-]") {
            let cursor = encode(Uuid::from_u128(id));
            let changed = format!("{}{other}{}", &cursor[..at], &cursor[at + 1..]);
            prop_assert!(changed == cursor || decode(&changed).is_none());
        }

        #[test]
        fn any_text_is_read_without_panic(text in any::<String>()) {
            if let Some(id) = decode(&text) {
                prop_assert_eq!(encode(id), text);
            }
        }
    }
}
