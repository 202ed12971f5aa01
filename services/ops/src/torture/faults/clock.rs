//! A service whose wall clock is wrong, by way of libfaketime: it must not be ready, and must say so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::RngExt;

use super::refusal::{self, Since};
use crate::torture::schedule::{Schedule, Target};
use crate::torture::system::System;
use crate::torture::verdict::Broken;

/// What libfaketime adds to the clock: all of it beyond the bound that the services keep.
const SKEWS: [&str; 4] = ["-2d", "+26h", "-1m", "+1m"];
const RIGHT: &str = "+0";
/// The variant for processes with several threads.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
/// What a process that says what is wrong with it names.
const WORDS: [&str; 1] = ["clock"];

impl Schedule {
    /// The clock is wrong from the start, until the service is restarted; or it jumps, and back.
    pub(super) async fn skew_clock(&mut self, system: &mut System, target: Target) -> anyhow::Result<&'static str> {
        let Some(library) = library() else { return Ok("clock not skewed: libfaketime is not installed") };
        system.heal().await?;
        let (skew, jumps) = (SKEWS[self.random.random_range(0..SKEWS.len())], self.random.random_bool(0.5));
        let stack = Arc::clone(&system.stack);
        let file = system.folder().join("clock");
        let service = self.pick(system, target);
        let role = service.role;
        service.terminate(&stack).await?;
        service.differ(variables(&library, &file));
        set(&file, if jumps { RIGHT } else { skew })?;
        service.start(&stack)?;
        let found = if jumps {
            service.ready(&stack).await?;
            set(&file, skew)?;
            let found = refusal::watch(service, Since::Now, &WORDS).await?;
            set(&file, RIGHT)?;
            service.ready(&stack).await?;
            found
        } else {
            refusal::watch(service, Since::Start, &WORDS).await?
        };
        service.terminate(&stack).await?;
        service.differ(Vec::new());
        service.start(&stack)?;
        let how = if jumps { "jumped" } else { "was wrong" };
        let found = found.into_iter().map(|found| format!("the {role} whose clock {how} by {skew} {found}"));
        self.findings.extend(found.map(|found| (Broken::Admitted, found)));
        Ok(match target {
            Target::Api => "API's clock wrong",
            Target::Worker => "worker's clock wrong",
        })
    }
}

fn variables(library: &Path, file: &Path) -> Vec<(String, String)> {
    let variables = [
        ("LD_PRELOAD", library.to_string_lossy().into_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_string_lossy().into_owned()),
        // In seconds, until the file is read again.
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        // Intervals go on as they do.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The file is never seen half written.
fn set(file: &Path, skew: &str) -> std::io::Result<()> {
    let draft = file.with_extension("draft");
    fs::write(&draft, format!("{skew}\n"))?;
    fs::rename(draft, file)
}

/// Where the package puts it: in a folder of the architecture, or in the one that all share.
fn library() -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from("/usr/lib"), PathBuf::from("/usr/lib64"), PathBuf::from("/usr/local/lib")];
    let of_architectures = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    folders.extend(of_architectures.map(|entry| entry.path()));
    folders.into_iter().map(|folder| folder.join(LIBRARY)).find(|library| library.is_file())
}
