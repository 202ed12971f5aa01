//! Defect of a frame: what the filter says in the headers of a message that it changed.

use std::fmt;

use bytes::{BufMut, BytesMut};
use lapin::types::{AMQPValue, FieldTable};

use super::LARGEST_BODY;

/// Headers that begin with this are the filter's: a message that comes with one is refused.
pub(super) const RESERVED: &[u8] = b"x-rollcall-";
const REASON: &str = "x-rollcall-refused";
const PROPERTIES: &str = "x-rollcall-properties";
const SIZE: &str = "x-rollcall-size";

/// More of the properties is not kept, so that the new frame fits into the smallest that a broker may be set to.
const LONGEST_PROPERTIES: usize = 3 * 1024;

/// Why a message did not arrive as it was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameDefect {
    /// What is wrong with the properties, if they were refused.
    pub refused: Option<String>,
    /// The octets of the properties, flags first (AMQP 0-9-1, 4.2.6.1), if they were refused; the first 3 KiB.
    pub properties: Option<Vec<u8>>,
    /// The size of the body in bytes, if it was cut.
    pub size: Option<i64>,
}

impl FrameDefect {
    /// Reads the headers of a message that arrived through the filter.
    pub fn of(headers: Option<&FieldTable>) -> Option<Self> {
        let headers = headers?.inner();
        let refused = match headers.get(REASON) {
            Some(AMQPValue::LongString(reason)) => Some(reason.to_string()),
            _ => None,
        };
        let properties = match headers.get(PROPERTIES) {
            Some(AMQPValue::ByteArray(octets)) => Some(octets.as_slice().to_vec()),
            _ => None,
        };
        let size = match headers.get(SIZE) {
            Some(AMQPValue::LongLongInt(size)) => Some(*size),
            _ => None,
        };
        (refused.is_some() || size.is_some()).then_some(Self { refused, properties, size })
    }
}

impl fmt::Display for FrameDefect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            write!(f, "its properties are refused: {refused}")?;
        }
        if let Some(size) = self.size {
            let separator = if self.refused.is_some() { "; " } else { "" };
            write!(f, "{separator}its body has {size} bytes, of which {LARGEST_BODY} are kept")?;
        }
        Ok(())
    }
}

/// Properties that replace those that were refused: headers only.
pub(super) fn replacement(reason: &str, refused: &[u8], size: Option<u64>) -> BytesMut {
    const HEADERS_ONLY: u16 = 1 << 13;
    let mut entries = BytesMut::new();
    entry(&mut entries, REASON, b'S', &counted(reason.as_bytes()));
    entry(&mut entries, PROPERTIES, b'x', &counted(&refused[..refused.len().min(LONGEST_PROPERTIES)]));
    if let Some(size) = size {
        entries.put_slice(&size_entry(size));
    }
    let mut properties = BytesMut::new();
    properties.put_u16(HEADERS_ONLY);
    properties.put_slice(&counted(&entries));
    properties
}

/// The entry of a table of headers that says how long the body was.
pub(super) fn size_entry(size: u64) -> BytesMut {
    let mut bytes = BytesMut::new();
    entry(&mut bytes, SIZE, b'l', &i64::try_from(size).unwrap_or(i64::MAX).to_be_bytes());
    bytes
}

fn entry(table: &mut BytesMut, name: &str, kind: u8, value: &[u8]) {
    table.put_u8(u8::try_from(name.len()).unwrap_or_default());
    table.put_slice(name.as_bytes());
    table.put_u8(kind);
    table.put_slice(value);
}

/// Octets behind their number.
fn counted(octets: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(4 + octets.len());
    bytes.put_u32(u32::try_from(octets.len()).unwrap_or_default());
    bytes.put_slice(octets);
    bytes
}
