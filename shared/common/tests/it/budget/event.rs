//! What can happen, and how often.

use rand::RngExt;
use rand::rngs::StdRng;

pub(crate) const INSTANCES: usize = 4;

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// Time passes for everybody.
    Tick(i64),
    Join(usize),
    /// A heartbeat is sent, with what was so at that moment; served; heard.
    Ask(usize),
    Serve(usize),
    Hear(usize),
    /// All of that without anything in between.
    Beat(usize),
    /// A connection is begun; is there.
    Open(usize),
    Show(usize),
    Close(usize),
    Want(usize, i64),
    Leave(usize),
    Kill(usize),
    Freeze(usize),
    Thaw(usize),
    /// Its connections are reset; it finds out by itself, or by its next heartbeat.
    Cut(usize),
    Notice(usize),
    /// All connections of all are.
    Restart,
    /// The server ends one session of a process that is gone, or was reaped.
    End(usize),
}

/// What may happen next: heartbeats more often than faults.
pub(crate) fn event(random: &mut StdRng) -> Event {
    let i = random.random_range(0..INSTANCES);
    match random.random_range(0..68) {
        0..4 => Event::Tick([1, 1, 2, 3, 6, 12][random.random_range(0..6)]),
        4..8 => Event::Join(i),
        8..13 => Event::Ask(i),
        13..18 => Event::Serve(i),
        18..23 => Event::Hear(i),
        23..35 => Event::Beat(i),
        35..42 => Event::Open(i),
        42..49 => Event::Show(i),
        49..52 => Event::Close(i),
        52..56 => Event::Want(i, random.random_range(0..20)),
        56 => Event::Leave(i),
        57..59 => Event::Kill(i),
        59..61 => Event::Freeze(i),
        61..63 => Event::Thaw(i),
        63 => Event::Cut(i),
        64 => Event::Notice(i),
        65 if random.random_bool(0.3) => Event::Restart,
        _ => Event::End(i),
    }
}
