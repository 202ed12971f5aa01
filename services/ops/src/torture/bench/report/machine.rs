//! Machine and versions of a run.

use serde::Serialize;
use sqlx::Row;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::torture::bench::site::Site;

#[derive(Serialize)]
pub(in crate::torture::bench) struct Machine {
    measured_at: String,
    processor: String,
    cores: usize,
    memory_gib: u64,
    kernel: String,
    /// Servers, generator, peers and their libraries.
    pub(super) versions: Vec<String>,
    debug_build: bool,
}

impl Machine {
    pub(in crate::torture::bench) async fn look(site: &mut Site, generator: Option<String>) -> anyhow::Result<Self> {
        let row = sqlx::query("SHOW server_version").fetch_one(&mut site.rollcall).await?;
        let kib = line("/proc/meminfo", "MemTotal").split(' ').next().and_then(|kib| kib.parse::<u64>().ok());
        let mut versions = vec![
            format!("Rollcall {}", env!("CARGO_PKG_VERSION")),
            format!("PostgreSQL {}", row.try_get::<String, _>(0)?),
            site.stack.rabbitmq.title(),
        ];
        versions.extend(site.peers.iter().cloned().chain(generator));
        Ok(Self {
            measured_at: OffsetDateTime::now_utc().format(&Rfc3339)?,
            processor: line("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: kib.unwrap_or_default() >> 20,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            versions,
            debug_build: cfg!(debug_assertions),
        })
    }

    /// As a paragraph.
    pub(super) fn describe(&self) -> String {
        let Self { measured_at, processor, cores, memory_gib, kernel, versions, debug_build } = self;
        let build = if *debug_build { "**a debug build: these figures say nothing**" } else { "a release build" };
        format!(
            "{measured_at}. {processor}, {cores} cores, {memory_gib} GiB, kernel {kernel}, shared by the load generator, the \
             services and both servers. {}; {build}.",
            versions.join(", "),
        )
    }
}

/// The value of a `name: value` line of this file.
fn line(path: &str, name: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}
