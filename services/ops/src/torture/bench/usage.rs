//! CPU time and memory of process trees, from `/proc`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

use super::figure;

/// CPU time of the trees below these processes since each began: their own, and that of children that ended.
pub(super) fn cpu_time(roots: &[u32]) -> Duration {
    let processes = processes();
    let ticks = tree(roots, &processes).iter().filter_map(|pid| processes.get(pid)).map(|stat| stat.ticks).sum();
    of_ticks(ticks)
}

/// CPU time of this process and of children that ended, such as load generators.
pub(super) fn own_cpu_time() -> Duration {
    of_ticks(stat(std::process::id()).map(|stat| stat.ticks).unwrap_or_default())
}

/// Memory of the trees below these processes, in MiB: resident memory of one process; of several their proportional set
/// size, in which a shared page counts once.
pub(super) fn memory_mib(roots: &[u32]) -> f64 {
    let pids = tree(roots, &processes());
    let kib: u64 = if pids.len() > 1 {
        // A process that ended meanwhile has none.
        pids.iter().filter_map(|pid| kib_of(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum()
    } else {
        pids.iter().filter_map(|pid| kib_of(&format!("/proc/{pid}/status"), "VmRSS:")).sum()
    };
    figure(kib) / 1024.0
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(figure(ticks) / figure(rustix::param::clock_ticks_per_second()))
}

fn kib_of(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

struct Stat {
    parent: u32,
    ticks: u64,
}

fn processes() -> HashMap<u32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses can hold blanks; proc(5) numbers the fields from 1, and the state is the third.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index - 3).and_then(|field| field.parse::<u64>().ok());
    // User and system time, its own and that of children that were waited for.
    let ticks = [14, 15, 16, 17].into_iter().filter_map(number).sum();
    Some(Stat { parent: number(4)?.try_into().ok()?, ticks })
}

fn tree(roots: &[u32], processes: &HashMap<u32, Stat>) -> HashSet<u32> {
    let mut found: HashSet<u32> = roots.iter().copied().collect();
    loop {
        let children: Vec<u32> = processes
            .iter()
            .filter(|(pid, stat)| found.contains(&stat.parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
    }
}
