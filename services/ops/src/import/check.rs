//! The first reading: how many rows there are, which of them name an address once more, and whether a journal fits.
//!
//! # How are duplicates found in bounded memory?
//! The hash of each address goes, with its line, into one of 256 files by its first byte; then one file after the other
//! is sorted in memory. That is a 256th of 24 bytes a row, 100 KB for a million, and 16 bytes for each duplicate.

use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, Write};

use anyhow::Context;
use sha2::{Digest, Sha256};

use super::journal::{Mark, Trail};
use super::rows::{Row, Rows};

const PARTS: usize = 256;
const HASH: usize = 16;
const ENTRY: usize = HASH + size_of::<u64>();

/// What the first reading found.
pub(super) struct Checked {
    pub(super) rows: u64,
    /// The line of each row whose address an earlier one has, with the line of that, in order.
    duplicates: Vec<(u64, u64)>,
    /// The trail's hash where the journal's mark is.
    pub(super) at_mark: Option<String>,
}

impl Checked {
    /// The line that has this row's address already.
    pub(super) fn first_of(&self, row: &Row) -> Option<u64> {
        let found = self.duplicates.binary_search_by_key(&row.line, |(line, _)| *line).ok()?;
        self.duplicates.get(found).map(|(_, first)| *first)
    }
}

/// Reads everything once.
pub(super) fn check(rows: Rows, mark: &Mark) -> anyhow::Result<Checked> {
    let mut checked = Checked { rows: 0, duplicates: Vec::new(), at_mark: None };
    let parts: std::io::Result<Vec<_>> = (0..PARTS).map(|_| tempfile::tempfile().map(BufWriter::new)).collect();
    let mut parts = parts.context("no temporary file can be made; set TMPDIR to a folder that can be written")?;
    let mut trail = Trail::default();
    for row in rows {
        let row = row?;
        checked.rows += 1;
        let hash = trail.step(&row);
        if checked.rows == mark.rows {
            checked.at_mark = hash;
        }
        // One that is refused for its faults does not take the address.
        if row.faults.is_empty() {
            let hash = Sha256::digest(row.email.to_ascii_lowercase());
            if let Some(part) = parts.get_mut(usize::from(hash[0])) {
                part.write_all(&hash[..HASH]).and_then(|()| part.write_all(&row.line.to_le_bytes())).context(FULL)?;
            }
        }
    }
    for part in parts {
        let mut file = part.into_inner().context(FULL)?;
        file.rewind()?;
        let mut entries = entries(BufReader::new(file))?;
        entries.sort_unstable();
        let mut first = None;
        for (hash, line) in entries {
            match first {
                Some((of, at)) if of == hash => checked.duplicates.push((line, at)),
                _ => first = Some((hash, line)),
            }
        }
    }
    checked.duplicates.sort_unstable();
    Ok(checked)
}

const FULL: &str = "a temporary file cannot be written; make room, or set TMPDIR to another folder";

fn entries(mut part: impl Read) -> std::io::Result<Vec<([u8; HASH], u64)>> {
    let mut entries = Vec::new();
    let mut entry = [0; ENTRY];
    loop {
        match part.read_exact(&mut entry) {
            Ok(()) => {}
            Err(end) if end.kind() == ErrorKind::UnexpectedEof => return Ok(entries),
            Err(error) => return Err(error),
        }
        let (mut hash, mut line) = ([0; HASH], [0; size_of::<u64>()]);
        hash.copy_from_slice(&entry[..HASH]);
        line.copy_from_slice(&entry[HASH..]);
        entries.push((hash, u64::from_le_bytes(line)));
    }
}
