//! Installs missing servers with apt, where that needs no password. Anything else is the user's own decision.

use std::env;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::OFlags;

use crate::account::root;
use crate::error::{Error, IoStep};
use crate::home::Home;
use crate::options::{Options, elapsed};

/// Whether this is a Debian or Ubuntu on which we are root, or may become root without a password.
pub(crate) fn possible(options: &Options) -> bool {
    let debian = Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists();
    debian && (root() || sudo(options))
}

fn sudo(options: &Options) -> bool {
    let mut command = Command::new("sudo");
    command.args(["-n", "true"]).env("PATH", options.search_path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Installs what `packages` names once it is our turn: another process may have installed them meanwhile.
pub(crate) fn packages(home: &Home, packages: impl Fn() -> Vec<&'static str>) -> Result<(), Error> {
    let _turn = take_turn()?;
    let packages = packages();
    if packages.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    let names = packages.join(", ");
    home.options.tell(format!(
        "installing {names} with apt-get, services neither started nor enabled; log in {}",
        home.log("install").display()
    ));
    let step = format!("install {names}");
    let mut command = if root() {
        Command::new("sh")
    } else {
        let mut command = Command::new("sudo");
        command.args(["-n", "sh"]);
        command
    };
    command.args(["-c", include_str!("install.sh"), "sh"]).args(&packages);
    command.env("PATH", home.options.search_path()).current_dir("/").stdin(Stdio::null());
    let from = home.log_length("install");
    let log = home.log_file("install")?;
    command.stderr(log.try_clone().step(|| step.clone())?).stdout(log);
    let status = command.status().step(|| step.clone())?;
    if !status.success() {
        return Err(Error::Server { step, log: home.log("install"), tail: home.words("install", from) });
    }
    home.options.tell(format!("{names} installed after {}", elapsed(began)));
    Ok(())
}

/// One installation at a time on the whole machine, whatever the directory of the stack and whoever the user.
fn take_turn() -> Result<File, Error> {
    let path = env::temp_dir().join("rollcall-install.lock");
    let step = || format!("lock {}", path.display());
    // The file may belong to another account, and reading is enough to lock it; a link that another account has put there is
    // not followed.
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let open = || OpenOptions::new().read(true).custom_flags(flags).open(&path);
    let create = || OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
    let file = open().or_else(|_| create()).or_else(|_| open()).step(step)?;
    file.lock().step(step)?;
    Ok(file)
}
