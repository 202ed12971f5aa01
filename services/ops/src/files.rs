//! Files that commands write: only their owner may read them, because they hold personal data or secrets.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tempfile::NamedTempFile;

/// Read and write for the owner, nothing for others.
const PRIVATE: u32 = 0o600;

/// A file that gets its name when it is whole.
pub(crate) struct Draft {
    file: NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Begins a file in the folder of `path`, under a random name that no other program can have prepared.
    pub(crate) fn begin(path: &str) -> anyhow::Result<Self> {
        let context = || format!("{path} cannot be written");
        // A device or a pipe would be replaced by the file.
        let replaceable = fs::metadata(path).is_ok_and(|found| !found.is_file());
        ensure!(!replaceable, "{path} is no regular file; name a file that does not exist yet, such as users.csv");
        let path = PathBuf::from(path);
        let name = path.file_name().with_context(context)?.to_string_lossy().into_owned();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file =
            tempfile::Builder::new().prefix(&format!("{name}.part-")).tempfile_in(folder).with_context(context)?;
        Ok(Self { file, path })
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Gives it its name.
    pub(crate) fn keep(self) -> anyhow::Result<()> {
        let context = || format!("{} cannot be written", self.path.display());
        self.file.as_file().sync_all().with_context(context)?;
        self.file.persist(&self.path).map_err(|fault| fault.error).with_context(context)?;
        Ok(())
    }
}

/// Opens a file for reading and writing, and makes it if there is none.
pub(crate) fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE).open(path)
}

/// Takes the rights of others to a file that an earlier version left open to them, as far as its owner may.
pub(crate) fn make_private(file: &File) {
    let _ = file.set_permissions(Permissions::from_mode(PRIVATE));
}
