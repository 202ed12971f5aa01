//! The standard output of the commands: a line that cannot be written never ends the work half-way.
//!
//! A reader may close its end of the pipe (`| head`), a disk may be full. The first failure is kept, later lines are dropped,
//! and the command goes on to its end; there the failure decides the exit code.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;

/// The first failure.
static FAILURE: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line for the person at the terminal, or for the program that reads the output.
pub(crate) fn say(line: impl Display) {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    if failure.is_none() {
        *failure = write_line(&line).err();
    }
}

/// Prints what is shown only once, such as a key: the caller has to undo its work if that fails.
pub(crate) fn say_once(line: impl Display) -> anyhow::Result<()> {
    write_line(&line).context("the standard output cannot be written")
}

/// Whether the output takes no more lines; a command that only shows something ends then.
pub(crate) fn closed() -> bool {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// What a command ended as, its output included. `changes` says whether it did more than show something: then it is a fault
/// when a reader left early.
pub(crate) fn end(outcome: anyhow::Result<()>, changes: bool) -> anyhow::Result<()> {
    outcome?;
    match FAILURE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        None => Ok(()),
        Some(failure) if failure.kind() == ErrorKind::BrokenPipe && !changes => Ok(()),
        Some(failure) if changes => Err(failure)
            .context("the work is done, but the standard output cannot be written, and lines are missing there"),
        Some(failure) => Err(failure).context("the standard output cannot be written"),
    }
}

/// Adds a note for the person at the terminal, beside the output. Nothing depends on it.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

fn write_line(line: &impl Display) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
