//! Private files: everything that this program writes and that can hold personal data or secrets.
//!
//! # Rules
//! Only the owner reads them (0600, folders 0700), whatever the umask. A file that is written as a whole begins under a
//! random name beside its target, created exclusively, and is renamed when it is whole and on the disk; the rename is on
//! the disk, too, before the call returns, unless the folder may be written and not read. A file that grows is opened without following a symbolic link, and only if it is
//! this account's own. A symbolic link is never followed and never replaced: it is refused, because it may lead to a file
//! that another account chose, or be one of the system's, as `/dev/stdout` is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;
use tempfile::NamedTempFile;

/// Read and write for the owner, nothing for others.
const PRIVATE: u32 = 0o600;
const PRIVATE_FOLDER: u32 = 0o700;

/// A file that gets its name when it is whole. Dropped before that, it is removed.
#[derive(Debug)]
pub struct Draft {
    file: NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Begins a file that is going to replace `path`.
    ///
    /// # Errors
    /// When the folder cannot be written, or something that is no regular file has the name.
    pub fn begin(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) => regular(&found)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let invalid = || io::Error::new(ErrorKind::InvalidInput, "it names no file");
        let prefix = format!("{}.part-", path.file_name().ok_or_else(invalid)?.to_string_lossy());
        let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(folder(path))?;
        // What the library sets today; here it is a promise.
        make_private(file.as_file())?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The file, to be written.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives it its name. What had the name is replaced; a link that came there meanwhile is not followed.
    ///
    /// # Errors
    /// As the system gives them; then nothing has changed under the name.
    pub fn keep(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        let folder = match File::open(folder(&self.path)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => None,
            opened => Some(opened?),
        };
        self.file.persist(&self.path).map_err(|failure| failure.error)?;
        match folder.map_or(Ok(()), |folder| folder.sync_all()) {
            // A file system without it.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }
}

/// Writes a file as a whole.
///
/// # Errors
/// See [`Draft`].
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let draft = Draft::begin(path)?;
    draft.file().write_all(content.as_ref())?;
    draft.keep()
}

/// Opens a file that grows, such as a log, and makes it if there is none. `options` say how; one that others could read is
/// closed to them.
///
/// # Errors
/// When it cannot be opened, is no regular file, or belongs to another account, which could read it.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = open_unchanged(path, options)?;
    make_private(&file)?;
    Ok(file)
}

/// The same, with the mode that it has, for a file that may be none of ours.
///
/// # Errors
/// See [`open`].
pub fn open_unchanged(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let opened = options.create(true).mode(PRIVATE).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP) => no_file("a symbolic link"),
        Some(Errno::ISDIR) => no_file("no regular file"),
        _ => error,
    })?;
    let found = file.metadata()?;
    regular(&found)?;
    if found.uid() != geteuid().as_raw() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "it belongs to another account"));
    }
    Ok(file)
}

/// Closes a file to others.
///
/// # Errors
/// As the system gives them.
pub fn make_private(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(PRIVATE))
}

/// Makes a folder with its parents, closed to others. One that is there stays as it is.
///
/// # Errors
/// As the system gives them.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE_FOLDER).create(path)
}

fn regular(found: &fs::Metadata) -> io::Result<()> {
    let kind = found.file_type();
    if kind.is_file() {
        Ok(())
    } else if kind.is_symlink() {
        Err(no_file("a symbolic link"))
    } else {
        Err(no_file("no regular file"))
    }
}

fn no_file(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidInput,
        format!("it is {what}; name a regular file, or one that does not exist yet"),
    )
}

/// The folder that a file lies in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("a file").mode() & 0o777
    }

    #[test]
    fn files_and_folders_are_closed_to_others() {
        let place = tempfile::tempdir().expect("a folder");
        let (deep, old) = (place.path().join("a/b"), place.path().join("old"));
        create_folder(&deep).expect("a folder");
        assert_eq!((mode(&deep), mode(&place.path().join("a"))), (0o700, 0o700));
        // One that an earlier version left open to all.
        fs::write(&old, "old").expect("a file");
        fs::set_permissions(&old, Permissions::from_mode(0o666)).expect("a mode");
        open(&old, OpenOptions::new().append(true)).expect("a file");
        assert_eq!(mode(&old), 0o600);
        fs::set_permissions(&old, Permissions::from_mode(0o666)).expect("a mode");
        write(&old, "new").expect("a file");
        assert_eq!((mode(&old), fs::read_to_string(&old).expect("a text")), (0o600, "new".to_owned()));
        let grown = place.path().join("grown");
        let mut log = open(&grown, OpenOptions::new().append(true).read(true)).expect("a file");
        assert_eq!(mode(&grown), 0o600);
        log.write_all(b"line").expect("written");
        let mut text = String::new();
        File::open(&grown).expect("a file").read_to_string(&mut text).expect("a text");
        assert_eq!(text, "line");
    }

    /// To root every folder is open.
    #[test]
    fn a_folder_that_cannot_be_read_takes_files() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("file");
        fs::set_permissions(place.path(), Permissions::from_mode(0o300)).expect("a mode");
        let written = write(&path, "mine");
        fs::set_permissions(place.path(), Permissions::from_mode(0o700)).expect("a mode");
        written.expect("a file");
        assert_eq!(fs::read_to_string(path).expect("a text"), "mine");
    }

    #[test]
    fn links_and_pipes_are_refused_and_what_they_lead_to_stays() {
        let place = tempfile::tempdir().expect("a folder");
        let at = |name: &str| place.path().join(name);
        fs::write(at("target"), "precious").expect("a file");
        symlink(at("target"), at("link")).expect("a link");
        symlink(at("nowhere"), at("dangling")).expect("a link");
        for name in ["link", "dangling"] {
            let opened = open(&at(name), OpenOptions::new().append(true)).expect_err(name).to_string();
            let written = write(&at(name), "mine").expect_err(name).to_string();
            assert!(opened.contains("symbolic link") && written.contains("symbolic link"), "{opened}; {written}");
        }
        assert_eq!(fs::read_to_string(at("target")).expect("a text"), "precious");
        assert!(!at("nowhere").exists());
        let device = write(Path::new("/dev/null"), "mine").expect_err("a device").to_string();
        assert!(device.contains("no regular file"), "{device}");
        assert_eq!(fs::read_dir(place.path()).expect("a folder").count(), 3, "no drafts are left");
    }

    #[test]
    fn a_link_that_comes_while_a_file_is_written_is_replaced_and_not_followed() {
        let place = tempfile::tempdir().expect("a folder");
        let at = |name: &str| place.path().join(name);
        fs::write(at("target"), "precious").expect("a file");
        let draft = Draft::begin(&at("file")).expect("a draft");
        draft.file().write_all(b"mine").expect("written");
        symlink(at("target"), at("file")).expect("a link");
        draft.keep().expect("a file");
        assert_eq!(fs::read_to_string(at("target")).expect("a text"), "precious");
        assert!(fs::symlink_metadata(at("file")).expect("a file").is_file());
    }
}
