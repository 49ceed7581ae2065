//! Measures memory, CPU and OOM kills from inside the sandbox: in its own cgroup under `/sys/fs/cgroup`, version 2 or 1.
//! Without one, sums over `/proc` (the PID namespace contains only the sandbox's processes) and adds [`SharedMemory`].

use std::fs;
use std::path::Path;

use super::shared_memory::{ProcessMapping, SharedMemory};
use crate::agent_protocol::UsageReading;

const ROOT: &str = "/sys/fs/cgroup";

/// Reads the usage. Where the system keeps no peak, remembers the highest sample.
pub(super) struct UsageMeter {
    source: Source,
    shared: SharedMemory,
    sampled_peak: u64,
    latest: u64,
}

/// The cumulative usage of the sandbox at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct UsageSample {
    /// CPU time of all processes, seconds.
    pub cpu_seconds: f64,
    pub memory_bytes: u64,
    pub peak_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    CgroupV2,
    CgroupV1,
    Proc,
}

impl UsageMeter {
    pub fn new() -> Self {
        let source = if Path::new(&format!("{ROOT}/memory.events")).exists() {
            Source::CgroupV2
        } else if Path::new(&format!("{ROOT}/memory/memory.oom_control")).exists() {
            Source::CgroupV1
        } else {
            Source::Proc
        };
        Self { source, shared: SharedMemory::new(), sampled_peak: 0, latest: 0 }
    }

    pub fn read(&mut self) -> UsageReading {
        let (memory, peak, cpu, processes) = match self.source {
            Source::CgroupV2 => (
                number("memory.current"),
                number("memory.peak"),
                field("cpu.stat", "usage_usec").map(|us| us as f64 / 1e6),
                number("pids.current"),
            ),
            Source::CgroupV1 => (
                number("memory/memory.usage_in_bytes"),
                number("memory/memory.max_usage_in_bytes"),
                number("cpuacct/cpuacct.usage").map(|ns| ns as f64 / 1e9),
                number("pids/pids.current"),
            ),
            Source::Proc => (None, None, None, None),
        };
        let summed = if memory.is_none() || cpu.is_none() { from_proc(&mut self.shared) } else { UsageReading::default() };
        let memory_bytes = memory.unwrap_or(summed.memory_bytes);
        self.latest = memory_bytes;
        self.sampled_peak = self.sampled_peak.max(memory_bytes);
        UsageReading {
            memory_bytes,
            peak_memory_bytes: peak.unwrap_or(self.sampled_peak).max(memory_bytes),
            cpu_seconds: cpu.unwrap_or(summed.cpu_seconds),
            processes: processes.unwrap_or(summed.processes),
        }
    }

    /// A cheap reading for every execution: without a cgroup, memory is that of the last [`Self::read`].
    pub fn sample(&self) -> UsageSample {
        let cpu = match self.source {
            Source::CgroupV2 => field("cpu.stat", "usage_usec").map(|us| us as f64 / 1e6),
            Source::CgroupV1 => number("cpuacct/cpuacct.usage").map(|ns| ns as f64 / 1e9),
            Source::Proc => None,
        };
        let own = std::process::id();
        let summed = || process_ids().filter(|pid| *pid != own).filter_map(cpu_seconds).sum();
        let peak = match self.source {
            Source::CgroupV2 => number("memory.peak"),
            Source::CgroupV1 => number("memory/memory.max_usage_in_bytes"),
            Source::Proc => None,
        };
        UsageSample {
            cpu_seconds: cpu.unwrap_or_else(summed),
            memory_bytes: self.memory_now(),
            peak_bytes: peak.unwrap_or(self.sampled_peak),
        }
    }

    /// Current memory if a cgroup counts it, else that of the last [`Self::read`], bytes.
    pub fn memory_now(&self) -> u64 {
        let now = match self.source {
            Source::CgroupV2 => number("memory.current"),
            Source::CgroupV1 => number("memory/memory.usage_in_bytes"),
            Source::Proc => None,
        };
        now.unwrap_or(self.latest)
    }

    /// Whether the CPU time includes exited processes.
    pub fn counts_exited_processes(&self) -> bool {
        self.source != Source::Proc
    }

    /// How often the OOM killer has killed a process of this sandbox. `failcnt` and Docker's flag are unreliable; this
    /// counter is not.
    pub fn oom_kills(&self) -> u64 {
        match self.source {
            Source::CgroupV2 => field("memory.events", "oom_kill"),
            Source::CgroupV1 => field("memory/memory.oom_control", "oom_kill"),
            Source::Proc => None,
        }
        .unwrap_or(0)
    }
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(format!("{ROOT}/{file}")).ok()?.trim().parse().ok()
}

fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("{ROOT}/{file}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Sums all processes except the agent.
fn from_proc(shared: &mut SharedMemory) -> UsageReading {
    let mut usage = UsageReading::default();
    let mut mapped = Vec::new();
    let own = std::process::id();
    for pid in process_ids().filter(|pid| *pid != own) {
        let (anonymous, bytes) = resident_bytes(pid).unwrap_or_default();
        mapped.push(ProcessMapping { pid, bytes });
        usage.processes += 1;
        usage.memory_bytes += anonymous + page_table_bytes(pid);
        usage.cpu_seconds += cpu_seconds(pid).unwrap_or(0.0);
    }
    usage.memory_bytes += shared.bytes(&mapped);
    usage
}

fn process_ids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Anonymous and shared memory, bytes. Pages that several processes share (after a fork) count proportionally. Pages of
/// mapped files (libraries) are reclaimable and do not count.
fn resident_bytes(pid: u32) -> Option<(u64, u64)> {
    let rollup = format!("/proc/{pid}/smaps_rollup");
    fields_kib(&rollup, ["Pss_Anon:", "Pss_Shmem:"])
        .or_else(|| fields_kib(&format!("/proc/{pid}/status"), ["RssAnon:", "RssShmem:"]))
}

/// The memory of a process's page tables, which a sparse mapping makes large.
fn page_table_bytes(pid: u32) -> u64 {
    fields_kib(&format!("/proc/{pid}/status"), ["VmPTE:", "VmPTE:"]).map_or(0, |(bytes, _)| bytes)
}

/// Two fields in kB, converted to bytes.
fn fields_kib(path: &str, names: [&str; 2]) -> Option<(u64, u64)> {
    let text = fs::read_to_string(path).ok()?;
    let kib = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    Some((kib(names[0])? * 1024, kib(names[1])? * 1024))
}

fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything, so fields are counted after it. utime and stime are the 12th and 13th.
    let after_name = stat.rsplit_once(')')?.1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_usage_is_summed() {
        let usage = from_proc(&mut SharedMemory::new());
        assert!(usage.processes > 0);
        assert!(resident_bytes(std::process::id()).unwrap().0 > 100_000);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }
}
