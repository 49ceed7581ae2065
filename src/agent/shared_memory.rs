//! Memory that belongs to no process: files in memory, System V segments, descriptors that nobody has mapped.
//!
//! A memory cgroup counts all of it. Where there is none, adding up the processes misses it: a gigabyte in a `memfd` that is
//! written and never mapped is in nobody's resident set. What processes have mapped of it must not count twice, though.
//!
//! Not seen are descriptors on their way through a socket, and those of a process that has made itself undumpable: without
//! a cgroup the watch is a help for the honest, as the isolation report says, and no wall.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Measured, on a busy machine: a look takes 0.02 ms with one kernel that holds nothing, 6 ms where a Python process with
/// pandas has mapped 60 MB, since all of its mappings are read then, and 8 ms with 4000 descriptors. It is repeated when this
/// many times its duration has passed, so that it takes a fiftieth of a CPU at most.
const REST: u32 = 50;
/// How many descriptors one look asks about, 2 µs each; beyond, none are counted.
const MAX_DESCRIPTORS: usize = 65536;
/// Below this, whether memory counts twice is not worth finding out, bytes.
const NEGLIGIBLE: u64 = 4 << 20;

/// What is known of a process: its shared memory, mapped, bytes.
pub(super) struct Mapped {
    pub pid: u32,
    pub bytes: u64,
}

/// The device of a file system, as `major` and `minor`.
type Device = (u32, u32);

/// Counts shared memory.
pub(super) struct SharedMemory {
    /// The file systems in memory that can be written, with where they are mounted.
    file_systems: HashMap<Device, String>,
    bytes: u64,
    next_look: Instant,
}

impl SharedMemory {
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { file_systems: mounts.lines().filter_map(writable_tmpfs).collect(), bytes: 0, next_look: Instant::now() }
    }

    /// All of it, mapped or not, bytes; as of the last look.
    pub fn bytes(&mut self, processes: &[Mapped]) -> u64 {
        let now = Instant::now();
        if now >= self.next_look {
            self.bytes = self.look(processes);
            self.next_look = now + (now.elapsed() * REST).min(Duration::from_secs(5));
        }
        self.bytes.max(processes.iter().map(|process| process.bytes).sum())
    }

    fn look(&self, processes: &[Mapped]) -> u64 {
        let memfds = open_memfds(processes);
        let held = memfds.values().sum::<u64>() + self.in_file_systems() + system_v();
        let mapped: u64 = processes.iter().map(|process| process.bytes).sum();
        let mut both = held.min(mapped);
        if both > NEGLIGIBLE {
            let inodes: HashSet<u64> = memfds.into_keys().collect();
            both = both.min(processes.iter().map(|process| self.held_of_mapped(process, &inodes)).sum());
        }
        held + mapped - both
    }

    fn in_file_systems(&self) -> u64 {
        let used = |path: &String| {
            rustix::fs::statfs(path.as_str()).map_or(0, |stat| (stat.f_blocks - stat.f_bfree) * stat.f_bsize as u64)
        };
        self.file_systems.values().map(used).sum()
    }

    /// How much of what a process has mapped is counted as held: the rest is anonymous, or its descriptor is closed.
    fn held_of_mapped(&self, process: &Mapped, memfds: &HashSet<u64>) -> u64 {
        match fs::read_to_string(format!("/proc/{}/smaps", process.pid)) {
            Ok(smaps) => held_in(&smaps, |device, inode, path| {
                let memfd = path.starts_with("/memfd:") && memfds.contains(&inode);
                memfd || path.starts_with("/SYSV") || self.file_systems.contains_key(&device)
            }),
            // Rather too little in all than an innocent process ended.
            Err(_) => process.bytes,
        }
    }
}

/// The device and the mount point of a line of `mountinfo`, where it is a tmpfs that can be written.
fn writable_tmpfs(line: &str) -> Option<(Device, String)> {
    let (mount, kind) = line.split_once(" - ")?;
    let fields: Vec<&str> = mount.split(' ').collect();
    let [_, _, device, _, path, options, ..] = fields.as_slice() else { return None };
    let (major, minor) = device.split_once(':')?;
    let writable = options.split(',').any(|option| option == "rw");
    (kind.starts_with("tmpfs ") && writable).then_some(((major.parse().ok()?, minor.parse().ok()?), (*path).to_owned()))
}

/// The segments of our own namespace, attached or not: what is resident and what is swapped out are the last two columns.
fn system_v() -> u64 {
    let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let bytes =
        |line: &str| line.split_whitespace().skip(14).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    table.lines().skip(1).map(bytes).sum()
}

/// The memory files that processes have open, each once: inode and bytes.
fn open_memfds(processes: &[Mapped]) -> HashMap<u64, u64> {
    let descriptors = |process: &Mapped| fs::read_dir(format!("/proc/{}/fd", process.pid)).into_iter().flatten().flatten();
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

/// Adds up the shares (`Pss`) of those mappings in a `smaps` of which `held` says so.
fn held_in(smaps: &str, held: impl Fn(Device, u64, &str) -> bool) -> u64 {
    let mut of_interest = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(share) = line.strip_prefix("Pss:") {
            kib += if of_interest { share.trim().trim_end_matches(" kB").parse().unwrap_or(0) } else { 0 };
        } else if let Some((device, inode, path)) = mapping(line) {
            of_interest = held(device, inode, path);
        }
    }
    kib * 1024
}

/// The device, inode and path of a mapping's first line: `start-end perms offset major:minor inode  path`.
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
    fn an_unmapped_memory_file_counts_once_however_often_it_is_open() {
        let before: u64 = open_memfds(&[Mapped { pid: std::process::id(), bytes: 0 }]).values().sum();
        let memfd = rustix::fs::memfd_create("counted", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = fs::File::from(memfd);
        file.write_all(&vec![1; 8 << 20]).unwrap();
        let _again = file.try_clone().unwrap();
        let after: u64 = open_memfds(&[Mapped { pid: std::process::id(), bytes: 0 }]).values().sum();
        assert_eq!(after - before, 8 << 20);
    }

    #[test]
    fn shares_of_what_is_held_are_added_up() {
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
        assert_eq!(held_in(smaps, all), 42 * 1024);
    }

    #[test]
    fn writable_file_systems_in_memory_are_found() {
        let line = "70 67 0:42 / /work rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=4k";
        assert_eq!(writable_tmpfs(line), Some(((0, 42), "/work".to_owned())));
        assert_eq!(writable_tmpfs(&line.replace("rw,nosuid", "ro,nosuid")), None);
        assert_eq!(writable_tmpfs(&line.replace("- tmpfs", "- ext4")), None);
    }
}
