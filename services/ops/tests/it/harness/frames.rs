//! A publisher of raw frames: a client of AMQP 0-9-1 that sends properties as octets, also such as no client library writes.

use std::collections::BTreeSet;

use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
/// Every broker takes frames of this size.
const PIECE: usize = 4000;

/// One connection with a confirm channel.
pub(crate) struct RawPublisher {
    stream: TcpStream,
    published: u64,
    outstanding: BTreeSet<u64>,
}

impl RawPublisher {
    pub(crate) async fn connect(amqp_url: &str) -> Self {
        let url = Url::parse(amqp_url).unwrap();
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().unwrap().into_owned();
        let (host, port) = (url.host_str().unwrap(), url.port().unwrap_or(5672));
        let login = format!("\0{}\0{}", decoded(url.username()), decoded(url.password().unwrap_or_default()));
        let vhost = url.path().strip_prefix('/').filter(|path| !path.is_empty()).map_or("/".to_owned(), decoded);
        let mut stream = TcpStream::connect((host, port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
        let mut publisher = Self { stream, published: 0, outstanding: BTreeSet::new() };
        publisher.expect(10, 10).await;
        let response = [&u32::try_from(login.len()).unwrap().to_be_bytes(), login.as_bytes()].concat();
        publisher.method(0, 10, 11, &[&[0; 4], &*text(b"PLAIN"), &response, &text(b"en_US")]).await;
        let tune = publisher.expect(10, 30).await;
        // No heartbeats.
        publisher.method(0, 10, 31, &[&tune[..6], &[0, 0]]).await;
        publisher.method(0, 10, 40, &[&*text(vhost.as_bytes()), &[0, 0]]).await;
        publisher.expect(10, 41).await;
        publisher.method(1, 20, 10, &[&[0]]).await;
        publisher.expect(20, 11).await;
        publisher.method(1, 85, 10, &[&[0]]).await;
        publisher.expect(85, 11).await;
        publisher
    }

    /// Publishes a message with these octets as its properties, flags first.
    pub(crate) async fn publish(&mut self, exchange: &str, key: &[u8], properties: &[u8], body: &[u8]) {
        let mut frames = Vec::new();
        let publish = [&[0, 60, 0, 40, 0, 0][..], &text(exchange.as_bytes()), &text(key), &[0]].concat();
        frame(&mut frames, METHOD, 1, &publish);
        let size = u64::try_from(body.len()).unwrap().to_be_bytes();
        frame(&mut frames, HEADER, 1, &[&[0, 60, 0, 0][..], &size, properties].concat());
        for piece in body.chunks(PIECE) {
            frame(&mut frames, BODY, 1, piece);
        }
        self.published += 1;
        self.outstanding.insert(self.published);
        // A broker that has closed the connection shows when the confirms are awaited.
        let _ = self.stream.write_all(&frames).await;
    }

    /// Waits until everything is confirmed; the error is what the broker said instead.
    pub(crate) async fn confirmed(&mut self) -> Result<(), String> {
        while !self.outstanding.is_empty() {
            let (kind, payload) = self.read().await.ok_or("the connection ended")?;
            if kind != METHOD {
                continue;
            }
            let tag = payload.get(4..12).map(|tag| u64::from_be_bytes(tag.try_into().unwrap()));
            match (&payload[..4], tag) {
                ([0, 60, 0, 80], Some(tag)) if payload[12] & 1 == 1 => {
                    self.outstanding = self.outstanding.split_off(&(tag + 1));
                }
                ([0, 60, 0, 80], Some(tag)) => _ = self.outstanding.remove(&tag),
                _ => return Err(String::from_utf8_lossy(&payload[7..]).into_owned()),
            }
        }
        Ok(())
    }

    async fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[&[u8]]) {
        let id = [class.to_be_bytes(), method.to_be_bytes()].concat();
        let mut frames = Vec::new();
        frame(&mut frames, METHOD, channel, &[&id, &*arguments.concat()].concat());
        self.stream.write_all(&frames).await.unwrap();
    }

    /// The arguments of the next method, which is this one.
    async fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let (_, payload) = self.read().await.unwrap();
        assert_eq!(payload[..4], [class.to_be_bytes(), method.to_be_bytes()].concat());
        payload[4..].to_vec()
    }

    async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes(head[3..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(size).unwrap() + 1];
        self.stream.read_exact(&mut payload).await.ok()?;
        payload.pop();
        Some((head[0], payload))
    }
}

fn frame(frames: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    frames.push(kind);
    frames.extend(channel.to_be_bytes());
    frames.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frames.extend(payload);
    frames.push(FRAME_END);
}

/// A short string of any octets.
pub(crate) fn text(octets: &[u8]) -> Vec<u8> {
    [&[u8::try_from(octets.len()).unwrap()], octets].concat()
}

/// Octets behind their number.
pub(crate) fn counted(octets: &[u8]) -> Vec<u8> {
    [&u32::try_from(octets.len()).unwrap().to_be_bytes(), octets].concat()
}

/// Properties with these entries of a table of headers only.
pub(crate) fn headers(entries: &[u8]) -> Vec<u8> {
    [&[0x20, 0], &*counted(entries)].concat()
}

/// An entry whose value consists of arrays in one another.
pub(crate) fn nested(levels: usize) -> Vec<u8> {
    // From the inside out: each adds a letter and a number to what it holds.
    let mut octets = vec![0; levels * 5];
    for level in 0..levels {
        let held = u32::try_from((levels - level - 1) * 5 + 1).unwrap();
        octets[level * 5] = b'A';
        octets[level * 5 + 1..level * 5 + 5].copy_from_slice(&held.to_be_bytes());
    }
    [&text(b"deep")[..], &octets, b"V"].concat()
}
