//! Where the installed programs are. Debian keeps PostgreSQL's servers off the PATH, and on the PATH puts a
//! wrapper in front of RabbitMQ's that insists on the machine's own instance.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::options::Options;

/// The folder with `postgres` and `initdb`, of this major version if one is given, else the newest. A folder that was
/// chosen is the only one.
pub(crate) fn postgres(options: &Options, major: Option<&str>) -> Option<PathBuf> {
    let mut folders = versions("/usr/lib/postgresql", "", "bin");
    folders.extend(versions("/usr", "pgsql-", "bin"));
    folders.extend(env::split_paths(&options.search_path()));
    for prefix in ["/opt/homebrew/opt", "/usr/local/opt"] {
        folders.extend(versions(prefix, "postgresql@", "bin"));
    }
    folders.push("/Applications/Postgres.app/Contents/Versions/latest/bin".into());
    folders.push("/usr/local/pgsql/bin".into());
    if let Some(chosen) = &options.postgres_bin {
        folders = vec![chosen.clone()];
    }
    let complete = |folder: &PathBuf| folder.join("postgres").is_file() && folder.join("initdb").is_file();
    let mut installed = folders.into_iter().filter(complete);
    match major {
        None => installed.next(),
        Some(_) => installed.find(|folder| postgres_major(folder).as_deref() == major),
    }
}

/// The major version that the `postgres` in this folder says it is.
pub(crate) fn postgres_major(bin: &Path) -> Option<String> {
    let output = std::process::Command::new(bin.join("postgres")).arg("--version").output().ok()?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = words.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let major = version.split(|end: char| !end.is_ascii_digit()).next()?;
    Some(major.to_owned())
}

/// The folder with `rabbitmq-server` and its companions. A folder that was chosen is the only one.
pub(crate) fn rabbitmq(options: &Options) -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib/rabbitmq/bin")];
    folders.extend(versions("/usr/lib/rabbitmq/lib", "rabbitmq_server-", "sbin"));
    folders.extend(["/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"].map(PathBuf::from));
    folders.extend(["/opt/rabbitmq/sbin", "/usr/local/sbin"].map(PathBuf::from));
    folders.extend(env::split_paths(&options.search_path()));
    if let Some(chosen) = &options.rabbitmq_bin {
        folders = vec![chosen.clone()];
    }
    // The wrapper has no `rabbitmq-env` beside it; a link in a folder of the PATH is followed to the real place.
    folders.into_iter().filter_map(|folder| folder.join("rabbitmq-server").canonicalize().ok()).find_map(|script| {
        let folder = script.parent()?;
        folder.join("rabbitmq-env").is_file().then(|| folder.to_owned())
    })
}

/// `3.10.8` from `…/rabbitmq_server-3.10.8/sbin`, where the folders are named so.
pub(crate) fn rabbitmq_version(scripts: &Path) -> Option<String> {
    let folder = scripts.parent()?.file_name()?.to_str()?;
    folder.strip_prefix("rabbitmq_server-").or_else(|| folder.strip_prefix("rabbitmq-")).map(str::to_owned)
}

/// Erlang's port mapper.
pub(crate) fn epmd(options: &Options) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = env::split_paths(&options.search_path()).collect();
    for erlang in ["/usr/lib/erlang", "/usr/local/lib/erlang", "/opt/homebrew/lib/erlang", "/usr/lib64/erlang"] {
        folders.push(Path::new(erlang).join("bin"));
        folders.extend(versions(erlang, "erts-", "bin"));
    }
    folders.into_iter().map(|folder| folder.join("epmd")).find(|program| program.is_file())
}

/// `parent/<prefix><version>/<child>`, newest first.
fn versions(parent: &str, prefix: &str, child: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?;
            let numbers: Option<Vec<u32>> = version.split('.').map(|number| number.parse().ok()).collect();
            Some((numbers?, entry.path().join(child)))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, folder)| folder).collect()
}
