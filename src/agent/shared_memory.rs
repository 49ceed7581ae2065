//! Measures memory outside of the processes' resident sets: tmpfs files, System V segments, unmapped memfds.
//!
//! A memory cgroup counts all of it. Without one, the sum over the processes misses it: a gigabyte written to a `memfd` that
//! is never mapped is in no resident set. ProcessMapping parts must not count twice.
//!
//! Descriptors in transit through a socket are not found, nor those of a process that made itself undumpable. Without a
//! cgroup the memory limit is therefore a safeguard against accidents and not against attacks; the isolation report says so.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// The pause between measurements, in multiples of the duration of the last one: measuring takes at most 2 % of a CPU.
/// Measured on a busy machine: 0.02 ms with one idle kernel, 6 ms where a Python process with pandas maps 60 MB, since all
/// of its mappings are read then, and 8 ms with 4000 descriptors.
const REST_FACTOR: u32 = 50;
/// The most descriptors that one measurement examines, 2 µs each; the rest is not counted.
const MAX_DESCRIPTORS: usize = 65536;
/// Below this, possible double counting is ignored, bytes.
const NEGLIGIBLE: u64 = 4 << 20;

/// The shared memory that a process maps, bytes.
pub(super) struct ProcessMapping {
    pub pid: u32,
    pub bytes: u64,
}

/// The device of a file system, as `major` and `minor`.
type Device = (u32, u32);

pub(super) struct SharedMemory {
    /// The writable tmpfs mounts.
    file_systems: HashMap<Device, String>,
    bytes: u64,
    next_measurement: Instant,
}

impl SharedMemory {
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            file_systems: mounts.lines().filter_map(writable_tmpfs).collect(),
            bytes: 0,
            next_measurement: Instant::now(),
        }
    }

    /// Shared memory, mapped or not, bytes; as of the last measurement.
    pub fn bytes(&mut self, processes: &[ProcessMapping]) -> u64 {
        let now = Instant::now();
        if now >= self.next_measurement {
            self.bytes = self.measure(processes);
            self.next_measurement = now + (now.elapsed() * REST_FACTOR).min(Duration::from_secs(5));
        }
        self.bytes.max(processes.iter().map(|process| process.bytes).sum())
    }

    fn measure(&self, processes: &[ProcessMapping]) -> u64 {
        let memfds = open_memfds(processes);
        let held = memfds.values().sum::<u64>() + self.in_file_systems() + system_v();
        let mapped: u64 = processes.iter().map(|process| process.bytes).sum();
        let mut both = held.min(mapped);
        if both > NEGLIGIBLE {
            let inodes: HashSet<u64> = memfds.into_keys().collect();
            both = both.min(processes.iter().map(|process| self.counted_mappings(process, &inodes)).sum());
        }
        held + mapped - both
    }

    fn in_file_systems(&self) -> u64 {
        let used = |path: &String| {
            rustix::fs::statfs(path.as_str()).map_or(0, |stat| (stat.f_blocks - stat.f_bfree) * stat.f_bsize as u64)
        };
        self.file_systems.values().map(used).sum()
    }

    /// How much of a process's mappings is counted elsewhere already: in a tmpfs, an open memfd or a segment.
    fn counted_mappings(&self, process: &ProcessMapping, memfds: &HashSet<u64>) -> u64 {
        match fs::read_to_string(format!("/proc/{}/smaps", process.pid)) {
            Ok(smaps) => sum_pss(&smaps, |device, inode, path| {
                let memfd = path.starts_with("/memfd:") && memfds.contains(&inode);
                memfd || path.starts_with("/SYSV") || self.file_systems.contains_key(&device)
            }),
            // Underestimate rather than kill an innocent process.
            Err(_) => process.bytes,
        }
    }
}

/// The device and mount point of a line of `mountinfo`, if it is a writable tmpfs.
fn writable_tmpfs(line: &str) -> Option<(Device, String)> {
    let (mount, kind) = line.split_once(" - ")?;
    let fields: Vec<&str> = mount.split(' ').collect();
    let [_, _, device, _, path, options, ..] = fields.as_slice() else { return None };
    let (major, minor) = device.split_once(':')?;
    let writable = options.split(',').any(|option| option == "rw");
    (kind.starts_with("tmpfs ") && writable).then_some(((major.parse().ok()?, minor.parse().ok()?), (*path).to_owned()))
}

/// System V segments of this namespace, attached or not: the last two columns are resident and swapped bytes.
fn system_v() -> u64 {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let bytes =
        |line: &str| line.split_whitespace().skip(14).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    table.lines().skip(1).map(bytes).sum()
}

/// The memfds that processes have open, each once: inode and bytes.
fn open_memfds(processes: &[ProcessMapping]) -> HashMap<u64, u64> {
    let descriptors =
        |process: &ProcessMapping| fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
    processes
        .iter()
        .flat_map(descriptors)
        .take(MAX_DESCRIPTORS)
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:")))
        .filter_map(|path| fs::metadata(path).ok())
        .map(|file| (file.ino(), file.blocks() * 512))
        .collect()
}

/// Sums the `Pss` of the mappings in a `smaps` that `matches` selects, bytes.
fn sum_pss(smaps: &str, matches: impl Fn(Device, u64, &str) -> bool) -> u64 {
    let mut selected = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(share) = line.strip_prefix("Pss:") {
            kib += if selected { share.trim().trim_end_matches(" kB").parse().unwrap_or(0) } else { 0 };
        } else if let Some((device, inode, path)) = mapping(line) {
            selected = matches(device, inode, path);
        }
    }
    kib * 1024
}

/// Parses the first line of a mapping into device, inode and path: `start-end perms offset major:minor inode  path`.
fn mapping(line: &str) -> Option<(Device, u64, &str)> {
    let mut fields = line.splitn(6, ' ');
    let (device, inode) = (fields.nth(3)?, fields.next()?.parse().ok()?);
    let (major, minor) = device.split_once(':')?;
    let hex = |text| u32::from_str_radix(text, 16).ok();
    Some(((hex(major)?, hex(minor)?), inode, fields.next().unwrap_or_default().trim_start()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn unmapped_memfd_counts_once() {
        let before: u64 = open_memfds(&[ProcessMapping { pid: std::process::id(), bytes: 0 }]).values().sum();
        let memfd = rustix::fs::memfd_create("counted", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(memfd);
        file.write_all(&vec![1; 8 << 20]).unwrap();
        let _again = file.try_clone().unwrap();
        let after: u64 = open_memfds(&[ProcessMapping { pid: std::process::id(), bytes: 0 }]).values().sum();
        assert_eq!(after - before, 8 << 20);
    }

    #[test]
    fn pss_of_selected_mappings_is_summed() {
        let smaps = "7f00-7f10 rw-s 00000000 00:2a 7                          /tmp/with spaces in it
Size:               4 kB
Pss:               40 kB
7f10-7f20 rw-s 00000000 00:01 8                          /memfd:mine (deleted)
Pss:                2 kB
7f20-7f30 rw-s 00000000 00:01 9                          /dev/zero (deleted)
Pss:              100 kB
7f30-7f40 rw-p 00000000 00:00 0 
Pss:             1000 kB
";
        let all = |device, inode, path: &str| device == (0, 0x2a) || (inode == 8 && path.starts_with("/memfd:"));
        assert_eq!(sum_pss(smaps, all), 42 * 1024);
    }

    #[test]
    fn writable_tmpfs_mounts_are_found() {
        let line = "70 67 0:42 / /work rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=4k";
        assert_eq!(writable_tmpfs(line), Some(((0, 42), "/work".to_owned())));
        assert_eq!(writable_tmpfs(&line.replace("rw,nosuid", "ro,nosuid")), None);
        assert_eq!(writable_tmpfs(&line.replace("- tmpfs", "- ext4")), None);
    }
}
