//! What can go wrong while a stack is found, started or faulted.

use std::io;
use std::path::PathBuf;

/// Why a server could not be provided, started or faulted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another living process uses this directory.
    #[error("{} is in use by process {pid}; stop it or use another directory", dir.display())]
    InUse {
        /// The directory of the stack.
        dir: PathBuf,
        /// The process that holds it.
        pid: u32,
    },
    /// The server is not installed, may not be installed, and no Docker engine runs.
    #[error("found no {servers} on this machine, and no Docker engine answers. {help}")]
    Missing {
        /// The name of the server; both joined by "and no".
        servers: String,
        /// What to type.
        help: String,
    },
    /// A server or a program of its package failed; its last words are in `tail`.
    #[error("{step}; the last lines of {}:\n{tail}", log.display())]
    Server {
        /// What was being done.
        step: String,
        /// The whole log.
        log: PathBuf,
        /// The last lines of the log, of this attempt only.
        tail: String,
    },
    /// A short-lived program failed; `output` is what it said.
    #[error("{step}: {output}")]
    Command {
        /// What was being done.
        step: String,
        /// Its standard error, or how it ended.
        output: String,
    },
    /// The server was given by its URL, or runs where this fault cannot be made.
    #[error("{server} is not a private process of this stack, so that it cannot be {action}")]
    NotOurs {
        /// The name of the server.
        server: &'static str,
        /// What was asked for.
        action: &'static str,
    },
    /// The server is stopped, and the request needs it running.
    #[error("{server} is not running")]
    NotRunning {
        /// The name of the server.
        server: &'static str,
    },
    /// What is in the directory cannot be used, and is not removed without being asked to.
    #[error("{reason}; remove {} to begin anew", dir.display())]
    Unusable {
        /// What is wrong.
        reason: String,
        /// The directory of the stack.
        dir: PathBuf,
    },
    /// A folder of programs was chosen that does not have them.
    #[error("{variable} names {}, which has no {program}", folder.display())]
    NoProgram {
        /// The variable that chooses it.
        variable: &'static str,
        /// What it says.
        folder: PathBuf,
        /// What should be there.
        program: &'static str,
    },
    /// The account of the server cannot run its program.
    #[error(
        "the account that the server runs as cannot run {}; set {variable} to a folder that every account may enter, such \
         as /usr/local/bin",
        program.display()
    )]
    ClosedPrograms {
        /// The program, without the links that lead to it.
        program: PathBuf,
        /// The variable that chooses another folder.
        variable: &'static str,
    },
    /// The operating system refused.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
}

/// Names the step that an `io::Error` belongs to.
pub(crate) trait IoStep<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> IoStep<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Io { step: step(), source })
    }
}
