//! `rollcall generate`: the contracts, the client and the sample settings, and whether they are current.
//!
//! The client is written by a package of its own, which only this runs; the client names the contract that it was written from.
//! The query cache is not written here: `cargo prepare-queries` does it without compiling the queries first.

mod breaking;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use api::app::Api;
use api::contract;
use common::config::{SHARED, sample as sample_of};
use common::shutdown::Shutdown;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::output::say;

const CONTRACT: &str = "openapi/rollcall.json";
const EVENTS: &str = "openapi/rollcall-events.json";
const SAMPLE: &str = ".env.example";
const CLIENT: &str = "shared/client/src/generated.rs";

/// Run it at the top of the repository.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; exit with 1 when a file is not current
    #[arg(long)]
    check: bool,
    /// Write nothing; exit with 1 when a client of this older contract would stumble over the present one
    #[arg(long, value_name = "OLD", conflicts_with = "check")]
    check_breaking: Option<PathBuf>,
}

/// The contract as text.
pub(crate) fn contract() -> anyhow::Result<String> {
    let api = Arc::new(Api::unconnected(&Shutdown::default())?);
    Ok(contract::document(&contract::service(&api)))
}

/// The contract of the events as text.
fn events(contract: &str) -> anyhow::Result<String> {
    let contract: Value = serde_json::from_str(contract)?;
    let schemas = &contract["components"]["schemas"];
    Ok(worker::contract::document(&schemas["User"], &schemas["UserStatus"]))
}

/// The sample environment file as text.
pub(crate) fn sample() -> String {
    sample_of(&[SHARED, api::settings::OWN, worker::settings::OWN].concat())
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(path) = &arguments.check_breaking {
        return check_breaking(path);
    }
    ensure!(Path::new(CONTRACT).parent().is_some_and(Path::exists), "run this at the top of the repository");
    let mut stale = Vec::new();
    let contract = contract()?;
    let events = events(&contract)?;
    let hash =
        Sha256::digest(contract.as_bytes()).iter().fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"));
    for (path, text) in [(CONTRACT, contract), (EVENTS, events), (SAMPLE, sample())] {
        if fs::read_to_string(path).unwrap_or_default() != text {
            stale.push(path);
            if !arguments.check {
                fs::write(path, text)?;
            }
        }
    }
    let client = fs::read_to_string(CLIENT).unwrap_or_default();
    if !client.lines().next().is_some_and(|line| line.contains(&hash)) {
        stale.push(CLIENT);
        if !arguments.check {
            let written =
                Command::new("cargo").args(["run", "--quiet", "--package", "rollcall-client-generator"]).status();
            ensure!(written?.success(), "the generator of the client failed");
        }
    }
    if arguments.check && !stale.is_empty() {
        bail!("not current: {}; run `cargo run -- generate`", stale.join(", "));
    }
    say(if stale.is_empty() { "everything is current".to_owned() } else { format!("written: {}", stale.join(", ")) });
    Ok(())
}

fn check_breaking(path: &Path) -> anyhow::Result<()> {
    let old = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let old = serde_json::from_str(&old).with_context(|| format!("{} is no contract in JSON", path.display()))?;
    let changes = breaking::changes(&old, &serde_json::from_str(&contract()?)?);
    if changes.is_empty() {
        say("nothing that a client of it uses has changed");
        return Ok(());
    }
    bail!(
        "clients of {} would stumble over these; keep them as they were, or serve both:\n  {}",
        path.display(),
        changes.join("\n  ")
    )
}
