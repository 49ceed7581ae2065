//! Reads files of the workspace, and resolves paths for [`folders`](super::folders) and [`uploads`](super::uploads).
//!
//! The system resolves every path beneath the workspace (`openat2` with RESOLVE_BENEATH, no magic links), inside the
//! sandbox: a symlink that leads out is an error, even if it is swapped in meanwhile. The host never opens a path that a
//! sandbox can write.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::agent_protocol::{FILE_CHUNK, FileStat, RefusalCause, Refused, decode_name};

/// The longest path, bytes (`PATH_MAX` of Linux).
pub(super) const MAX_PATH: usize = 4096;

/// Serves file requests beneath the workspace.
pub(super) struct Files {
    workspace: OwnedFd,
}

/// The refusal for a failed system call.
pub(super) fn refusal_of(error: Errno) -> Refused {
    let with = |cause, reason: &str| Refused { reason: reason.to_owned(), cause };
    match error {
        Errno::NOENT => with(RefusalCause::NotFound, "no such file"),
        Errno::XDEV | Errno::LOOP => "the path leads out of the workspace".into(),
        Errno::ISDIR => "it is a folder".into(),
        Errno::NOTDIR => with(RefusalCause::NotFound, "a component of the path is not a folder"),
        Errno::EXIST => with(RefusalCause::Exists, "something exists at this path already"),
        Errno::NOTEMPTY => with(RefusalCause::Exists, "the folder is not empty"),
        Errno::NAMETOOLONG => "the name is too long".into(),
        Errno::NOSPC | Errno::FBIG | Errno::DQUOT => with(RefusalCause::NoSpace, "the workspace is full"),
        other => io::Error::from(other).to_string().into(),
    }
}

pub(super) fn refusal_of_io(error: &io::Error) -> Refused {
    error.raw_os_error().map_or_else(|| error.to_string().into(), |code| refusal_of(Errno::from_raw_os_error(code)))
}

/// Decodes a path. Accepts relative paths without `.`, `..`, empty components and NUL. The system checks the rest.
pub(super) fn check_relative_path(path: &str) -> Result<Vec<u8>, Refused> {
    let is_valid = |path: &Vec<u8>| {
        let mut parts = path.split(|byte| *byte == b'/');
        path.len() <= MAX_PATH && (path.is_empty() || parts.all(|part| !matches!(part, b"" | b"." | b"..")))
    };
    decode_name(path).filter(is_valid).ok_or_else(|| format!("{path:?} is not a path inside the workspace").into())
}

/// Splits a path into its folder and its name.
pub(super) fn split_name(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |slash| (&path[..slash], &path[slash + 1..]))
}

pub(super) fn stat_of(file: &File) -> io::Result<FileStat> {
    let metadata = file.metadata()?;
    let ns = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    Ok(FileStat {
        size: metadata.len(),
        inode: metadata.ino(),
        modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
    })
}

impl Files {
    pub fn new(workspace: &str) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self { workspace: rustix::fs::open(workspace, flags, Mode::empty())? })
    }

    pub(super) fn open(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { b"." } else { path };
        // EAGAIN: a rename raced with the path walk, and the system requests a retry.
        for _ in 0..100 {
            match rustix::fs::openat2(&self.workspace, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    pub(super) fn open_folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
    }

    /// Opens what is at a path without any symlink.
    pub(super) fn open_plain(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(&self.workspace, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// Reads a chunk of a regular file. Does not wait for the writer of a FIFO, and never reads a device.
    pub fn get(&self, path: &str, offset: u64, length: u64) -> Result<(FileStat, Bytes), Refused> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.open(&check_relative_path(path)?, flags, Mode::empty()).map_err(refusal_of)?);
        let metadata = file.metadata().map_err(|error| refusal_of_io(&error))?;
        if !metadata.is_file() {
            return Err(if metadata.is_dir() { "it is a folder" } else { "it is not a regular file" }.into());
        }
        let stat = stat_of(&file).map_err(|error| refusal_of_io(&error))?;
        let wanted = stat.size.saturating_sub(offset).min(length).min(FILE_CHUNK as u64) as usize;
        let mut data = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut data[filled..], offset + filled as u64).map_err(|error| refusal_of_io(&error))? {
                0 => break,
                n => filled += n,
            }
        }
        data.truncate(filled);
        Ok((stat, data.into()))
    }

    /// Creates a folder and its parents, where they do not exist.
    pub(super) fn create_folders(&self, path: &[u8]) -> Result<(), Refused> {
        let mut walked = Vec::new();
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let folder = self.open_folder(&walked).map_err(refusal_of)?;
            match rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(refusal_of(error)),
            }
            if !walked.is_empty() {
                walked.push(b'/');
            }
            walked.extend_from_slice(part);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use rustix::fs::FileType;

    use super::*;

    /// A folder with a workspace in it, and a file beside the workspace.
    pub struct TestWorkspace {
        pub root: PathBuf,
        pub work: PathBuf,
        pub files: Files,
    }

    impl TestWorkspace {
        pub fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("cellkeep-files-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            let work = root.join("work");
            fs::create_dir_all(&work).unwrap();
            fs::write(root.join("secret"), "secret").unwrap();
            let files = Files::new(work.to_str().unwrap()).unwrap();
            Self { root, work, files }
        }

        pub fn read(&self, path: &str) -> String {
            fs::read_to_string(self.work.join(path)).unwrap()
        }
    }

    impl Drop for TestWorkspace {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    #[test]
    fn files_are_read_in_chunks() {
        let place = TestWorkspace::new("pieces");
        fs::create_dir_all(place.work.join("a/b")).unwrap();
        fs::write(place.work.join("a/b/c.bin"), "hello world").unwrap();
        let (opened, bytes) = place.files.get("a/b/c.bin", 0, u64::MAX).unwrap();
        assert_eq!((opened.size, bytes), (11, Bytes::from_static(b"hello world")));
        assert_eq!(place.files.get("a/b/c.bin", 6, u64::MAX).unwrap(), (opened, Bytes::from_static(b"world")));
        assert_eq!(place.files.get("a/b/c.bin", 6, 2).unwrap(), (opened, Bytes::from_static(b"wo")));
        assert_eq!(place.files.get("a/b/c.bin", 99, 2).unwrap(), (opened, Bytes::new()));
    }

    #[test]
    fn paths_cannot_leave_the_workspace() {
        let place = TestWorkspace::new("outside");
        symlink("../secret", place.work.join("link")).unwrap();
        symlink(&place.root, place.work.join("folder")).unwrap();
        symlink("/proc/self/root", place.work.join("magic")).unwrap();
        for path in [
            "link",
            "folder/secret",
            "magic/etc/passwd",
            "../secret",
            "/etc/passwd",
            "a/../../secret",
            "./x",
            "a//b",
            "a\0b",
            "a\u{0}2e",
        ] {
            assert!(place.files.get(path, 0, 1).is_err(), "{path:?}");
        }
    }

    #[test]
    fn pipes_are_refused_without_blocking() {
        let place = TestWorkspace::new("pipe");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, place.work.join("fifo"), FileType::Fifo, mode, 0).unwrap();
        assert!(place.files.get("fifo", 0, 1).unwrap_err().reason.contains("regular"));
    }
}
