//! Meter of the costs of a load: CPU time and memory of every process, work of PostgreSQL.

use std::collections::BTreeMap;
use std::time::Duration;

use super::figure;
use super::generator::Load;
use super::sample::Sample;
use super::site::Site;
use super::usage::{cpu_time, memory_mib, own_cpu_time};
use super::work::Work;

/// The load generators and this process.
const GENERATOR: &str = "generator";

pub(super) struct Meter {
    cpu: BTreeMap<String, Duration>,
    work: Work,
}

/// What was used since the meter's start.
pub(super) struct Usage {
    cpu: BTreeMap<String, Duration>,
    before: Work,
    after: Work,
    memory_mib: BTreeMap<String, f64>,
}

impl Meter {
    pub(super) async fn start(site: &mut Site) -> anyhow::Result<Self> {
        let work = site.work().await?;
        Ok(Self { cpu: cpu(site)?, work })
    }

    pub(super) async fn read(&self, site: &mut Site) -> anyhow::Result<Usage> {
        let mut cpu = cpu(site)?;
        for (name, spent) in &mut cpu {
            *spent = spent.saturating_sub(self.cpu.get(name).copied().unwrap_or_default());
        }
        let memory_mib = memory(site)?;
        Ok(Usage { cpu, before: self.work, after: site.work().await?, memory_mib })
    }
}

impl Usage {
    /// With what was in memory at the end of the load.
    pub(super) fn with_memory(self, memory_mib: BTreeMap<String, f64>) -> Self {
        Self { memory_mib, ..self }
    }

    /// The sample of a load of so many requests or commands in so many seconds; its round is not known here.
    pub(super) fn sample(self, load: &Load, count: f64, seconds: f64) -> Sample {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let total: Duration = self.cpu.values().sum();
        let each = |spent: Duration| spent.as_secs_f64() * 1e6 / count.max(1.0);
        Sample {
            round: 0,
            per_second: count / seconds,
            p50_ms: load.p50_ms,
            p99_ms: load.p99_ms,
            errors: load.errors,
            left: None,
            limit: None,
            cpu_us: self.cpu.iter().map(|(name, spent)| (name.clone(), each(*spent))).collect(),
            busy: total.as_secs_f64() / seconds.max(0.001) / figure(cores as u64),
            memory_mib: self.memory_mib,
            database: self.after.each(self.before, count),
        }
    }
}

/// Memory of every process now.
pub(super) fn memory(site: &Site) -> anyhow::Result<BTreeMap<String, f64>> {
    Ok(site.pids()?.iter().map(|(name, pids)| ((*name).to_owned(), memory_mib(pids))).collect())
}

fn cpu(site: &Site) -> anyhow::Result<BTreeMap<String, Duration>> {
    let mut spent: BTreeMap<String, Duration> =
        site.pids()?.into_iter().map(|(name, pids)| (name.to_owned(), cpu_time(&pids))).collect();
    spent.insert(GENERATOR.to_owned(), own_cpu_time());
    Ok(spent)
}
