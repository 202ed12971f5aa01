//! `cargo prepare-queries`: writes `.sqlx/`, what the compiler knows of each query when no database is near.
//!
//! # Why is it not a command of `rollcall`?
//! A changed query that is not in the cache does not compile, and so neither would the command that writes it. This crate
//! depends on no crate that has queries.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::SystemTime;

use rollcall_local_stack::testing::{TestDatabase, shared_stack};

const QUERIES: &str = ".sqlx";
/// The crates whose queries are checked; touched, so that the compiler looks at every query again.
const QUERYING: [&str; 3] = ["services/api/src/lib.rs", "services/ops/src/main.rs", "services/worker/src/lib.rs"];

#[tokio::main]
async fn main() -> ExitCode {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(_) => {
            let _ = writeln!(stderr(), "usage: cargo prepare-queries [--check], at the top of the repository");
            return ExitCode::FAILURE;
        }
    };
    match run(check).await {
        Ok(message) => {
            // The work is done, also when its reader has left.
            let _ = writeln!(stdout(), "{message}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(check: bool) -> Result<&'static str, Box<dyn Error>> {
    let fresh = queries().await?;
    if fresh == read_folder(Path::new(QUERIES))? {
        return Ok(".sqlx is current");
    }
    if check {
        return Err(".sqlx is not current; run `cargo prepare-queries`".into());
    }
    write_folder(Path::new(QUERIES), &fresh)?;
    Ok(".sqlx is written")
}

/// Compiles every query against a freshly migrated database and gives what the compiler learnt of each.
async fn queries() -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let stack = tokio::task::spawn_blocking(shared_stack).await??;
    let database = TestDatabase::create(stack.postgres.url()).await?;
    let folder = tempfile::tempdir()?;
    for source in QUERYING {
        fs::File::options().append(true).open(source)?.set_modified(SystemTime::now())?;
    }
    let status = Command::new("cargo")
        .args(["check", "--quiet", "--workspace"])
        .env("SQLX_OFFLINE", "false")
        .env("SQLX_OFFLINE_DIR", folder.path())
        .env("DATABASE_URL", database.url())
        .status()?;
    if !status.success() {
        return Err("the queries do not compile".into());
    }
    read_folder(folder.path())
}

fn read_folder(folder: &Path) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for entry in folder.read_dir().into_iter().flatten() {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read_to_string(entry.path())?);
    }
    Ok(files)
}

fn write_folder(folder: &Path, files: &BTreeMap<String, String>) -> Result<(), Box<dyn Error>> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder)?;
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
