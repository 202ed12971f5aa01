//! How everything of a directory ends, in good order: keeper, adopted processes, servers, strays, records.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::account;
use crate::container;
use crate::error::{Error, IoStep};
use crate::home::{Home, records};
use crate::options::{Options, elapsed};
use crate::process::{self, Process};
use crate::servers::DIR_MARK;

/// What ends first, with which signal, and how long it may take.
const SERVERS: [(&str, &str, Duration); 3] = [
    ("rabbitmq", "TERM", Duration::from_secs(20)),
    ("postgres", "INT", Duration::from_secs(20)),
    ("epmd", "TERM", Duration::from_secs(2)),
];

impl Home {
    /// Ends what is left, and says so if anything was.
    pub(crate) fn clear(&self) {
        let left = self.keeper().is_some()
            || SERVERS.iter().any(|(name, ..)| self.process(name).is_some())
            || !self.strays().is_empty();
        let began = Instant::now();
        if left {
            self.options.tell(format!("ending what an earlier run left in {}", self.dir.display()));
        }
        self.end_all();
        if left {
            self.options.tell(format!("leftovers ended after {}", elapsed(began)));
        }
    }

    fn strays(&self) -> Vec<Process> {
        process::with_environment(DIR_MARK, self.dir.as_os_str().as_encoded_bytes())
    }

    /// Ends every process of this directory and forgets all records.
    pub(crate) fn end_all(&self) {
        // The keeper first, or it would take the end of its servers for its own affair.
        if let Some(keeper) = self.keeper() {
            // Its helpers go with it: one that outlived it would remove the records of the next start.
            keeper.kill_group();
        }
        thread::scope(|scope| {
            for child in records(&self.dir.join("children")) {
                scope.spawn(move || child.end("TERM", Duration::from_secs(8)));
            }
        });
        container::remove_all(self);
        thread::scope(|scope| {
            for (name, signal, patience) in SERVERS.iter().filter(|(name, ..)| *name != "epmd") {
                scope.spawn(|| self.end(name, signal, *patience));
            }
        });
        self.end("epmd", "TERM", Duration::from_secs(2));
        for stray in self.strays() {
            stray.end("TERM", Duration::from_secs(3));
        }
        for folder in ["users", "children", "processes"] {
            let _ = empty(&self.dir.join(folder));
        }
        for file in ["keeper", "stopping"] {
            let _ = fs::remove_file(self.dir.join(file));
        }
    }

    /// Ends an exclusive stack, once; a shared one ends when its last user has.
    pub(crate) fn stop(&self) {
        if self.take_end() {
            let began = Instant::now();
            // None runs when there was none to start, or when both were given by their URLs.
            let any = fs::read_dir(self.dir.join("processes")).is_ok_and(|mut records| records.next().is_some());
            if any {
                self.options.tell("stopping the servers");
            }
            self.end_all();
            if any {
                self.options.tell(format!("servers stopped after {}", elapsed(began)));
            }
        }
    }
}

/// Ends what runs in `dir` and removes everything there but the lock. Refused while a living process uses it.
pub fn erase(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let step = || format!("empty {}", dir.display());
    let home = Home::exclusive(Options::new(dir))?;
    home.stop();
    container::remove_volumes(&home);
    for name in ["postgres", "rabbitmq"] {
        let path = home.dir.join(name);
        if path.is_symlink() {
            let place = account::public_place(&home.dir)?;
            let _ = fs::remove_dir_all(place);
        }
    }
    for entry in fs::read_dir(&home.dir).step(step)? {
        let path = entry.step(step)?.path();
        // Others may be waiting for the lock.
        if path.file_name() != Some(OsStr::new("lock")) {
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                .step(step)?;
        }
    }
    Ok(())
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}
