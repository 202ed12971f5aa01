//! Under which account a server runs, and where its data can lie so that this account reaches it.
//!
//! Both servers refuse, or should refuse, to run as root. As root the package's own account is used, else `nobody`;
//! as anybody else the current one.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::files::Draft;

use crate::error::{Error, IoStep};
use crate::options::Options;

/// Where the data goes when the directory lies under a folder that only root may enter. Not /var/tmp: systems remove
/// from there what has not been touched for a month.
const PUBLIC: &str = "/var/lib";

/// Who a server runs as; `None` is whoever we are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Account(Option<(u32, u32)>);

impl Account {
    /// For the first of `names` that exists, if we are root.
    pub(crate) fn choose(names: &[&str]) -> Self {
        if !root() {
            return Self(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let account = names.iter().find_map(|name| ids(&passwd, name));
        Self(Some(account.unwrap_or((65_534, 65_534))))
    }

    /// Drops to this account; the supplementary groups of root go with it.
    pub(crate) fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
    }

    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        chown(path, Some(uid), Some(gid)).step(|| format!("give {} to its server", path.display()))
    }

    /// Writes a file of this account's into a folder that may be its own. The file has its owner and mode before it has its
    /// name: what the account may do in the folder meanwhile leads root to no other file.
    pub(crate) fn write(&self, path: &Path, content: &str, mode: u32) -> Result<(), Error> {
        let write = || {
            let draft = Draft::begin(path)?;
            draft.file().write_all(content.as_bytes())?;
            draft.file().set_permissions(Permissions::from_mode(mode))?;
            if let Some((uid, gid)) = self.0 {
                fchown(draft.file(), Some(uid), Some(gid))?;
            }
            draft.keep()
        };
        write().step(|| format!("write {}", path.display()))
    }

    /// Whether this account can get into the folder and write there; asked of the system, not of the mode bits.
    fn reaches(&self, dir: &Path) -> bool {
        self.tests("cd \"$1\" && test -w .", dir)
    }

    /// Refuses a program that this account cannot run, such as one in the closed home of root. `variable` is what chooses
    /// another.
    pub(crate) fn require(&self, program: &Path, variable: &'static str) -> Result<(), Error> {
        if self.tests("test -x \"$1\"", program) {
            return Ok(());
        }
        Err(Error::ClosedPrograms { program: program.to_owned(), variable })
    }

    fn tests(&self, script: &str, path: &Path) -> bool {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(path);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.apply(&mut command);
        command.status().is_ok_and(|status| status.success())
    }
}

/// The ids of an account in the text of /etc/passwd.
fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find_map(|fields| {
        let found = fields.first() == Some(&name);
        found.then_some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    })
}

/// Lets a service run as an account without rights, if we are root: as `rollcall` where there is such an account, else as
/// `nobody`. Gives whether we are.
pub fn leave_root(service: &mut Command) -> bool {
    let account = Account::choose(&["rollcall", "nobody"]);
    account.apply(service);
    account.0.is_some()
}

/// Undoes [`leave_root`].
pub fn stay_root(service: &mut Command) {
    Account(Some((0, 0))).apply(service);
}

/// What to start for another process of this program. As root by a name that leads to the program itself, because the account
/// of a service may not be able to enter its folder.
///
/// # Errors
/// When the system does not say where the program is.
pub fn this_program() -> io::Result<PathBuf> {
    let itself = Path::new("/proc/self/exe");
    if root() && itself.exists() { Ok(itself.to_owned()) } else { std::env::current_exe() }
}

/// Whether we are root.
pub(crate) fn root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

/// The folder `dir/name`, made and given to the account; when the account cannot reach it, a link from there to a
/// folder in a public place. An existing folder keeps its owner, who then is the account.
pub(crate) fn place(options: &Options, dir: &Path, name: &str, account: Account) -> Result<(PathBuf, Account), Error> {
    let path = dir.join(name);
    let step = || format!("prepare {}", path.display());
    if let Ok(real) = path.canonicalize() {
        let owner = fs::metadata(&real).step(step)?;
        let account =
            if account.0.is_some() && owner.uid() != 0 { Account(Some((owner.uid(), owner.gid()))) } else { account };
        if account.reaches(&real) {
            return Ok((real, account));
        }
        if path.is_symlink() || fs::read_dir(&path).step(step)?.next().is_some() {
            let reason = format!("the account of the server cannot reach its data in {}", path.display());
            return Err(Error::Unusable { reason, dir: dir.to_owned() });
        }
        fs::remove_dir(&path).step(step)?;
    }
    let _ = fs::remove_file(&path);
    fs::create_dir(&path).step(step)?;
    fs::set_permissions(&path, Permissions::from_mode(0o700)).step(step)?;
    if account.own(&path).is_ok() && account.reaches(&path) {
        return Ok((path, account));
    }
    fs::remove_dir(&path).step(step)?;
    let elsewhere = public_place(dir)?;
    fs::create_dir_all(&elsewhere).step(step)?;
    fs::set_permissions(&elsewhere, Permissions::from_mode(0o711)).step(step)?;
    let target = elsewhere.join(name);
    // The link is gone, so whatever lies there belongs to a directory that was deleted.
    let _ = fs::remove_dir_all(&target);
    fs::create_dir(&target).step(step)?;
    fs::set_permissions(&target, Permissions::from_mode(0o700)).step(step)?;
    account.own(&target)?;
    symlink(&target, &path).step(step)?;
    options.tell(format!("{name}: its account cannot enter {}; the data lies in {}", dir.display(), target.display()));
    Ok((target, account))
}

/// Where the data of `dir` lies when it cannot lie there.
pub(crate) fn public_place(dir: &Path) -> Result<PathBuf, Error> {
    let place = Path::new(PUBLIC).join(format!("rollcall-{:016x}", hash(dir)));
    // Only a folder of root's own is trusted.
    let foreign = fs::symlink_metadata(&place).is_ok_and(|found| !found.is_dir() || found.uid() != 0);
    if foreign {
        let reason = format!("{} belongs to somebody else", place.display());
        return Err(Error::Unusable { reason, dir: place });
    }
    Ok(place)
}

/// FNV-1a: the same in every release of the compiler, unlike the standard library's hash.
pub(crate) fn hash(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_whole_name() {
        let passwd = "postgresql:x:7:8::/:/bin/sh\npostgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(ids(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids(passwd, "rabbitmq"), None);
    }

    #[test]
    fn the_hash_of_a_path_never_changes() {
        assert_eq!(hash(Path::new("/a")), 0x07d6_6707_b49c_d92d);
    }
}
