//! Check of a message's properties: whether the client library is certain to parse them.
//!
//! Stricter than the library in three points: properties have at most [`LONGEST`] octets, because the library needs many times as
//! much memory for them, tables may be nested [`DEEPEST`] levels only, and reserved flags are refused. What passes is parsed,
//! which a test compares with the library's own parser.

use super::defect::RESERVED;

/// Many times what any part of this system sends; a value of one octet takes dozens in the library.
const LONGEST: usize = 16 * 1024;
/// Tables and arrays in one another; `x-death` has two.
const DEEPEST: u8 = 16;

/// The properties in the order of their flags, from the highest bit on.
const FIELDS: [(&str, Kind); 14] = [
    ("content_type", Kind::Text),
    ("content_encoding", Kind::Text),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Octets(1)),
    ("priority", Kind::Octets(1)),
    ("correlation_id", Kind::Text),
    ("reply_to", Kind::Text),
    ("expiration", Kind::Text),
    ("message_id", Kind::Text),
    ("timestamp", Kind::Octets(8)),
    ("type", Kind::Text),
    ("user_id", Kind::Text),
    ("app_id", Kind::Text),
    ("cluster_id", Kind::Text),
];
/// The flag of the headers.
pub(super) const HEADERS: u16 = 1 << 13;
/// No property has these.
const RESERVED_FLAGS: u16 = 0b11;

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Table,
    Octets(usize),
}

/// Where a header can be added to properties that are sound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sound {
    /// Where the table of headers begins, or would.
    pub(super) headers_at: usize,
}

/// Checks properties, flags first; the error says what is wrong, without the octets of the publisher.
pub(super) fn check(properties: &[u8]) -> Result<Sound, String> {
    if properties.len() > LONGEST {
        return Err(format!("they have {} octets, and {LONGEST} are the most", properties.len()));
    }
    let mut octets = Octets(properties);
    let flags = u16::from_be_bytes(octets.array().map_err(|fault| format!("the flags: {fault}"))?);
    if flags & RESERVED_FLAGS != 0 {
        return Err("the flags: reserved bits are set".to_owned());
    }
    let mut headers_at = 0;
    for (number, (name, kind)) in FIELDS.into_iter().enumerate() {
        let at = properties.len() - octets.0.len();
        if name == "headers" {
            headers_at = at;
        }
        if flags & (1 << (15 - number)) == 0 {
            continue;
        }
        let checked = match kind {
            Kind::Text => octets.text().map(|_| ()),
            Kind::Table => octets.table(1),
            Kind::Octets(count) => octets.take(count).map(|_| ()),
        };
        checked.map_err(|fault| format!("{name}: {fault}"))?;
    }
    if octets.0.is_empty() { Ok(Sound { headers_at }) } else { Err("octets follow the last property".to_owned()) }
}

type Fault = &'static str;

const TOO_SHORT: Fault = "ends too early";

/// What has not been read.
struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(TOO_SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| TOO_SHORT)
    }

    /// Octets behind a number of 32 bits.
    fn counted(&mut self) -> Result<&'a [u8], Fault> {
        let count = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(count).map_err(|_| TOO_SHORT)?)
    }

    /// A short string.
    fn text(&mut self) -> Result<&'a [u8], Fault> {
        let [count] = self.array()?;
        let text = self.take(usize::from(count))?;
        if std::str::from_utf8(text).is_ok() { Ok(text) } else { Err("is not UTF-8") }
    }

    fn table(&mut self, depth: u8) -> Result<(), Fault> {
        let mut entries = Octets(self.counted()?);
        while !entries.0.is_empty() {
            let name =
                entries.text().map_err(|fault| if fault == TOO_SHORT { fault } else { "a name is not UTF-8" })?;
            if depth == 1 && name.starts_with(RESERVED) {
                return Err("a name that begins with x-rollcall- is reserved");
            }
            entries.value(depth)?;
        }
        Ok(())
    }

    fn array_of_values(&mut self, depth: u8) -> Result<(), Fault> {
        let mut values = Octets(self.counted()?);
        while !values.0.is_empty() {
            values.value(depth)?;
        }
        Ok(())
    }

    /// A value behind the letter of its type, as RabbitMQ uses them.
    fn value(&mut self, depth: u8) -> Result<(), Fault> {
        let [kind] = self.array()?;
        let size = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' => return self.counted().map(|_| ()),
            b'F' | b'A' if depth == DEEPEST => return Err("tables are nested too deep"),
            b'F' => return self.table(depth + 1),
            b'A' => return self.array_of_values(depth + 1),
            _ => return Err("has a value of a type that is not known"),
        };
        self.take(size).map(|_| ())
    }
}
