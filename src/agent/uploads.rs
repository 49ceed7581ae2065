//! Files on their way into the workspace: there as a whole with their last piece, and not at all before it.
//!
//! Until then an upload is a file without a name, where the file system has such, so no code finds it half-written, no listing shows it,
//! and whatever ends it early, the manager's death included, takes its bytes away. It gets a name of nobody's for as long as a rename
//! takes: a file that is replaced is never away.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::files::{Files, check, refuse, refuse_io};
use crate::agent_protocol::{Cause, Refused};

/// Uploads that are open at once.
const MOST: usize = 200;
/// Symlinks that are followed to a file, as Linux has it.
const MOST_LINKS: usize = 40;

/// The uploads of one connection, by the manager's numbers for them.
#[derive(Default)]
pub(super) struct Uploads(HashMap<u64, Upload>);

impl Uploads {
    /// Takes a piece. The first one, at offset 0, begins an upload; with the last one the file is there. Whatever goes wrong ends it.
    pub fn put(&mut self, files: &Files, piece: &Piece, data: &[u8]) -> Result<(), Refused> {
        let mut upload = match (piece.offset, self.0.remove(&piece.upload)) {
            (0, _) if self.0.len() >= MOST => return Err(refusal("too many files are being written at once", Cause::Busy)),
            (0, _) => Upload::begin(files, piece.path)?,
            (offset, Some(upload)) if upload.length == offset => upload,
            _ => return Err(refusal("the file was cut off: send it again", Cause::Cut)),
        };
        upload.file.write_all_at(data, upload.length).map_err(|error| refuse_io(&error))?;
        upload.length += data.len() as u64;
        if piece.last {
            return upload.finish();
        }
        self.0.insert(piece.upload, upload);
        Ok(())
    }

    /// Nobody sends the rest.
    pub fn drop_one(&mut self, upload: u64) {
        self.0.remove(&upload);
    }

    /// Nobody sends the rest of any.
    pub fn drop_all(&mut self) {
        self.0.clear();
    }
}

fn refusal(reason: &str, cause: Cause) -> Refused {
    Refused { reason: reason.to_owned(), cause }
}

/// Where a piece belongs.
pub(super) struct Piece<'a> {
    pub upload: u64,
    pub path: &'a str,
    pub offset: u64,
    pub last: bool,
}

struct Upload {
    file: File,
    /// Its name for the time being, where it needs one.
    nobodys: Option<String>,
    length: u64,
    folder: OwnedFd,
    name: String,
}

/// A new file, and its name if it has one.
type New = (OwnedFd, Option<String>);

fn without_name(folder: &OwnedFd) -> Result<New, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(0o644))?, None))
}

/// For file systems that have none without (gVisor's). One that is left behind by an agent that is killed goes with its sandbox.
fn with_name(folder: &OwnedFd) -> Result<New, Errno> {
    let name = name_of_nobody()?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(folder, &name, flags, Mode::from_raw_mode(0o644))?, Some(name)))
}

impl Upload {
    fn begin(files: &Files, path: &str) -> Result<Self, Refused> {
        Self::begin_in(files, path, |folder| match without_name(folder) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => with_name(folder),
            file => file,
        })
    }

    fn begin_in(files: &Files, path: &str, new: impl FnOnce(&OwnedFd) -> Result<New, Errno>) -> Result<Self, Refused> {
        let path = check(path)?;
        if path.is_empty() {
            return Err("a file needs a name".into());
        }
        files.make_parents(path)?;
        let (folder, name, old) = find(files, path.to_owned())?;
        let (file, nobodys) = new(&folder).map_err(refuse)?;
        let upload = Self { file: File::from(file), nobodys, length: 0, folder, name };
        if let Some(mode) = old {
            rustix::fs::fchmod(&upload.file, mode).map_err(refuse)?;
        }
        Ok(upload)
    }

    /// Gives it its name, in the place of what has it.
    fn finish(mut self) -> Result<(), Refused> {
        if self.nobodys.is_none() {
            let (name, ours) = (name_of_nobody().map_err(refuse)?, format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            rustix::fs::linkat(CWD, ours, &self.folder, &name, AtFlags::SYMLINK_FOLLOW).map_err(refuse)?;
            self.nobodys = Some(name);
        }
        let nobodys = self.nobodys.as_deref().unwrap_or_default();
        rustix::fs::renameat(&self.folder, nobodys, &self.folder, &self.name).map_err(refuse)?;
        self.nobodys = None;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(name) = &self.nobodys {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// The folder and the name that a path leads to, through symlinks that stay inside, and the mode of the file that is there.
fn find(files: &Files, mut path: String) -> Result<(OwnedFd, String, Option<Mode>), Refused> {
    for _ in 0..MOST_LINKS {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let folder = files.open(parent, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map_err(refuse)?;
        // A symlink to `..` or to `folder/`.
        if matches!(name, "" | "." | "..") {
            return Err(refuse(Errno::ISDIR));
        }
        // Opened as for writing in place, which refuses what never could be: folders, pipes nobody reads, files made read-only.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
            Ok(old) => {
                let stat = rustix::fs::fstat(&old).map_err(refuse)?;
                if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
                    return Err("it is not a regular file".into());
                }
                return Ok((folder, name.to_owned(), Some(Mode::from_raw_mode(stat.st_mode & 0o777))));
            }
            Err(Errno::NOENT) => return Ok((folder, name.to_owned(), None)),
            Err(Errno::LOOP) => {
                let target = rustix::fs::readlinkat(&folder, name, Vec::new()).map_err(refuse)?;
                let target = target.to_str().ok().filter(|target| !target.starts_with('/')).ok_or(Errno::XDEV);
                let target = target.map_err(refuse)?;
                path = if parent.is_empty() { target.to_owned() } else { format!("{parent}/{target}") };
            }
            Err(error) => return Err(refuse(error)),
        }
    }
    Err(refuse(Errno::LOOP))
}

fn name_of_nobody() -> Result<String, Errno> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".cellkeep-{:032x}", u128::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    use rustix::fs::FileType;

    use super::*;

    struct Place {
        root: PathBuf,
        work: PathBuf,
        files: Files,
        uploads: Uploads,
    }

    impl Place {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("cellkeep-uploads-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            let work = root.join("work");
            fs::create_dir_all(&work).unwrap();
            fs::write(root.join("secret"), "secret").unwrap();
            let files = Files::new(work.to_str().unwrap()).unwrap();
            Self { root, work, files, uploads: Uploads::default() }
        }

        fn put(&mut self, upload: u64, path: &str, offset: u64, data: &str, last: bool) -> Result<(), Refused> {
            self.uploads.put(&self.files, &Piece { upload, path, offset, last }, data.as_bytes())
        }

        fn whole(&mut self, path: &str, data: &str) -> Result<(), Refused> {
            self.put(1, path, 0, data, true)
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.work.join(path)).unwrap()
        }

        fn mode(&self, path: &str) -> u32 {
            fs::metadata(self.work.join(path)).unwrap().permissions().mode() & 0o7777
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_there_with_its_last_piece() {
        let mut place = Place::new("pieces");
        place.whole("a/b/c.bin", "old").unwrap();
        fs::set_permissions(place.work.join("a/b/c.bin"), fs::Permissions::from_mode(0o750)).unwrap();
        place.put(7, "a/b/c.bin", 0, "hello ", false).unwrap();
        place.put(8, "a/b/other", 0, "x", false).unwrap();
        assert_eq!((place.read("a/b/c.bin").as_str(), names(&place.work.join("a/b"))), ("old", vec!["c.bin".to_owned()]));
        place.put(7, "a/b/c.bin", 6, "world", true).unwrap();
        assert_eq!((place.read("a/b/c.bin").as_str(), place.mode("a/b/c.bin")), ("hello world", 0o750));
        place.put(8, "a/b/other", 1, "", true).unwrap();
        place.whole("empty", "").unwrap();
        assert_eq!((place.read("a/b/other").as_str(), place.read("empty").as_str(), place.mode("empty")), ("x", "", 0o644));
    }

    #[test]
    fn so_it_is_where_a_file_needs_a_name_at_once() {
        let mut place = Place::new("named");
        place.whole("kept", "old").unwrap();
        let begin = |place: &Place| Upload::begin_in(&place.files, "kept", with_name).unwrap();
        let upload = begin(&place);
        upload.file.write_all_at(b"half", 0).unwrap();
        assert_eq!((names(&place.work).len(), place.read("kept").as_str()), (2, "old"));
        drop(upload);
        assert_eq!((names(&place.work), place.read("kept").as_str()), (vec!["kept".to_owned()], "old"));
        let upload = begin(&place);
        upload.file.write_all_at(b"whole", 0).unwrap();
        upload.finish().unwrap();
        assert_eq!((names(&place.work), place.read("kept").as_str()), (vec!["kept".to_owned()], "whole"));
    }

    #[test]
    fn what_is_cut_off_leaves_what_was_there() {
        let mut place = Place::new("cut");
        place.whole("kept", "old").unwrap();
        place.put(1, "kept", 0, "half", false).unwrap();
        assert!(place.put(1, "kept", 9, "a hole", true).is_err());
        assert!(place.put(1, "kept", 4, "after an error", true).is_err(), "it is over");
        place.put(2, "kept", 0, "half", false).unwrap();
        place.uploads.drop_one(2);
        assert!(place.put(2, "kept", 4, "the rest", true).is_err());
        place.put(3, "kept", 0, "half", false).unwrap();
        place.uploads.drop_all();
        assert!(place.put(3, "kept", 4, "the rest", true).is_err());
        assert_eq!((place.read("kept").as_str(), names(&place.work)), ("old", vec!["kept".to_owned()]));
        for upload in 0..MOST as u64 {
            place.put(upload, "new", 0, "", false).unwrap();
        }
        assert_eq!(place.put(999, "new", 0, "", false).unwrap_err().cause, Cause::Busy);
        assert_eq!(names(&place.work), ["kept"]);
    }

    #[test]
    fn links_are_followed_inside_and_nowhere_else() {
        let mut place = Place::new("links");
        place.whole("deep/target", "old").unwrap();
        symlink("deep/target", place.work.join("link")).unwrap();
        symlink("../link", place.work.join("deep/back")).unwrap();
        symlink("fresh", place.work.join("dangling")).unwrap();
        place.whole("deep/back", "new").unwrap();
        place.whole("dangling", "made").unwrap();
        assert_eq!((place.read("deep/target").as_str(), place.read("fresh").as_str()), ("new", "made"));
        assert!(fs::symlink_metadata(place.work.join("link")).unwrap().is_symlink(), "a link stays one");
        symlink("../secret", place.work.join("out")).unwrap();
        symlink(&place.root, place.work.join("folder")).unwrap();
        symlink("/proc/self/root", place.work.join("magic")).unwrap();
        symlink("circle", place.work.join("circle")).unwrap();
        symlink("deep/..", place.work.join("up")).unwrap();
        rustix::fs::mknodat(CWD, place.work.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        for path in ["out", "folder/secret", "magic/tmp/x", "../secret", "/tmp/x", "a/../../secret", "./x", "a//b", "a\0b"] {
            assert!(place.whole(path, "x").is_err(), "{path:?}");
        }
        for path in ["", "deep", "up", "circle", "fifo", "fresh/below"] {
            assert!(place.whole(path, "x").is_err(), "{path:?}");
        }
        assert_eq!(fs::read_to_string(place.root.join("secret")).unwrap(), "secret");
    }
}
