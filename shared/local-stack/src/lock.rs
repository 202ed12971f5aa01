//! Who may work in a directory. The lock is the kernel's and dies with its holder; the text in the file only says
//! whom to name in an error.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::files;

use crate::error::{Error, IoStep};
use crate::process::{POLL, Process};

/// Longer than an installation of both servers over a slow line.
const PATIENCE: Duration = Duration::from_mins(15);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For as long as the stack lives.
    Exclusive,
    /// While a shared stack is looked for and started.
    Shared,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        }
    }
}

/// Locks the directory: an exclusive owner does not wait for another one, everybody waits for a start to end.
pub(crate) fn take(dir: &Path, purpose: Purpose) -> Result<File, Error> {
    let path = dir.join("lock");
    let step = || format!("lock {}", path.display());
    let mut file = files::open(&path, OpenOptions::new().read(true).write(true)).step(step)?;
    let deadline = Instant::now() + PATIENCE;
    while let Err(failure) = file.try_lock() {
        if let fs::TryLockError::Error(source) = failure {
            return Err(source).step(step);
        }
        let holder = holder(&path);
        let for_long = holder.as_ref().is_some_and(|(_, for_long)| *for_long);
        let impatient = purpose == Purpose::Exclusive && holder.is_some();
        if for_long || impatient || Instant::now() > deadline {
            let pid = holder.map_or(0, |(holder, _)| holder.pid);
            return Err(Error::InUse { dir: dir.to_owned(), pid });
        }
        thread::sleep(POLL);
    }
    file.set_len(0).step(step)?;
    file.rewind().step(step)?;
    write!(file, "{} {}", purpose.name(), Process::this()).step(step)?;
    Ok(file)
}

/// The living process that the file names, and whether it holds the lock for good. The text may be that of an
/// earlier holder for the moment between locking and writing; if that one is dead, it is not believed.
fn holder(path: &Path) -> Option<(Process, bool)> {
    let text = fs::read_to_string(path).ok()?;
    let (purpose, process) = text.split_once(' ')?;
    let process: Process = process.parse().ok()?;
    process.alive().then(|| (process, purpose == Purpose::Exclusive.name()))
}
