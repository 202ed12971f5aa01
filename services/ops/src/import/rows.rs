//! The rows of a file, one at a time, each checked by the rules of the API.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use common::command::{Email, Name};
use csv::{ByteRecord, ReaderBuilder, Terminator};
use serde_json::{Map, Value};

use super::report::Flaw;
use crate::spreadsheet::{COLUMN as SPREADSHEET, unguard};

/// No row needs more; a quote that is never closed would be one row up to the end of the file.
const LONGEST_ROW: u64 = 64 * 1024;
/// What the service decides, and what a report of rejected lines adds: read over, so that both can be imported.
const IGNORED: [&str; 9] =
    ["id", "version", "created_at", "updated_at", "suspended_at", "line", "field", "fault", "mend"];
/// The byte order mark of UTF-8.
const UTF8_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const KNOWN: [&str; 3] = ["email", "name", "status"];

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// RFC 4180, with a header row
    Csv,
    /// A JSON object a line
    Ndjson,
}

impl Format {
    /// As given, or as the name of the file ends.
    pub(crate) fn of(given: Option<Self>, file: &str) -> anyhow::Result<Self> {
        let ending = file.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        match (given, ending.as_deref()) {
            (Some(format), _) => Ok(format),
            (None, Some("csv")) => Ok(Self::Csv),
            (None, Some("ndjson" | "jsonl")) => Ok(Self::Ndjson),
            (None, _) => {
                bail!("the name {file} does not say how the file is written; give --format csv or --format ndjson")
            }
        }
    }
}

/// A row as it was written. What is no text, or not there, is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Where it begins in the file, from 1.
    pub(super) line: u64,
    pub(super) email: String,
    pub(super) name: String,
    pub(super) status: String,
    /// What is wrong with it in itself.
    pub(super) faults: Vec<Flaw>,
}

impl Row {
    pub(super) fn suspended(&self) -> bool {
        self.status == "suspended"
    }

    fn fault(&mut self, field: &str, text: &str) {
        self.faults.push(Flaw::new(field, text));
    }

    fn check(mut self) -> Self {
        // One fault of a field is enough.
        let told = |row: &Self, field: &str| {
            row.faults.iter().any(|fault| matches!(fault.field.as_str(), "row") || fault.field == field)
        };
        if !told(&self, "email")
            && let Err(fault) = Email::parse(&self.email)
        {
            self.fault("email", &fault.to_string());
        }
        if !told(&self, "name")
            && let Err(fault) = Name::parse(&self.name)
        {
            self.fault("name", &fault.to_string());
        }
        if !told(&self, "status") && !matches!(self.status.as_str(), "" | "active" | "suspended") {
            self.fault("status", "is unknown; write active or suspended, or leave it out");
        }
        self
    }
}

/// Reads a file row by row.
pub(super) enum Rows {
    Csv { reader: Box<csv::Reader<Bounded>>, columns: Columns, record: ByteRecord, since: Arc<AtomicU64> },
    Ndjson { reader: Box<dyn BufRead + Send>, line: u64 },
}

#[derive(Clone, Copy)]
pub(super) enum Column {
    Email,
    Name,
    Status,
    Ignored,
}

/// What the header says.
pub(super) struct Columns {
    columns: Vec<Column>,
    /// Written for a spreadsheet program: an apostrophe before a cell may be none of its text.
    guarded: bool,
}

impl Rows {
    /// Reads the header, if there is one.
    pub(super) fn open(mut input: impl Read + Send + 'static, format: Format) -> anyhow::Result<Self> {
        let input = Cursor::new(beginning(&mut input)?).chain(input);
        if format == Format::Ndjson {
            return Ok(Self::Ndjson { reader: Box::new(BufReader::new(input)), line: 0 });
        }
        let since = Arc::new(AtomicU64::new(0));
        let input = Bounded { input: Box::new(input), since: Arc::clone(&since), last: b'\n' };
        let mut reader = ReaderBuilder::new()
            .flexible(true)
            // With CRLF the library's default numbers lines by one too low; the CR is taken off below.
            .terminator(Terminator::Any(b'\n'))
            .from_reader(input);
        let header = reader.headers().context("the header row cannot be read")?;
        let (mut columns, mut guarded) = (Vec::with_capacity(header.len()), false);
        for name in header {
            let name = name.trim().to_ascii_lowercase();
            columns.push(match name.as_str() {
                "email" => Column::Email,
                "name" => Column::Name,
                "status" => Column::Status,
                known if IGNORED.contains(&known) => Column::Ignored,
                SPREADSHEET => {
                    guarded = true;
                    Column::Ignored
                }
                _ => bail!("line 1: the column {name:?} is unknown; remove it, or rename it to email, name or status"),
            });
        }
        for (name, column) in
            [("email", Column::Email as u8), ("name", Column::Name as u8), ("status", Column::Status as u8)]
        {
            let count = columns.iter().filter(|other| **other as u8 == column).count();
            ensure!(
                count > 0 || name == "status",
                "line 1: no column is named {name}; the header row names email and name"
            );
            ensure!(count < 2, "line 1: two columns are named {name}; remove one");
        }
        let columns = Columns { columns, guarded };
        Ok(Self::Csv { reader: Box::new(reader), columns, record: ByteRecord::new(), since })
    }

    fn next_csv(
        reader: &mut csv::Reader<Bounded>,
        Columns { columns, guarded }: &Columns,
        record: &mut ByteRecord,
    ) -> Result<Option<Row>, csv::Error> {
        loop {
            if !reader.read_byte_record(record)? {
                return Ok(None);
            }
            // An empty line that ends with CRLF.
            if record.len() != 1 || record.as_slice() != b"\r" {
                break;
            }
        }
        let mut row = Row { line: record.position().map_or(0, csv::Position::line), ..Row::default() };
        let swallowed = record.iter().flatten().filter(|byte| **byte == b'\n').count();
        if swallowed > 0 {
            // No value that is imported can have a line break, so the quote that should have ended it is missing.
            let last = row.line + swallowed as u64;
            row.fault(
                "row",
                &format!(
                    "has a field in quotes that goes on to line {last}, so that lines {} to {last} are part of it and were \
                     not read as rows; close the quotes in line {}",
                    row.line, row.line
                ),
            );
        } else if record.len() != columns.len() {
            let (has, wants) = (record.len(), columns.len());
            row.fault("row", &format!("has {has} fields where the header has {wants}; quote what has a comma in it"));
        }
        for (number, (field, column)) in record.iter().zip(columns).enumerate() {
            let field = if number + 1 == record.len() { field.strip_suffix(b"\r").unwrap_or(field) } else { field };
            let (name, place) = match column {
                Column::Email => ("email", &mut row.email),
                Column::Name => ("name", &mut row.name),
                Column::Status => ("status", &mut row.status),
                Column::Ignored => continue,
            };
            let text = String::from_utf8_lossy(field);
            *place = if *guarded { unguard(&text).to_owned() } else { text.into_owned() };
            if std::str::from_utf8(field).is_err() {
                row.fault(name, "is not UTF-8; save the file as UTF-8");
            }
        }
        Ok(Some(row))
    }

    fn next_ndjson(reader: &mut dyn BufRead, line: &mut u64) -> io::Result<Option<Row>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            if reader.take(LONGEST_ROW).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            *line += 1;
            let mut row = Row { line: *line, ..Row::default() };
            if !bytes.ends_with(b"\n") && bytes.len() as u64 >= LONGEST_ROW {
                reader.skip_until(b'\n')?;
                row.fault("row", &format!("is longer than {LONGEST_ROW} bytes; shorten it"));
            } else if bytes.trim_ascii().is_empty() {
                continue;
            } else {
                match serde_json::from_slice::<Map<String, Value>>(&bytes) {
                    Ok(members) => row.take(members),
                    Err(fault) => row.fault("row", &format!("is no JSON object; mend it at column {}", fault.column())),
                }
            }
            return Ok(Some(row));
        }
    }
}

impl Row {
    fn take(&mut self, members: Map<String, Value>) {
        for (name, value) in members {
            let place = match name.as_str() {
                "email" => &mut self.email,
                "name" => &mut self.name,
                "status" => &mut self.status,
                known if IGNORED.contains(&known) => continue,
                _ => {
                    let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                    self.fault(&shown, "is unknown; remove it");
                    continue;
                }
            };
            match value {
                Value::String(text) => *place = text,
                Value::Null if KNOWN[2] == name => {}
                _ => self.fault(&name, "is no string; write it in quotes"),
            }
        }
    }
}

impl Iterator for Rows {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = match self {
            Self::Csv { reader, columns, record, since } => {
                since.store(0, Ordering::Relaxed);
                let begun = reader.position().line();
                Self::next_csv(reader, columns, record).with_context(|| format!("line {begun}: cannot be read"))
            }
            Self::Ndjson { reader, line } => {
                Self::next_ndjson(reader, line).with_context(|| format!("line {}: cannot be read", *line + 1))
            }
        };
        row.map(|row| row.map(Row::check)).transpose()
    }
}

/// The first bytes of a file, without the mark that some programs put in front of UTF-8.
fn beginning(input: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(UTF8_MARK.len());
    input.take(UTF8_MARK.len() as u64).read_to_end(&mut bytes).context("line 1: cannot be read")?;
    ensure!(
        !bytes.starts_with(&[0xff, 0xfe]) && !bytes.starts_with(&[0xfe, 0xff]),
        "line 1: the file is written in UTF-16; save it as UTF-8"
    );
    Ok(if bytes == UTF8_MARK { Vec::new() } else { bytes })
}

/// Ends a record that has no end.
pub(super) struct Bounded {
    input: Box<dyn Read + Send>,
    /// How much was read since the last record began.
    since: Arc<AtomicU64>,
    /// The last byte that was read.
    last: u8,
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since.load(Ordering::Relaxed) > LONGEST_ROW {
            let fault = format!("the row is longer than {LONGEST_ROW} bytes; close its quotes, or shorten it");
            return Err(io::Error::other(fault));
        }
        let mut read = self.input.read(buffer)?;
        if read == 0
            && self.last != b'\n'
            && let Some(first) = buffer.first_mut()
        {
            // The last line has an end too, so that quotes that are open there have a line break in them.
            (*first, read) = (b'\n', 1);
        }
        if let Some(last) = read.checked_sub(1) {
            self.last = buffer[last];
        }
        self.since.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, Rows};

    fn rows(text: &'static str, format: Format) -> Vec<String> {
        let rows = Rows::open(text.as_bytes(), format).unwrap();
        rows.map(|row| {
            let row = row.unwrap();
            let faults: Vec<String> =
                row.faults.iter().map(|f| format!("{} {}; {}", f.field, f.fault, f.mend)).collect();
            format!("{}: {},{},{} {}", row.line, row.email, row.name, row.status, faults.join(" | "))
                .trim_end()
                .to_owned()
        })
        .collect()
    }

    #[test]
    fn quotes_line_breaks_and_the_order_of_columns_do_not_matter() {
        let text = "\u{feff}name,id,Email\r\n\"Lovelace, \"\"Ada\"\"\",7,ada@example.org\n\"two\nlines\",8,\"bob@example.org\"\r\n\r\nC,9,c@example.org\n";
        assert_eq!(
            rows(text, Format::Csv),
            [
                "2: ada@example.org,Lovelace, \"Ada\",",
                "3: bob@example.org,two\nlines, row has a field in quotes that goes on to line 4, so that lines 3 to 4 are part of it and were not read as rows; close the quotes in line 3",
                "6: c@example.org,C,"
            ]
        );
    }

    #[test]
    fn each_fault_of_a_row_is_told_with_its_field_and_mend() {
        let csv = "email,name,status\nada,,gone\na@example.org\n";
        let ndjson = "{\"email\": 1, \"name\": \"A\", \"nick\": \"a\"}\n\nno json\n{\"email\":\"a@example.org\",\"name\":\"A\",\"status\":\"suspended\",\"id\":1}\n";
        insta::assert_snapshot!(rows(csv, Format::Csv).join("\n"), @r"
        2: ada,,gone email is no e-mail address (missing separator character '@'); write it like ada@example.org | name is empty; give at least 1 character | status is unknown; write active or suspended, or leave it out
        3: a@example.org,, row has 1 fields where the header has 3; quote what has a comma in it
        ");
        insta::assert_snapshot!(rows(ndjson, Format::Ndjson).join("\n"), @"
        1: ,A, email is no string; write it in quotes | nick is unknown; remove it
        3: ,, row is no JSON object; mend it at column 2
        4: a@example.org,A,suspended
        ");
    }

    #[test]
    fn apostrophes_come_off_the_cells_of_a_marked_file_only() {
        let text = "email,name,spreadsheet\n'=1@example.org,''Ada,\nbob@example.org,O'Hara,\n";
        assert_eq!(rows(text, Format::Csv), ["2: =1@example.org,'Ada,", "3: bob@example.org,O'Hara,"]);
        let text = "email,name\nada@example.org,'=1+1\n";
        assert_eq!(rows(text, Format::Csv), ["2: ada@example.org,'=1+1,"]);
    }

    #[test]
    fn a_header_that_cannot_be_meant_is_refused() {
        for (text, fault) in [
            ("email\n", "no column is named name"),
            ("email,name,emial\n", "\"emial\" is unknown"),
            ("email,name,Email\n", "two columns are named email"),
        ] {
            let error = Rows::open(text.as_bytes(), Format::Csv).err().unwrap().to_string();
            assert!(error.contains(fault), "{error}");
        }
    }

    #[test]
    fn a_quote_that_is_closed_too_late_or_never_names_the_lines_it_swallowed() {
        let fault = |text: &'static str| rows(text, Format::Csv).remove(0);
        let late = fault("email,name\nada@example.org,\"Ada\nbob@example.org,Bob\neve@example.org,\"Eve\"\n");
        assert!(late.contains("2: ") && late.contains("lines 2 to 4 are part of it"), "{late}");
        for text in ["email,name\nada@example.org,\"Ada\nbob@example.org,Bob\n", "email,name\nada@example.org,\"Ada"] {
            let never = fault(text);
            assert!(never.contains("close the quotes in line 2"), "{never}");
        }
        // A last line without an end is whole.
        assert_eq!(rows("email,name\nada@example.org,\"Ada\"", Format::Csv), ["2: ada@example.org,Ada,"]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_file() {
        let ndjson = "\u{feff}{\"email\":\"a@example.org\",\"name\":\"A\"}\n";
        assert_eq!(rows(ndjson, Format::Ndjson), ["1: a@example.org,A,"]);
        let csv = "\u{feff}\"email\",\"name\"\na@example.org,A\n";
        assert_eq!(rows(csv, Format::Csv), ["2: a@example.org,A,"]);
        let utf16: &[u8] = &[0xff, 0xfe, b'e', 0, b'm', 0];
        for format in [Format::Csv, Format::Ndjson] {
            let error = Rows::open(utf16, format).err().unwrap().to_string();
            assert!(error.contains("UTF-16; save it as UTF-8"), "{error}");
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_ends_the_reading_with_its_line() {
        let text = format!("email,name\na@example.org,A\n\"{}", "b@example.org,B\n".repeat(100_000));
        let rows = Rows::open(std::io::Cursor::new(text), Format::Csv).unwrap();
        let ends: Vec<_> = rows.take(2).collect();
        assert!(ends[0].is_ok());
        let error = format!("{:#}", ends[1].as_ref().unwrap_err());
        assert!(error.starts_with("line 3: ") && error.contains("close its quotes"), "{error}");
    }
}
