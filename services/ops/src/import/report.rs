//! Rows that are not in: what is wrong with each, and the file that says so.

use std::io::{BufRead, BufWriter, Write};

use anyhow::Context;
use common::files::Draft;
use serde::{Deserialize, Serialize};

use super::rows::{Format, Row};
use crate::spreadsheet::{self, guard};

/// What is wrong with a field of a row, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    pub(super) field: String,
    pub(super) fault: String,
    pub(super) mend: String,
}

impl Flaw {
    /// Of a text like `is empty; write something`.
    pub(super) fn new(field: &str, text: &str) -> Self {
        let (fault, mend) = text.split_once("; ").unwrap_or((text, "change it"));
        Self { field: field.to_owned(), fault: fault.to_owned(), mend: mend.to_owned() }
    }
}

/// A rejected row: a line of the report, which can be mended and imported as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejected {
    pub(super) line: u64,
    pub(super) field: String,
    pub(super) fault: String,
    pub(super) mend: String,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) status: String,
}

impl Rejected {
    /// One line for a row, however many faults it has.
    pub(super) fn new(row: Row, faults: &[Flaw]) -> Self {
        let join = |of: fn(&Flaw) -> &str| faults.iter().map(of).collect::<Vec<_>>().join("; ");
        Self {
            line: row.line,
            field: join(|fault| &fault.field),
            fault: join(|fault| &fault.fault),
            mend: join(|fault| &fault.mend),
            email: row.email,
            name: row.name,
            status: row.status,
        }
    }
}

impl Rejected {
    /// With cells that no spreadsheet program runs. What is wrong with a row can name a member of it.
    fn guarded(mut self) -> Self {
        for cell in
            [&mut self.field, &mut self.fault, &mut self.mend, &mut self.email, &mut self.name, &mut self.status]
        {
            *cell = guard(cell).into_owned();
        }
        self
    }
}

/// Writes the report from the journal's lines.
pub(super) fn write(journal: impl BufRead, path: &str, format: Format, spreadsheet: bool) -> anyhow::Result<()> {
    let context = || format!("the report {path} cannot be written");
    let draft = Draft::begin(path.as_ref()).with_context(context)?;
    let mut output = BufWriter::new(draft.file());
    match format {
        Format::Csv => {
            let mut csv = csv::WriterBuilder::new().has_headers(false).from_writer(&mut output);
            let header = ["line", "field", "fault", "mend", "email", "name", "status"];
            let mark = spreadsheet.then_some(spreadsheet::COLUMN);
            csv.write_record(header.into_iter().chain(mark)).with_context(context)?;
            for rejected in rejects(journal) {
                let written =
                    if spreadsheet { csv.serialize((rejected.guarded(), "")) } else { csv.serialize(rejected) };
                written.with_context(context)?;
            }
            csv.flush().with_context(context)?;
        }
        Format::Ndjson => {
            for rejected in rejects(journal) {
                serde_json::to_writer(&mut output, &rejected)?;
                output.write_all(b"\n").with_context(context)?;
            }
        }
    }
    output.flush().with_context(context)?;
    drop(output);
    draft.keep().with_context(context)
}

/// The rejected rows among the lines of a journal.
pub(super) fn rejects(journal: impl BufRead) -> impl Iterator<Item = Rejected> {
    journal.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}
