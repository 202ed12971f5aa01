//! The server processes of a directory: started, waited for, looked up, frozen, ended; and their logs.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::files;

use crate::account::Account;
use crate::error::{Error, IoStep};
use crate::home::{Home, read};
use crate::process::{self, Process};
use crate::state::State;

/// Marks the processes of a directory, for those that no record names.
pub(crate) const DIR_MARK: &str = "ROLLCALL_STACK_DIR";
/// Marks the processes of one life of a directory: it may be deleted and made again under the same name.
const ID_MARK: &str = "ROLLCALL_STACK_ID";

impl Home {
    /// Where a server's output goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    /// Opens a log for appending; one that has grown large begins anew.
    pub(crate) fn log_file(&self, name: &str) -> Result<File, Error> {
        const LARGE: u64 = 20 * 1024 * 1024;
        let path = self.log(name);
        if fs::metadata(&path).is_ok_and(|log| log.len() > LARGE) {
            let _ = fs::rename(&path, path.with_extension("log.1"));
        }
        // PostgreSQL quotes rows in its messages.
        files::open(&path, OpenOptions::new().append(true)).step(|| format!("open {}", path.display()))
    }

    pub(crate) fn state(&self, name: &str) -> State {
        State::read(self.dir.join("state").join(name))
    }

    /// A program that runs as `account`, with nothing of our environment that could steer a server.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>, account: Account) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", self.options.search_path()).env("LANG", "C");
        command.current_dir("/").stdin(Stdio::null());
        account.apply(&mut command);
        command
    }

    /// Starts a server as a process of this stack.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command) -> Result<Process, Error> {
        let step = || format!("start {name}");
        let log = self.log_file(name)?;
        command.env(DIR_MARK, &self.dir).env(ID_MARK, self.id());
        command.stderr(log.try_clone().step(step)?).stdout(log);
        let process = process::spawn_detached(command).step(step)?;
        self.record(&self.dir.join("processes").join(name), &process.to_string())?;
        Ok(process)
    }

    /// Waits until the server answers. If it ends first, or takes too long, its last words are in the error.
    pub(crate) fn await_ready(
        &self,
        step: &str,
        log: (&str, u64),
        process: &Process,
        answers: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + self.options.start_timeout;
        let (name, from) = log;
        let reason = loop {
            if !process.alive() {
                break format!("{step}: it ended");
            }
            if answers() && process.alive() {
                return Ok(());
            }
            if Instant::now() > deadline {
                process.end("KILL", Duration::from_secs(5));
                break format!("{step}: not ready after {} s", self.options.start_timeout.as_secs());
            }
            thread::sleep(process::POLL);
        };
        Err(Error::Server { step: reason, log: self.log(name), tail: self.words(name, from) })
    }

    /// The last lines of a log, none from before `from`.
    pub(crate) fn words(&self, name: &str, from: u64) -> String {
        process::last_lines(&self.text(name, from))
    }

    /// Whether the log, from there on, says that a port was taken.
    pub(crate) fn port_was_taken(&self, name: &str, from: u64) -> bool {
        let signs = ["could not bind", "ddress already in use", "eaddrinuse", "dist_port_already_used"];
        let text = self.text(name, from);
        signs.iter().any(|sign| text.contains(sign))
    }

    fn text(&self, name: &str, from: u64) -> String {
        let words = fs::read(self.log(name)).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or_default().min(words.len());
        String::from_utf8_lossy(&words[from..]).into_owned()
    }

    /// How long the log is, so that an error shows this start's words only.
    pub(crate) fn log_length(&self, name: &str) -> u64 {
        fs::metadata(self.log(name)).map_or(0, |log| log.len())
    }

    /// The living server of this name, whoever started it.
    pub(crate) fn process(&self, name: &str) -> Option<Process> {
        read(&self.dir.join("processes").join(name)).filter(Process::alive)
    }

    /// Ends one server.
    pub(crate) fn end(&self, name: &str, signal: &str, patience: Duration) {
        self.thaw(name);
        if let Some(process) = self.process(name) {
            process.end(signal, patience);
        }
        let _ = fs::remove_file(self.dir.join("processes").join(name));
    }

    pub(crate) fn freeze(&self, name: &str, process: &Process) -> Result<(), Error> {
        let path = self.dir.join("processes").join(format!("{name}.frozen"));
        process.signal("STOP");
        // Once the parent is stopped, it starts no further children.
        let mut pids = process.children();
        pids.push(process.pid);
        let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
        self.record(&path, &list.join(" "))?;
        process::signal(&pids, "STOP");
        Ok(())
    }

    pub(crate) fn thaw(&self, name: &str) {
        let path = self.dir.join("processes").join(format!("{name}.frozen"));
        let Ok(list) = fs::read_to_string(&path) else { return };
        for pid in list.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            process::signal(&[pid], "CONT");
        }
        let _ = fs::remove_file(path);
    }
}
