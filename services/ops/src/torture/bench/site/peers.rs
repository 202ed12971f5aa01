//! Peers: the Node services, written to a folder, with their packages from the registry that npm is configured with.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::output::say;

const FILES: [(&str, &str); 4] = [
    ("package.json", include_str!("../peers/package.json")),
    ("express.js", include_str!("../peers/express.js")),
    ("queue_api.js", include_str!("../peers/queue_api.js")),
    ("queue_worker.js", include_str!("../peers/queue_worker.js")),
];
const PACKAGES: [&str; 3] = ["express", "pg", "amqplib"];

/// Gives the versions of Node.js and of the packages.
pub(super) async fn install(folder: &Path) -> anyhow::Result<Vec<String>> {
    let node = Command::new("node").arg("--version").output().await;
    let node =
        node.context("node cannot be run; install Node.js 18 or newer, for example: apt-get install nodejs npm")?;
    say(format_args!("installing the packages of the Node peers: {}", PACKAGES.join(", ")));
    for (name, text) in FILES {
        std::fs::write(folder.join(name), text)?;
    }
    let arguments = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"];
    let installed = Command::new("npm").current_dir(folder).args(arguments).output().await;
    let installed = installed.context("npm cannot be run; install it, for example: apt-get install npm")?;
    let complaint = String::from_utf8_lossy(&installed.stderr);
    ensure!(installed.status.success(), "npm install failed ({}):\n{complaint}", installed.status);
    let mut versions = vec![format!("Node.js {}", String::from_utf8_lossy(&node.stdout).trim())];
    for package in PACKAGES {
        let path = folder.join("node_modules").join(package).join("package.json");
        let description: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        versions.push(format!("{package} {}", description["version"].as_str().unwrap_or("of unknown version")));
    }
    Ok(versions)
}
