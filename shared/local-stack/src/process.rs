//! Processes by identity: a pid together with the moment it started, so that a reused pid is never signalled.
//! Signals are sent by the shell's built-in `kill`, because the crate has no unsafe code and a minimal Debian no
//! `kill` program.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, IoStep};

pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Differs from boot to boot; `-` where the system does not tell.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "-".into(), |id| id.trim().to_owned())
});

/// One process, for as long as it lives and never its successor under the same pid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// `<start time in ticks>@<boot>`; `-` where there is no /proc.
    start: String,
}

impl Process {
    pub(crate) fn this() -> Self {
        let pid = std::process::id();
        Self::find(pid).unwrap_or(Self { pid, start: "-".into() })
    }

    /// The living process with this pid.
    pub(crate) fn find(pid: u32) -> Option<Self> {
        if proc_exists() {
            let stat = Stat::read(pid)?;
            (!stat.dead()).then_some(Self { pid, start: stat.start })
        } else {
            signal(&[pid], "0").then(|| Self { pid, start: "-".into() })
        }
    }

    pub(crate) fn alive(&self) -> bool {
        Self::find(self.pid).is_some_and(|found| found.start == self.start)
    }

    pub(crate) fn signal(&self, name: &str) -> bool {
        self.alive() && signal(&[self.pid], name)
    }

    /// Waits for the end, and says whether it came in time.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }

    /// Asks with `first`, and insists with SIGKILL when `patience` is over.
    pub(crate) fn end(&self, first: &str, patience: Duration) {
        if self.signal(first) {
            // A stopped process receives nothing but SIGKILL until it continues.
            self.signal("CONT");
            if !self.wait(patience) {
                self.signal("KILL");
                self.wait(Duration::from_secs(5));
            }
        }
    }

    /// Ends a process that leads its own group, and the group.
    pub(crate) fn kill_group(&self) {
        if self.alive() {
            shell(&format!("kill -s KILL -- -{}", self.pid));
            self.wait(Duration::from_secs(5));
        }
    }

    /// The pids of its direct children.
    pub(crate) fn children(&self) -> Vec<u32> {
        if proc_exists() {
            return pids().filter(|pid| Stat::read(*pid).is_some_and(|stat| stat.parent == self.pid)).collect();
        }
        let Ok(listing) = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output() else { return Vec::new() };
        let listing = String::from_utf8_lossy(&listing.stdout);
        let numbers = listing.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
        numbers
            .filter(|(_, parent)| parent.trim() == self.pid.to_string())
            .filter_map(|(pid, _)| pid.parse().ok())
            .collect()
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

impl FromStr for Process {
    type Err = ();

    fn from_str(record: &str) -> Result<Self, ()> {
        let mut words = record.split_whitespace();
        let pid = words.next().and_then(|pid| pid.parse().ok()).ok_or(())?;
        let start = words.next().ok_or(())?.to_owned();
        Ok(Self { pid, start })
    }
}

struct Stat {
    state: String,
    parent: u32,
    start: String,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name in parentheses and may hold both spaces and parentheses.
        let (_, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        Some(Self {
            state: (*fields.first()?).to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            start: format!("{}@{}", fields.get(19)?, *BOOT),
        })
    }

    /// A zombie has ended; it only waits for its parent to look.
    fn dead(&self) -> bool {
        matches!(self.state.as_str(), "Z" | "X")
    }
}

fn proc_exists() -> bool {
    Path::new("/proc/self/stat").exists()
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Sends a signal to pids that the caller has just seen alive.
pub(crate) fn signal(pids: &[u32], name: &str) -> bool {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    shell(&format!("kill -{name} {}", pids.join(" ")))
}

fn shell(line: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Living processes that carry `variable=value` in their environment; none where there is no /proc.
pub(crate) fn with_environment(variable: &str, value: &[u8]) -> Vec<Process> {
    let wanted = [variable.as_bytes(), b"=", value].concat();
    pids()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == wanted))
        })
        .filter_map(Process::find)
        .collect()
}

/// Runs a program to its end, and gives what it printed.
pub(crate) fn run(step: &str, command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().step(|| step.to_owned())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let output = format!("{} ({})", last_lines(&String::from_utf8_lossy(&said)), output.status);
    Err(Error::Command { step: step.to_owned(), output })
}

/// As much of a log as an error message bears.
pub(crate) fn last_lines(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = text.trim_end().lines().collect();
    // RabbitMQ says why around this line, and then repeats it in crash reports of many pages.
    let end = lines.iter().position(|line| line.contains("BOOT FAILED")).map_or(lines.len(), |failed| failed + 12);
    let end = end.min(lines.len());
    lines[end.saturating_sub(LINES)..end].join("\n")
}

/// Starts a process that outlives us and that a Ctrl-C in our terminal does not reach.
pub(crate) fn spawn_detached(command: &mut Command) -> io::Result<Process> {
    let mut child = command.stdin(Stdio::null()).process_group(0).spawn()?;
    let pid = child.id();
    let process = Process::find(pid).or_else(|| {
        // It has ended already; a zombie still tells its start.
        Stat::read(pid).map(|stat| Process { pid, start: stat.start })
    });
    // Somebody has to take the exit status, or the dead would stay as zombies for as long as we live.
    thread::Builder::new().name("reaper".into()).spawn(move || child.wait())?;
    Ok(process.unwrap_or(Process { pid, start: "-".into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_a_process_and_not_its_pid() {
        let this = Process::this();
        assert!(this.alive());
        assert_eq!(this.to_string().parse(), Ok(this.clone()));
        let another = Process { start: "1@another-boot".into(), ..this };
        assert_eq!(another.alive(), !proc_exists(), "a pid alone is believed only where nothing better is known");
    }

    #[test]
    fn an_excerpt_of_a_log_shows_where_rabbitmq_says_why() {
        let pages = |word: &str| vec![word; 40].join("\n");
        let text = format!("{}\nthe reason\nBOOT FAILED\n{}", pages("start"), pages("crash report"));
        let excerpt = last_lines(&text);
        assert!(excerpt.contains("the reason"), "{excerpt}");
        assert_eq!(last_lines(&pages("line")).lines().count(), 20);
    }
}
