//! Sieve of frames: takes one frame after the other and decides what passes in its place.

use std::collections::HashMap;

use bytes::{BufMut, BytesMut};

use super::LARGEST_BODY;
use super::defect::{replacement, size_entry};
use super::properties::{HEADERS, Sound, check};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
/// Type, channel and size.
const HEAD: usize = 7;
/// Class, weight and body size, in front of the properties.
const CONTENT_HEAD: usize = 12;
/// Sound properties that are longer are replaced rather than added to, so that the frame fits.
const ROOM: usize = 3 * 1024;

/// Methods that a broker sends with texts in them that may be a stranger's: class, method, and what they consist of.
const TEXTS: [(u16, u16, &[Argument]); 8] = {
    use Argument::{Skip, Text};
    [
        (10, 50, &[Skip(2), Text]),             // connection.close
        (10, 60, &[Text]),                      // connection.blocked
        (20, 40, &[Skip(2), Text]),             // channel.close
        (50, 11, &[Text]),                      // queue.declare-ok
        (60, 30, &[Text]),                      // basic.cancel
        (60, 50, &[Skip(2), Text, Text, Text]), // basic.return
        (60, 60, &[Text, Skip(9), Text, Text]), // basic.deliver
        (60, 71, &[Skip(9), Text, Text]),       // basic.get-ok
    ]
};

#[derive(Clone, Copy)]
enum Argument {
    Skip(usize),
    Text,
}

/// What is left of a body that is cut.
struct CutBody {
    keep: u64,
    left: u64,
}

#[derive(Default)]
pub(super) struct Sieve {
    /// By channel.
    cut: HashMap<u16, CutBody>,
    /// No frames arrive: a broker that speaks another protocol answers with the version that it speaks.
    foreign: bool,
}

impl Sieve {
    /// Takes a frame, if one has arrived as a whole, and says whether there was one.
    pub(super) fn pass(&mut self, arrived: &mut BytesMut, passed: &mut BytesMut) -> bool {
        self.foreign |= arrived.first().is_some_and(|kind| !matches!(*kind, METHOD | HEADER | BODY | HEARTBEAT));
        if self.foreign {
            passed.unsplit(arrived.split());
            return false;
        }
        let Some([kind, c0, c1, s0, s1, s2, s3]) = arrived.first_chunk::<HEAD>().copied() else { return false };
        let channel = u16::from_be_bytes([c0, c1]);
        let Ok(size) = usize::try_from(u32::from_be_bytes([s0, s1, s2, s3])) else { return false };
        let end = HEAD + size;
        if arrived.len() <= end {
            arrived.reserve((end + 1).min(super::READ_SIZE));
            return false;
        }
        let mut frame = arrived.split_to(end + 1);
        match kind {
            METHOD => clean(&mut frame[HEAD..end]),
            HEADER => {
                if let Some(other) = self.header(channel, &frame[HEAD..end]) {
                    return put(passed, HEADER, channel, &other);
                }
            }
            BODY => {
                if let Some(kept) = self.body(channel, size) {
                    return kept == 0 || put(passed, BODY, channel, &frame[HEAD..HEAD + kept]);
                }
            }
            _ => {}
        }
        passed.put_slice(&frame);
        true
    }

    /// A content header that passes in the place of this one; none if it passes itself.
    fn header(&mut self, channel: u16, content: &[u8]) -> Option<BytesMut> {
        self.cut.remove(&channel);
        let (head, properties) = content.split_at_checked(CONTENT_HEAD)?;
        let (class, size) = head.split_at(4);
        let size = u64::from_be_bytes(size.try_into().ok()?);
        let long = (size > LARGEST_BODY).then_some(size);
        if long.is_some() {
            self.cut.insert(channel, CutBody { keep: LARGEST_BODY, left: size });
        }
        let properties = match (check(properties), long) {
            (Ok(_), None) => return None,
            (Ok(sound), Some(size)) if properties.len() <= ROOM => with_size(&sound, properties, size),
            (Ok(_), long) => replacement("they are too long beside a body that is cut", properties, long),
            (Err(reason), long) => replacement(&reason, properties, long),
        };
        let mut other = BytesMut::with_capacity(CONTENT_HEAD + properties.len());
        other.put_slice(class);
        other.put_u64(size.min(LARGEST_BODY));
        other.put_slice(&properties);
        Some(other)
    }

    /// How much passes of a frame of a body that is cut; none if it is not.
    fn body(&mut self, channel: u16, size: usize) -> Option<usize> {
        let cut = self.cut.get_mut(&channel)?;
        let kept = usize::try_from(cut.keep).unwrap_or(usize::MAX).min(size);
        cut.keep -= kept as u64;
        cut.left = cut.left.saturating_sub(size as u64);
        if cut.left == 0 {
            self.cut.remove(&channel);
        }
        Some(kept)
    }
}

fn put(passed: &mut BytesMut, kind: u8, channel: u16, payload: &[u8]) -> bool {
    passed.put_u8(kind);
    passed.put_u16(channel);
    passed.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    passed.put_slice(payload);
    passed.put_u8(FRAME_END);
    true
}

/// Sound properties with a header that says how long the body was.
fn with_size(Sound { headers_at }: &Sound, properties: &[u8], size: u64) -> BytesMut {
    let (front, rest) = properties.split_at(*headers_at);
    let flags = u16::from_be_bytes([front[0], front[1]]);
    let entry = size_entry(size);
    let (mut length, mut rest) = (0, rest);
    if flags & HEADERS != 0
        && let Some((count, entries)) = rest.split_first_chunk()
    {
        length = u32::from_be_bytes(*count);
        rest = entries;
    }
    let mut other = BytesMut::with_capacity(properties.len() + entry.len() + 4);
    other.put_u16(flags | HEADERS);
    other.put_slice(&front[2..]);
    other.put_u32(length + u32::try_from(entry.len()).unwrap_or_default());
    other.put_slice(&entry);
    other.put_slice(rest);
    other
}

/// Replaces what is no UTF-8 in the texts of a method, whose lengths stay.
fn clean(method: &mut [u8]) {
    let Some(([c0, c1, m0, m1], mut rest)) = method.split_first_chunk_mut::<4>().map(|(id, rest)| (*id, rest)) else {
        return;
    };
    let id = (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([m0, m1]));
    let Some((.., arguments)) = TEXTS.iter().find(|(class, method, _)| (*class, *method) == id) else { return };
    for argument in *arguments {
        let count = match (argument, rest.first()) {
            (Argument::Skip(count), _) => *count,
            (Argument::Text, Some(count)) => 1 + usize::from(*count),
            (Argument::Text, None) => return,
        };
        let Some((this, next)) = rest.split_at_mut_checked(count) else { return };
        if let (Argument::Text, Some((_, text))) = (argument, this.split_first_mut()) {
            while let Err(fault) = std::str::from_utf8(text) {
                text[fault.valid_up_to()] = b'?';
            }
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::parse_properties;
    use proptest::prelude::*;

    use super::*;
    use crate::broker::FrameDefect;

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> BytesMut {
        let mut frame = BytesMut::new();
        put(&mut frame, kind, channel, payload);
        frame
    }

    fn content(size: u64, properties: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0][..], &size.to_be_bytes(), properties].concat()
    }

    /// What passes of these octets when they arrive in pieces of a size.
    fn sifted(octets: &[u8], piece: usize) -> Vec<u8> {
        let (mut sieve, mut arrived, mut passed) = (Sieve::default(), BytesMut::new(), BytesMut::new());
        for piece in octets.chunks(piece) {
            arrived.extend_from_slice(piece);
            while sieve.pass(&mut arrived, &mut passed) {}
        }
        assert!(arrived.is_empty());
        passed.to_vec()
    }

    /// The only content header in these frames, and the rest of them.
    fn header(frames: &[u8]) -> (u64, Option<FrameDefect>, &[u8]) {
        let size = u32::from_be_bytes(frames[3..7].try_into().expect("a size")) as usize;
        let body = u64::from_be_bytes(frames[11..19].try_into().expect("a size"));
        let (rest, properties) = parse_properties(&frames[19..7 + size]).expect("properties");
        assert!(rest.is_empty());
        (body, FrameDefect::of(properties.headers().as_ref()), &frames[8 + size..])
    }

    #[test]
    fn sound_frames_pass_unchanged_however_they_arrive() {
        let frames = [
            frame(METHOD, 1, &[0, 60, 0, 60, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b'e', 1, b'k']),
            frame(HEADER, 1, &content(3, &[0x80, 0, 2, b'a', b'b'])),
            frame(BODY, 1, b"abc"),
            frame(HEARTBEAT, 0, b""),
        ]
        .concat();
        for piece in 1..=frames.len() {
            assert_eq!(sifted(&frames, piece), frames, "in pieces of {piece}");
        }
        assert_eq!(sifted(b"AMQP\x00\x01\x00\x00", 3), b"AMQP\x00\x01\x00\x00", "of a broker of another protocol");
    }

    #[test]
    fn refused_properties_are_replaced_and_kept() {
        let deep = (0..3000).fold(vec![b'V'], |inner, _| {
            [b"A".to_vec(), u32::try_from(inner.len()).expect("short").to_be_bytes().to_vec(), inner].concat()
        });
        let table = |entries: &[u8]| {
            [&[0x20, 0][..], &u32::try_from(entries.len()).expect("short").to_be_bytes(), entries].concat()
        };
        // An array of one-octet values, which would be megabytes in the library.
        let many = [&b"\x01aA"[..], &130_000_u32.to_be_bytes(), &b"V".repeat(130_000)].concat();
        let cases = [
            (table(&many), "they have 130013 octets, and 16384 are the most"),
            (vec![0, 0x80, 1, 0xff], "message_id: is not UTF-8"),
            (vec![0, 0x80, 2, b'a'], "message_id: ends too early"),
            (table(&[1, 0xff, b'V']), "headers: a name is not UTF-8"),
            (table(&[1, b'a', b'Z']), "headers: has a value of a type that is not known"),
            (table(&[&[1, b'a'][..], &deep].concat()), "headers: tables are nested too deep"),
            (table(b"\x12x-rollcall-refused\x56"), "headers: a name that begins with x-rollcall- is reserved"),
            (vec![0, 1], "the flags: reserved bits are set"),
            (vec![0], "the flags: ends too early"),
            (vec![0, 0, 7], "octets follow the last property"),
        ];
        for (properties, reason) in cases {
            let frames = [frame(HEADER, 7, &content(2, &properties)), frame(BODY, 7, b"{}")].concat();
            let passed = sifted(&frames, 4096);
            let (size, defect, rest) = header(&passed);
            assert_eq!((size, rest), (2, &*frame(BODY, 7, b"{}")), "{reason}");
            let defect = defect.expect(reason);
            let kept = properties[..properties.len().min(3072)].to_vec();
            assert_eq!(defect, FrameDefect { refused: Some(reason.to_owned()), properties: Some(kept), size: None });
            assert!(passed.len() < 4096, "fits into the smallest frame");
        }
    }

    #[test]
    fn a_long_body_is_cut_and_says_how_long_it_was() {
        let long = vec![b'x'; 100_000];
        let headers = [&[0x20, 0, 0, 0, 0, 3][..], &[1, b'a', b'V']].concat();
        for properties in [vec![0, 0], vec![0x80, 0, 1, b'a'], headers, vec![0, 0x80, 1, 0xff]] {
            let mut frames = frame(HEADER, 3, &content(400_000, &properties));
            for _ in 0..4 {
                frames.unsplit(frame(BODY, 3, &long));
                frames.unsplit(frame(HEARTBEAT, 0, b""));
            }
            frames.unsplit(frame(HEADER, 3, &content(1, &[0, 0])));
            frames.unsplit(frame(BODY, 3, b"y"));
            let passed = sifted(&frames, 5000);
            let (size, defect, rest) = header(&passed);
            assert_eq!((size, defect.and_then(|defect| defect.size)), (LARGEST_BODY, Some(400_000)));
            let kept = rest.split(|octet| *octet == b'x').count() - 1;
            assert_eq!(kept as u64, LARGEST_BODY);
            let next = [frame(HEADER, 3, &content(1, &[0, 0])), frame(BODY, 3, b"y")].concat();
            assert!(rest.ends_with(&next), "the next message is whole");
        }
    }

    #[test]
    fn texts_of_methods_become_utf_8() {
        let method = [0, 60, 0, 60, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0xff, b'e', 3, 0xe2, 0x82, b'k'];
        let expected = [0, 60, 0, 60, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, b'?', b'e', 3, b'?', b'?', b'k'];
        assert_eq!(sifted(&frame(METHOD, 1, &method), 64), frame(METHOD, 1, &expected).to_vec());
        let close = [0, 20, 0, 40, 1, 148, 1, 0xff, 0, 0, 0, 0];
        assert_eq!(sifted(&frame(METHOD, 1, &close), 64)[7 + 7], b'?');
        for cut in 0..method.len() {
            sifted(&frame(METHOD, 1, &method[..cut]), 64);
        }
    }

    /// Properties that are nearly right: each field with a few octets, some of them exchanged.
    fn nearly_right() -> impl Strategy<Value = Vec<u8>> {
        let octet = prop_oneof![Just(0_u8), Just(1), Just(2), Just(4), 0_u8..8, any::<u8>()];
        let letter = prop_oneof![
            Just(b'S'),
            Just(b'F'),
            Just(b'A'),
            Just(b't'),
            Just(b'b'),
            Just(b'B'),
            Just(b's'),
            Just(b'U'),
            Just(b'u'),
            Just(b'I'),
            Just(b'i'),
            Just(b'f'),
            Just(b'D'),
            Just(b'L'),
            Just(b'l'),
            Just(b'd'),
            Just(b'T'),
            Just(b'x'),
            Just(b'V'),
            any::<u8>(),
        ];
        let value = (letter, prop::collection::vec(octet.clone(), 0..9)).prop_map(|(l, v)| [&[l][..], &v].concat());
        let entry = (prop::collection::vec(any::<u8>(), 0..3), value.clone())
            .prop_map(|(name, value)| [&[u8::try_from(name.len()).expect("short")][..], &name, &value].concat());
        let table = prop::collection::vec(entry, 0..3).prop_map(|entries| {
            let entries = entries.concat();
            [&[0x20, 0][..], &u32::try_from(entries.len()).expect("short").to_be_bytes(), &entries].concat()
        });
        prop_oneof![
            table,
            (any::<u16>(), prop::collection::vec(octet, 0..40)).prop_map(|(flags, rest)| [
                &flags.to_be_bytes()[..],
                &rest
            ]
            .concat()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

        /// What passes is parsed, and what is replaced would not have been, but for the points in which the check is stricter.
        #[test]
        fn the_client_library_parses_exactly_what_passes(properties in nearly_right()) {
            let parsed = parse_properties(&properties[..]).is_ok_and(|(rest, _)| rest.is_empty());
            match check(&properties) {
                Ok(_) => prop_assert!(parsed),
                Err(reason) => prop_assert!(!parsed || reason.contains("reserved"), "{reason}"),
            }
        }

        #[test]
        fn no_octets_break_the_sieve(octets in prop::collection::vec(any::<u8>(), 0..200), kind in 1_u8..4) {
            let mut frames = frame(kind, 1, &octets);
            frames.unsplit(frame(HEARTBEAT, 0, b""));
            let passed = sifted(&frames, 50);
            prop_assert!(passed.ends_with(&frame(HEARTBEAT, 0, b"")));
        }
    }
}
