//! Measures memory outside of the processes' resident sets: tmpfs files, System V segments, unmapped memfds, sockets, pipes.
//!
//! A memory cgroup counts all of it. Without one, the sum over the processes misses it: a gigabyte written to a socket that
//! nobody reads is in no resident set. Mapped parts must not count twice.
//!
//! Descriptors in transit through a socket are not found, so kernels cannot create memfds then
//! ([`seccomp::UNKNOWN_WITHOUT_CGROUP`](crate::policy::seccomp::UNKNOWN_WITHOUT_CGROUP)). A process that hides its descriptors
//! is killed. Smaller structures of the system are not counted (watches of epoll, locks), and the check comes every 0.1 s: the
//! isolation report says that the limit is not enforced.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::socket_memory::socket_bytes;

/// The pause between measurements, in multiples of the duration of the last one: measuring takes at most 2 % of a CPU.
/// Measured on a busy machine: 0.02 ms with one idle kernel, 6 ms where a Python process with pandas maps 60 MB, since all
/// of its mappings are read then, and 8 ms with 4000 descriptors.
const REST_FACTOR: u32 = 50;
/// The most descriptors that one measurement examines, 2 µs each; the rest is not counted.
const MAX_DESCRIPTORS: usize = 65536;
/// The memory of an open pipe: what each holds when a user has many, and what is assumed of a descriptor that is not examined,
/// bytes.
const PIPE_BYTES: u64 = 8192;
/// The memory of a file in a tmpfs beside its content, bytes.
const INODE_BYTES: u64 = 1024;
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
        let Descriptors { memfds, pipes, unexamined } = open_descriptors(processes);
        let (contents, inodes) = self.in_file_systems();
        let held = memfds.values().sum::<u64>() + contents + system_v();
        let of_system = socket_bytes() + inodes + (pipes.len() as u64 + unexamined) * PIPE_BYTES;
        let mapped: u64 = processes.iter().map(|process| process.bytes).sum();
        let mut both = held.min(mapped);
        if both > NEGLIGIBLE {
            let inodes: HashSet<u64> = memfds.into_keys().collect();
            both = both.min(processes.iter().map(|process| self.counted_mappings(process, &inodes)).sum());
        }
        held + mapped - both + of_system
    }

    /// The contents of files, and the files themselves, bytes.
    fn in_file_systems(&self) -> (u64, u64) {
        let used = self.file_systems.values().filter_map(|path| rustix::fs::statfs(path.as_str()).ok()).map(|stat| {
            let files = stat.f_files.saturating_sub(stat.f_ffree);
            (stat.f_blocks.saturating_sub(stat.f_bfree) * stat.f_bsize as u64, files * INODE_BYTES)
        });
        used.fold((0, 0), |(contents, inodes), (more, files)| (contents + more, inodes + files))
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

/// What processes have open, each once.
#[derive(Default)]
struct Descriptors {
    /// Inode and bytes.
    memfds: HashMap<u64, u64>,
    /// By the name of their link.
    pipes: HashSet<PathBuf>,
    unexamined: u64,
}

fn open_descriptors(processes: &[ProcessMapping]) -> Descriptors {
    let mut found = Descriptors::default();
    let mut examined = 0;
    for process in processes {
        let folder = match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
            Ok(folder) => folder,
            Err(error) => {
                if error.kind() == ErrorKind::PermissionDenied {
                    end_hidden(process.pid);
                }
                continue;
            }
        };
        for entry in folder.flatten() {
            examined += 1;
            if examined > MAX_DESCRIPTORS {
                found.unexamined += 1;
                continue;
            }
            let path = entry.path();
            let Ok(target) = fs::read_link(&path) else { continue };
            let name = target.as_os_str().as_encoded_bytes();
            if name.starts_with(b"pipe:") {
                found.pipes.insert(target);
            } else if name.starts_with(b"/memfd:")
                && let Ok(file) = fs::metadata(&path)
            {
                found.memfds.insert(file.ino(), file.blocks() * 512);
            }
        }
    }
    found
}

/// Kills a process that made itself unreadable, so that its memory cannot be measured. An exited one, which waits to be reaped,
/// is unreadable too, and has no memory.
fn end_hidden(pid: u32) {
    let is_init = rustix::process::getpid().is_init();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let (true, Some(pid)) = (is_init && status.contains("VmRSS:"), pid) {
        // Fails if it has exited meanwhile.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
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
        let own = || open_descriptors(&[ProcessMapping { pid: std::process::id(), bytes: 0 }]);
        let before: u64 = own().memfds.values().sum();
        let memfd = rustix::fs::memfd_create("counted", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(memfd);
        file.write_all(&vec![1; 8 << 20]).unwrap();
        let _again = file.try_clone().unwrap();
        let after: u64 = own().memfds.values().sum();
        assert_eq!(after - before, 8 << 20);
        let (pipes, _pipe) = (own().pipes.len(), std::io::pipe().unwrap());
        assert_eq!(own().pipes.len(), pipes + 1);
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
