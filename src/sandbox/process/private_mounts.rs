//! File systems of one sandbox's own, mounted in a new mount namespace before bubblewrap starts, which binds them.
//!
//! bubblewrap binds the machine's folders and devices as they are. Their inodes are shared with the machine and with other
//! sandboxes: a lock on a file excludes others, and whether it is locked tells something of them. An overlay has inodes of its
//! own over the same pages. bubblewrap's own mounts have no limits of files and terminals; these have.
//!
//! ```text
//! fork ─▶ mount namespace ─▶ tmpfs at `folder` ─▶ overlays, tmpfs, devices, terminals in it ─▶ own uid ─▶ exec bwrap
//! ```

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Gid, Uid};
use rustix::thread::UnshareFlags;

use crate::policy::Limits;
use crate::sandbox::environment::{
    BYTES_PER_INODE, CONNECTION_DIR, CONNECTION_DIR_BYTES, RUNTIME_DIR, RUNTIME_DIR_BYTES, SHM_BYTES, WORKSPACE,
};

/// Pseudo-terminals of one sandbox; the machine has a few thousand.
const MAX_TERMINALS: u32 = 64;
/// The device files of a sandbox: name, major and minor.
const DEVICES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// The symbolic links in `/dev`: name and target.
const LINKS: &[(&str, &str)] = &[
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
];
/// The longest options of an overlay, bytes.
const MAX_OPTIONS: usize = 80;

/// The mounts of one start. Everything that allocates is prepared before the fork; [`Self::enter`] only makes system calls.
pub(super) struct PrivateMounts {
    folder: PathBuf,
    target: CString,
    user: User,
    steps: Vec<Step>,
    /// The trees that become overlays, in the order of their numbers.
    trees: Vec<PathBuf>,
}

/// Who makes the mounts.
enum User {
    /// Root, who continues as this uid.
    Root(u32),
    /// An ordinary user, in a user namespace with these maps.
    Ordinary { uid_map: String, gid_map: String },
}

enum Step {
    Folder(CString),
    Mount { kind: &'static CStr, target: CString, flags: MountFlags, options: CString },
    Overlay { tree: CString, target: CString },
    Bind { folder: CString, target: CString },
    Device { path: CString, major: u32, minor: u32 },
    Link { path: CString, target: CString },
}

impl PrivateMounts {
    /// Prepares mounts beneath `folder`, which is created, with an overlay of each of the `trees`. As root, the sandbox runs
    /// as `uid`.
    ///
    /// # Errors
    /// If the folder cannot be created, or a tree contains other mounts, which an overlay would not show.
    pub fn prepare(folder: &Path, trees: Vec<PathBuf>, limits: &Limits, uid: Option<u32>) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        if let Some(tree) = trees.iter().find(|tree| contains_mounts(&table, tree)) {
            return Err(io::Error::other(format!("{} contains other mounts", tree.display())));
        }
        let (own, user) = match uid {
            Some(uid) => (format!(",uid={uid},gid={uid}"), User::Root(uid)),
            None => {
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                (String::new(), User::Ordinary { uid_map: format!("{uid} {uid} 1"), gid_map: format!("{gid} {gid} 1") })
            }
        };
        let mut mounts = Self { folder: folder.to_owned(), target: c_path(folder)?, user, steps: Vec::new(), trees };
        mounts.folder("empty")?;
        for number in 0..mounts.trees.len() {
            let (tree, target) = (c_path(&mounts.trees[number])?, mounts.folder(&number.to_string())?);
            mounts.steps.push(Step::Overlay { tree, target });
        }
        for (path, mode, bytes) in [
            (WORKSPACE, "0700", limits.disk_bytes()),
            ("/tmp", "1777", limits.tmp_bytes()),
            (RUNTIME_DIR, "0700", RUNTIME_DIR_BYTES),
            (CONNECTION_DIR, "0700", CONNECTION_DIR_BYTES),
        ] {
            mounts.tmpfs(&name_of(path), mode, bytes, &own)?;
        }
        mounts.devices(&own)?;
        Ok(mounts)
    }

    /// Adds shared folders, without what is mounted beneath them. They are bound as our own user: a sandbox's uid need not be able to
    /// enter the folders above them. bubblewrap binds them again, read-only and without devices.
    pub fn with_shared<'a>(mut self, folders: impl Iterator<Item = &'a Path>) -> io::Result<Self> {
        for (number, folder) in folders.enumerate() {
            let (folder, target) = (c_path(folder)?, self.folder(&shared_name(number))?);
            self.steps.push(Step::Bind { folder, target });
        }
        Ok(self)
    }

    /// Where a shared folder is among the mounts.
    pub fn shared_source(&self, number: usize) -> PathBuf {
        self.folder.join(shared_name(number))
    }

    /// The devices, shared memory and terminals. Only root can create device files, and mount `/proc` outside of a new PID
    /// namespace.
    fn devices(&mut self, own: &str) -> io::Result<()> {
        let terminals = |target| Step::Mount {
            kind: c"devpts",
            target,
            flags: MountFlags::NOSUID | MountFlags::NOEXEC,
            options: c_text(&format!("newinstance,mode=620,ptmxmode=666,max={MAX_TERMINALS}")),
        };
        if !self.is_root() {
            let target = self.folder("pts")?;
            self.steps.push(terminals(target));
            return self.tmpfs("shm", "1777", SHM_BYTES, own);
        }
        let target = self.folder("dev")?;
        let options = c"mode=755,size=4k,nr_inodes=64".to_owned();
        self.steps.push(Step::Mount { kind: c"tmpfs", target, flags: MountFlags::NOSUID | MountFlags::NOEXEC, options });
        for (name, major, minor) in DEVICES {
            let path = c_path(&self.folder.join("dev").join(name))?;
            self.steps.push(Step::Device { path, major: *major, minor: *minor });
        }
        for (name, target) in LINKS {
            let path = c_path(&self.folder.join("dev").join(name))?;
            self.steps.push(Step::Link { path, target: c_text(target) });
        }
        let target = self.folder("dev/pts")?;
        self.steps.push(terminals(target));
        self.tmpfs("dev/shm", "1777", SHM_BYTES, own)?;
        let (target, flags) = (self.folder("proc")?, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC);
        self.steps.push(Step::Mount { kind: c"proc", target, flags, options: CString::default() });
        Ok(())
    }

    fn tmpfs(&mut self, name: &str, mode: &str, bytes: u64, own: &str) -> io::Result<()> {
        let target = self.folder(name)?;
        let options = c_text(&format!("mode={mode},size={bytes},nr_inodes={}{own}", (bytes / BYTES_PER_INODE).max(1024)));
        self.steps.push(Step::Mount { kind: c"tmpfs", target, flags: MountFlags::NOSUID | MountFlags::NODEV, options });
        Ok(())
    }

    fn folder(&mut self, name: &str) -> io::Result<CString> {
        let path = c_path(&self.folder.join(name))?;
        self.steps.push(Step::Folder(path.clone()));
        Ok(path)
    }

    /// Whether `/dev` and a `/proc` are among the mounts.
    pub fn is_root(&self) -> bool {
        matches!(self.user, User::Root(_))
    }

    /// Where a path of the host in one of the trees, or a writable folder of a sandbox, is among the mounts.
    pub fn source(&self, path: &Path) -> PathBuf {
        let tree = self.trees.iter().enumerate().find_map(|(number, tree)| Some((number, path.strip_prefix(tree).ok()?)));
        match tree {
            Some((number, rest)) if rest.as_os_str().is_empty() => self.folder.join(number.to_string()),
            Some((number, rest)) => self.folder.join(number.to_string()).join(rest),
            None => self.folder.join(name_of(&path.to_string_lossy())),
        }
    }

    /// Makes the mounts, in a process that executes bubblewrap next.
    ///
    /// # Errors
    /// If the system refuses one, as it does where ordinary users may not mount overlays.
    pub fn enter(&self) -> io::Result<()> {
        self.unshare()?;
        let umask = rustix::process::umask(Mode::empty());
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount(c"tmpfs", &*self.target, c"tmpfs", flags, c"mode=755,size=64k,nr_inodes=256")?;
        // The options of overlays name the empty folder by this.
        rustix::process::chdir(&*self.target)?;
        self.steps.iter().try_for_each(|step| self.apply(step))?;
        rustix::process::chdir(c"/")?;
        rustix::process::umask(umask);
        match self.user {
            User::Root(uid) => become_user(uid),
            User::Ordinary { .. } => Ok(()),
        }
    }

    /// Makes the mounts in a process that exits then.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub fn try_out(self) -> io::Result<()> {
        let mut command = Command::new("/bin/true");
        // SAFETY: the closure only makes system calls on prepared data.
        #[expect(unsafe_code, reason = "the mounts are made between fork and exec")]
        unsafe {
            command.pre_exec(move || self.enter());
        }
        command.env_clear().status().map(drop)
    }

    fn unshare(&self) -> io::Result<()> {
        let (flags, maps) = match &self.user {
            User::Root(_) => (UnshareFlags::NEWNS, None),
            User::Ordinary { uid_map, gid_map } => (UnshareFlags::NEWNS | UnshareFlags::NEWUSER, Some((uid_map, gid_map))),
        };
        // SAFETY: this process has one thread, and neither flag affects memory or descriptors.
        #[expect(unsafe_code, reason = "some flags, which are not used here, would unshare descriptors")]
        unsafe { rustix::thread::unshare_unsafe(flags) }?;
        if let Some((uid_map, gid_map)) = maps {
            for (file, text) in
                [(c"/proc/self/setgroups", "deny"), (c"/proc/self/uid_map", uid_map), (c"/proc/self/gid_map", gid_map)]
            {
                let file = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
                fs::File::from(file).write_all(text.as_bytes())?;
            }
        }
        // What the machine mounts later, beneath a shared folder for example, is not for the sandbox.
        let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        Ok(rustix::mount::mount_change(c"/", propagation)?)
    }

    fn apply(&self, step: &Step) -> io::Result<()> {
        match step {
            Step::Folder(path) => rustix::fs::mkdir(&**path, Mode::from_raw_mode(0o755))?,
            Step::Mount { kind, target, flags, options } => {
                rustix::mount::mount(*kind, &**target, *kind, *flags, &**options)?;
            }
            Step::Overlay { tree, target } => self.overlay(tree, target)?,
            Step::Bind { folder, target } => bind(folder, target)?,
            Step::Device { path, major, minor } => {
                let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
                rustix::fs::mknodat(CWD, &**path, kind, mode, makedev(*major, *minor))?;
            }
            Step::Link { path, target } => rustix::fs::symlink(&**target, &**path)?,
        }
        Ok(())
    }

    /// Mounts an overlay of a folder and an empty one, since there must be two. Both are named so that the list of mounts,
    /// which code in the sandbox can read, has no paths of the machine.
    fn overlay(&self, tree: &CStr, target: &CStr) -> io::Result<()> {
        let tree = rustix::fs::open(tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let number = rustix::path::DecInt::from_fd(&tree);
        let rest: &[u8] = if self.is_root() { b":empty\0" } else { b":empty,userxattr\0" };
        let mut options = [0; MAX_OPTIONS];
        let mut end = 0;
        for part in [b"lowerdir=/proc/self/fd/", number.as_bytes(), rest] {
            options[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        let options = CStr::from_bytes_until_nul(&options).map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        Ok(rustix::mount::mount(c"overlay", target, c"overlay", flags, options)?)
    }
}

/// Binds a folder. Its path has no links, so one that is found now was put there to lead elsewhere.
fn bind(folder: &CStr, target: &CStr) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(CWD, folder, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let number = rustix::path::DecInt::from_fd(&folder);
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut path = [0; MAX_OPTIONS];
    path[..PREFIX.len()].copy_from_slice(PREFIX);
    path[PREFIX.len()..PREFIX.len() + number.as_bytes().len()].copy_from_slice(number.as_bytes());
    let path = CStr::from_bytes_until_nul(&path).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::mount::mount_bind(path, target)?)
}

/// Gives up root for good.
fn become_user(uid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

fn shared_name(number: usize) -> String {
    format!("shared-{number}")
}

/// The name of a writable folder's mount.
fn name_of(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

/// Whether the table of mounts has one beneath a folder.
fn contains_mounts(table: &str, folder: &Path) -> bool {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(Path::new).any(|point| point != folder && point.starts_with(folder))
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// A text of ours, which has no zero byte.
fn c_text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_beneath_a_tree_are_found() {
        let table =
            "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /usr/share/doc rw - ext4 /dev/b rw\n3 1 8:3 / /opt rw - ext4 d rw\n";
        assert!(contains_mounts(table, Path::new("/usr")));
        assert!(!contains_mounts(table, Path::new("/opt")) && !contains_mounts(table, Path::new("/us")));
    }

    #[test]
    fn paths_map_to_mounts() {
        let folder = std::env::temp_dir().join(format!("cellkeep-{}", crate::ids::random_uuid()));
        let trees = vec![PathBuf::from("/usr"), PathBuf::from("/opt/data/python")];
        let mounts = PrivateMounts {
            folder: folder.clone(),
            target: CString::default(),
            user: User::Root(7),
            steps: Vec::new(),
            trees,
        };
        for (path, source) in [
            ("/usr", "0"),
            ("/usr/lib/locale", "0/lib/locale"),
            ("/opt/data/python/fonts", "1/fonts"),
            ("/run/kernel", "run-kernel"),
        ] {
            assert_eq!(mounts.source(Path::new(path)), folder.join(source), "{path}");
        }
    }
}
