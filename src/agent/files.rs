//! Reads, lists and removes files of the workspace.
//!
//! The system resolves every path beneath the workspace (`openat2` with RESOLVE_BENEATH, no magic links), inside the
//! sandbox: a symlink that leads out is an error, even if it is swapped in meanwhile. The host never opens a path that a
//! sandbox can write.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::agent_protocol::{AnswerBody, FILE_CHUNK, FileEntry, RefusalCause, Refused};

/// The most entries of a listing.
const MAX_ENTRIES: usize = 10_000;
/// The largest listing as JSON, bytes. An answer may be four times as large, so escaped names cannot exceed its cap.
const MAX_LISTING: usize = FILE_CHUNK;

/// Size and identity of a file when a chunk of it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileStat {
    pub size: u64,
    pub inode: u64,
}

/// Serves file requests beneath the workspace.
pub(super) struct Files {
    workspace: OwnedFd,
}

/// The refusal for a failed system call.
pub(super) fn refusal_of(error: Errno) -> Refused {
    let missing = |reason: &str| Refused { reason: reason.to_owned(), cause: RefusalCause::NotFound };
    match error {
        Errno::NOENT => missing("no such file"),
        Errno::XDEV | Errno::LOOP => "the path leads out of the workspace".into(),
        Errno::ISDIR => "it is a folder".into(),
        Errno::NOTDIR => missing("a component of the path is not a folder"),
        Errno::NAMETOOLONG => "the name is too long".into(),
        Errno::NOSPC | Errno::FBIG | Errno::DQUOT => {
            Refused { reason: "the workspace is full".to_owned(), cause: RefusalCause::NoSpace }
        }
        other => io::Error::from(other).to_string().into(),
    }
}

pub(super) fn refusal_of_io(error: &io::Error) -> Refused {
    error.raw_os_error().map_or_else(|| error.to_string().into(), |code| refusal_of(Errno::from_raw_os_error(code)))
}

/// Accepts relative paths without `.`, `..`, empty components and NUL. The system checks the rest.
pub(super) fn check_relative_path(path: &str) -> Result<&str, Refused> {
    let is_invalid = path.starts_with('/')
        || path.contains('\0')
        || path.len() > 4096
        || (!path.is_empty() && path.split('/').any(|part| matches!(part, "" | "." | "..")));
    if is_invalid { Err(format!("{path:?} is not a path inside the workspace").into()) } else { Ok(path) }
}

impl Files {
    pub fn new(workspace: &str) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self { workspace: rustix::fs::open(workspace, flags, Mode::empty())? })
    }

    pub(super) fn open(&self, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let path = if path.is_empty() { "." } else { path };
        // EAGAIN: a rename raced with the path walk, and the system requests a retry.
        for _ in 0..100 {
            match rustix::fs::openat2(&self.workspace, path, flags | OFlags::CLOEXEC, mode, resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Reads a chunk of a regular file. Does not wait for the writer of a FIFO, and never reads a device.
    pub fn get(&self, path: &str, offset: u64) -> Result<(FileStat, Bytes), Refused> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.open(check_relative_path(path)?, flags, Mode::empty()).map_err(refusal_of)?);
        let metadata = file.metadata().map_err(|error| refusal_of_io(&error))?;
        if !metadata.is_file() {
            return Err(if metadata.is_dir() { "it is a folder" } else { "it is not a regular file" }.into());
        }
        let wanted = metadata.len().saturating_sub(offset).min(FILE_CHUNK as u64) as usize;
        let mut data = vec![0; wanted];
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut data[filled..], offset + filled as u64).map_err(|error| refusal_of_io(&error))? {
                0 => break,
                n => filled += n,
            }
        }
        data.truncate(filled);
        Ok((FileStat { size: metadata.len(), inode: metadata.ino() }, data.into()))
    }

    /// Creates the parent folders of a path.
    pub(super) fn create_parents(&self, path: &str) -> Result<(), Refused> {
        let Some(parent) = Path::new(path).parent() else { return Ok(()) };
        let mut walked = String::new();
        for part in parent.iter().filter_map(|part| part.to_str()) {
            let folder = self.open(&walked, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map_err(refusal_of)?;
            match rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(refusal_of(error)),
            }
            walked = if walked.is_empty() { part.to_owned() } else { format!("{walked}/{part}") };
        }
        Ok(())
    }

    /// The entries of a folder, and whether the listing is truncated.
    pub fn list(&self, path: &str) -> Result<(Vec<FileEntry>, bool), Refused> {
        let folder =
            self.open(check_relative_path(path)?, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map_err(refusal_of)?;
        let (mut entries, mut size) = (Vec::new(), 0);
        for entry in Dir::read_from(&folder).map_err(refusal_of)? {
            let entry = entry.map_err(refusal_of)?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => "file",
                FileType::Directory => "folder",
                FileType::Symlink => "link",
                _ => "other",
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            let entry = FileEntry { name, kind: kind.to_owned(), size: stat.st_size as u64 };
            size += entry.json_size();
            if entries.len() == MAX_ENTRIES || size > MAX_LISTING {
                return Ok((entries, true));
            }
            entries.push(entry);
        }
        Ok((entries, false))
    }

    /// Removes a file, a symlink (not its target) or an empty folder.
    pub fn remove(&self, path: &str) -> Result<(), Refused> {
        let path = check_relative_path(path)?;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return Err("the workspace itself cannot be removed".into());
        }
        let folder = self.open(parent, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map_err(refusal_of)?;
        match rustix::fs::unlinkat(folder.as_fd(), name, AtFlags::empty()) {
            Err(Errno::ISDIR) => rustix::fs::unlinkat(folder.as_fd(), name, AtFlags::REMOVEDIR).map_err(refusal_of),
            other => other.map_err(refusal_of),
        }
    }
}

/// The answer to a request that returns no data.
pub(super) fn to_answer(result: Result<(), Refused>) -> AnswerBody {
    match result {
        Ok(()) => AnswerBody::Done { repeated: false },
        Err(refused) => AnswerBody::Refused(refused),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::agent_protocol::{Answer, FromAgent};

    fn workspace(name: &str) -> (std::path::PathBuf, Files) {
        let root = std::env::temp_dir().join(format!("cellkeep-files-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("work")).unwrap();
        fs::write(root.join("secret"), "secret").unwrap();
        let files = Files::new(root.join("work").to_str().unwrap()).unwrap();
        (root, files)
    }

    #[test]
    fn files_are_read_in_chunks() {
        let (root, files) = workspace("pieces");
        fs::create_dir_all(root.join("work/a/b")).unwrap();
        fs::write(root.join("work/a/b/c.bin"), "hello world").unwrap();
        let (opened, bytes) = files.get("a/b/c.bin", 0).unwrap();
        assert_eq!((opened.size, bytes), (11, Bytes::from_static(b"hello world")));
        assert_eq!(files.get("a/b/c.bin", 6).unwrap(), (opened, Bytes::from_static(b"world")));
        assert_eq!(files.list("a").unwrap().0[0].kind, "folder");
        assert!(files.remove("a").is_err());
        files.remove("a/b/c.bin").unwrap();
        files.remove("a/b").unwrap();
        assert!(files.list("a").unwrap() == (Vec::new(), false));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn paths_cannot_leave_the_workspace() {
        let (root, files) = workspace("outside");
        symlink("../secret", root.join("work/link")).unwrap();
        symlink(&root, root.join("work/folder")).unwrap();
        symlink("/proc/self/root", root.join("work/magic")).unwrap();
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
        ] {
            assert!(files.get(path, 0).is_err(), "{path:?}");
        }
        assert_eq!(fs::read_to_string(root.join("secret")).unwrap(), "secret");
        files.remove("link").unwrap();
        assert!(root.join("secret").exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn large_listing_is_truncated() {
        let (root, files) = workspace("listing");
        // Control characters take six bytes each in JSON, bytes that are not UTF-8 three.
        let name = |i: usize, filler: &str| root.join("work").join(format!("{i:05}{}", filler.repeat(250)));
        (0..3000).for_each(|i| fs::write(name(i, "\u{1}"), "").unwrap());
        let (entries, truncated) = files.list("").unwrap();
        assert!(truncated && entries.len() > 500);
        let answer = Answer { id: 1, body: AnswerBody::Listing { entries, truncated }, data: Bytes::new() };
        let size: usize = FromAgent::Answer(answer).encode().iter().map(Bytes::len).sum();
        assert!(size < FromAgent::cap(0x84).unwrap(), "{size}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn pipes_are_refused_without_blocking() {
        let (root, files) = workspace("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, root.join("work/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(files.get("fifo", 0).unwrap_err().reason.contains("regular"));
        fs::remove_dir_all(root).unwrap();
    }
}
