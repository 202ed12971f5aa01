//! What is done of an import, so that the next run skips it.
//!
//! Lines of JSON: whose journal it is, then rejected rows in order, and every few hundred rows a mark: so many are decided, and
//! this is the hash of what they said. Only whole marks count, and only if the file still begins with those rows. Without
//! the journal, or with a wrong one, every row is sent again under the key that it had, which changes nothing twice.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use common::files;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::report::Rejected;
use super::rows::Row;

/// Rows between two marks.
const STRIDE: u64 = 500;

/// Whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) import: String,
    pub(super) url: String,
}

/// So many rows are decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) rows: u64,
    pub(super) rejected: u64,
    hash: String,
}

/// The hash of all rows so far.
#[derive(Default)]
pub(super) struct Trail {
    hash: Sha256,
    rows: u64,
}

impl Trail {
    /// The hash after this row, where a mark can be.
    pub(super) fn step(&mut self, row: &Row) -> Option<String> {
        for part in [&row.email, &row.name, &row.status] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        self.rows += 1;
        self.rows.is_multiple_of(STRIDE).then(|| hex(&self.hash.clone().finalize()))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |text, byte| text + &format!("{byte:02x}"))
}

/// An open journal, held by this process alone.
pub(super) struct Journal {
    file: File,
    path: Option<PathBuf>,
    mark: Mark,
}

impl Journal {
    /// One that is gone with this process.
    pub(super) fn temporary() -> anyhow::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, path: None, mark: Mark::default() })
    }

    /// Opens it and drops what comes after its last mark, or everything if it is another's.
    pub(super) fn open(path: &Path, owner: &Owner) -> anyhow::Result<Self> {
        let context = || format!("the journal {} cannot be used; name another with --journal", path.display());
        let file = files::open_unchanged(path, OpenOptions::new().read(true).write(true)).with_context(context)?;
        let mut journal = Self { file, path: Some(path.to_owned()), mark: Mark::default() };
        if journal.file.try_lock().is_err() {
            bail!(
                "another import works with the journal {}; let it end, or name another with --journal",
                path.display()
            );
        }
        let mut reader = BufReader::new(&journal.file);
        let (mut line, mut position, mut whole) = (String::new(), 0, 0);
        while reader.read_line(&mut line).with_context(context)? > 0 && line.ends_with('\n') {
            position += line.len() as u64;
            if whole == 0 {
                let found: Option<Owner> = serde_json::from_str(&line).ok();
                ensure!(found.is_some(), "{} is no journal of an import; name another with --journal", path.display());
                if found.as_ref() != Some(owner) {
                    break;
                }
                whole = position;
            } else if let Ok(mark) = serde_json::from_str(&line) {
                (journal.mark, whole) = (mark, position);
            }
            line.clear();
        }
        // Ended by a kill in its first line, or never one.
        let torn = position > 0 || line.is_empty() || line.starts_with("{\"import\":");
        ensure!(torn, "{} is no journal of an import; name another with --journal", path.display());
        files::make_private(&journal.file).with_context(context)?;
        if whole == 0 {
            journal.begin(owner)?;
        } else {
            journal.file.set_len(whole).with_context(context)?;
            journal.file.seek(SeekFrom::End(0))?;
        }
        Ok(journal)
    }

    fn begin(&mut self, owner: &Owner) -> anyhow::Result<()> {
        self.mark = Mark::default();
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.append(owner)
    }

    /// How far it is.
    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Forgets everything unless the file begins with the rows that are done: `found` is the hash where its mark is.
    pub(super) fn keep_if(&mut self, found: Option<&str>, owner: &Owner) -> anyhow::Result<bool> {
        let kept = self.mark.rows == 0 || found == Some(self.mark.hash.as_str());
        if !kept {
            self.begin(owner)?;
        }
        Ok(kept)
    }

    /// Notes that the next row is decided. `hash` is the trail's.
    pub(super) fn decided(&mut self, rejected: Option<&Rejected>, hash: Option<String>) -> anyhow::Result<()> {
        self.mark.rows += 1;
        if let Some(rejected) = rejected {
            self.mark.rejected += 1;
            self.append(rejected)?;
        }
        if let Some(hash) = hash {
            self.mark.hash = hash;
            self.append(&self.mark.clone())?;
        }
        Ok(())
    }

    /// In one write, so that a kill leaves whole lines but for the last.
    fn append(&mut self, entry: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.file.write_all(&line).context("the journal cannot be written")
    }

    /// Its lines from the beginning.
    pub(super) fn lines(&mut self) -> anyhow::Result<impl BufRead> {
        self.file.rewind()?;
        Ok(BufReader::new(Read::by_ref(&mut self.file)))
    }

    /// Removes it: everything is decided.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        if let Some(path) = &self.path {
            std::fs::remove_file(path).with_context(|| format!("the journal {} cannot be removed", path.display()))?;
        }
        Ok(())
    }
}
