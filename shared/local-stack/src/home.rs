//! The directory of a stack: who uses it, and who keeps watch over it.
//!
//! ```text
//! lock                 locked by an exclusive owner while it lives, by others while they start servers
//! users/PID            living processes that need the servers
//! processes/NAME       the servers; NAME.container and NAME.frozen where that applies
//! children/PID         further processes to be ended with the servers
//! keeper, keeper.sh    the process that ends everything when the last user is gone
//! state/NAME           ports and passwords, kept from start to start
//! logs/NAME.log
//! postgres/, rabbitmq/ data, owned by the account of the server
//! ```

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::files;

use crate::error::{Error, IoStep};
use crate::lock::{self, Purpose};
use crate::options::Options;
use crate::process::{self, Process};
use crate::state::State;

/// For an exclusive stack nobody else can come, so that its keeper need not wait.
const EXCLUSIVE_LINGER: Duration = Duration::from_secs(1);

pub(crate) struct Home {
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    id: String,
    /// Held by an exclusive owner until the end.
    lock: Option<File>,
    ended: AtomicBool,
}

impl Home {
    /// Takes the directory for this process alone, and ends what a killed owner left there.
    pub(crate) fn exclusive(options: Options) -> Result<Self, Error> {
        let dir = make(&options.dir)?;
        let lock = lock::take(&dir, Purpose::Exclusive)?;
        make(&dir)?;
        let mut home = Self::open(dir, options)?;
        home.lock = Some(lock);
        if let Some(user) = home.users().into_iter().find(|user| *user != Process::this()) {
            home.ended.store(true, Ordering::Relaxed);
            return Err(Error::InUse { dir: home.dir.clone(), pid: user.pid });
        }
        home.clear();
        home.enter()?;
        home.start_keeper(EXCLUSIVE_LINGER)?;
        Ok(home)
    }

    /// Joins the directory. The lock is for the time in which the servers are looked for and started.
    pub(crate) fn shared(options: Options) -> Result<(Self, File), Error> {
        let dir = make(&options.dir)?;
        let lock = lock::take(&dir, Purpose::Shared)?;
        // The holder before us may have erased everything.
        make(&dir)?;
        let home = Self::open(dir, options)?;
        home.enter()?;
        let stopping = home.dir.join("stopping");
        while stopping.exists() {
            if home.keeper().is_none() {
                home.clear();
            }
            thread::sleep(process::POLL);
        }
        if home.keeper().is_none() {
            home.start_keeper(home.options.linger)?;
        }
        // The keeper forgets users only when they are dead, but clearing forgets all.
        home.enter()?;
        Ok((home, lock))
    }

    /// Whether it falls to this value to end the stack: once, and only as its exclusive owner.
    pub(crate) fn take_end(&self) -> bool {
        self.lock.is_some() && !self.ended.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    fn open(dir: PathBuf, options: Options) -> Result<Self, Error> {
        let mut state = State::read(dir.join("state/id"));
        let id = state.get_or_set("id", || format!("{:016x}", rand::random::<u64>()));
        state.write()?;
        Ok(Self { dir, options, id, lock: None, ended: AtomicBool::new(false) })
    }

    fn enter(&self) -> Result<(), Error> {
        let this = Process::this();
        self.record(&self.dir.join("users").join(this.pid.to_string()), &this.to_string())
    }

    fn users(&self) -> Vec<Process> {
        records(&self.dir.join("users")).into_iter().filter(Process::alive).collect()
    }

    pub(crate) fn keeper(&self) -> Option<Process> {
        read(&self.dir.join("keeper")).filter(Process::alive)
    }

    fn start_keeper(&self, linger: Duration) -> Result<(), Error> {
        let step = || "start the keeper of the stack".to_owned();
        let script = self.dir.join("keeper.sh");
        files::write(&script, include_str!("keeper.sh")).step(step)?;
        let log = self.log_file("keeper")?;
        let mut command = Command::new("sh");
        command.arg(&script).arg(&self.dir).arg(&self.id).arg(linger.as_secs().max(1).to_string());
        command.env("PATH", self.options.search_path()).current_dir("/");
        command.stderr(log.try_clone().step(step)?).stdout(log);
        let keeper = process::spawn_detached(&mut command).step(step)?;
        self.record(&self.dir.join("keeper"), &keeper.to_string())
    }

    pub(crate) fn record(&self, path: &Path, text: &str) -> Result<(), Error> {
        // The newline is for the keeper: to its shell a line without one is a failed read.
        files::write(path, format!("{text}\n")).step(|| format!("write {} in {}", path.display(), self.dir.display()))
    }

    /// Hands a process over, to be ended before the servers.
    pub(crate) fn adopt(&self, pid: u32, name: &str) -> Result<(), Error> {
        let Some(process) = Process::find(pid) else { return Ok(()) };
        self.record(&self.dir.join("children").join(pid.to_string()), &format!("{process} {name}"))
    }

    pub(crate) fn release(&self, pid: u32) {
        let _ = fs::remove_file(self.dir.join("children").join(pid.to_string()));
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.stop();
    }
}

fn make(dir: &Path) -> Result<PathBuf, Error> {
    let step = || format!("prepare {}", dir.display());
    if !dir.exists() {
        fs::create_dir_all(dir).step(step)?;
        // The accounts of the servers pass through it to their data.
        fs::set_permissions(dir, Permissions::from_mode(0o711)).step(step)?;
    }
    for folder in ["users", "processes", "children", "logs", "state"].map(|name| dir.join(name)) {
        files::create_folder(&folder).step(step)?;
        // One of an earlier version was open to all.
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).step(step)?;
    }
    dir.canonicalize().step(step)
}

pub(crate) fn read(path: &Path) -> Option<Process> {
    fs::read_to_string(path).ok()?.parse().ok()
}

pub(crate) fn records(folder: &Path) -> Vec<Process> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path())).collect()
}
