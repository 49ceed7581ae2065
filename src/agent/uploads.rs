//! Uploads into the workspace: a file appears atomically with its last chunk.
//!
//! Until then an upload is an unnamed file (`O_TMPFILE`) where the file system supports that: no code finds it half-written,
//! no listing shows it, and its space is freed if it ends early, even by the death of the manager. At the end it is linked
//! under a temporary name and renamed, so that an existing file is replaced without a gap.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::files::{Files, check_relative_path, refusal_of, refusal_of_io, split_name, stat_of};
use crate::agent_protocol::{FileStat, PutOptions, RefusalCause, Refused};

/// The most open uploads of a connection.
const MAX_UPLOADS: usize = 200;
/// The most symlinks that are followed, as in Linux.
const MAX_SYMLINKS: usize = 40;

/// The uploads of one connection, by the manager's numbers.
#[derive(Default)]
pub(super) struct Uploads(HashMap<u64, Upload>);

impl Uploads {
    /// Writes a chunk. Offset 0 starts an upload, and the last chunk finishes it. An error discards the upload. Returns the state
    /// of the finished file.
    pub fn write_chunk(&mut self, files: &Files, chunk: &Chunk, data: &[u8]) -> Result<Option<FileStat>, Refused> {
        let mut upload = match (chunk.offset, self.0.remove(&chunk.upload)) {
            (0, _) if self.0.len() >= MAX_UPLOADS => {
                return Err(refusal("too many uploads at once", RefusalCause::Busy));
            }
            (0, _) => Upload::create(files, chunk.path, chunk.options)?,
            (offset, Some(upload)) if upload.length == offset => upload,
            _ => return Err(refusal("the upload was interrupted; send the file again", RefusalCause::Interrupted)),
        };
        upload.file.write_all_at(data, upload.length).map_err(|error| refusal_of_io(&error))?;
        upload.length += data.len() as u64;
        if chunk.last {
            return upload.finish().map(Some);
        }
        self.0.insert(chunk.upload, upload);
        Ok(None)
    }

    pub fn discard(&mut self, upload: u64) {
        self.0.remove(&upload);
    }

    pub fn discard_all(&mut self) {
        self.0.clear();
    }
}

fn refusal(reason: &str, cause: RefusalCause) -> Refused {
    Refused { reason: reason.to_owned(), cause }
}

/// The position of a chunk.
pub(super) struct Chunk<'a> {
    pub upload: u64,
    pub path: &'a str,
    pub offset: u64,
    pub last: bool,
    /// Of the upload; those of its first chunk count.
    pub options: PutOptions,
}

struct Upload {
    file: File,
    /// `None` for an unnamed file.
    temporary_name: Option<String>,
    length: u64,
    folder: OwnedFd,
    name: Vec<u8>,
    options: PutOptions,
}

/// A new file, and its temporary name unless it is unnamed.
type NewFile = (OwnedFd, Option<String>);

fn create_unnamed(folder: &OwnedFd) -> Result<NewFile, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(0o644))?, None))
}

/// For file systems without unnamed files (gVisor's). A file left by a killed agent is deleted with its sandbox.
fn create_named(folder: &OwnedFd) -> Result<NewFile, Errno> {
    let name = random_name()?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(folder, &name, flags, Mode::from_raw_mode(0o644))?, Some(name)))
}

impl Upload {
    fn create(files: &Files, path: &str, options: PutOptions) -> Result<Self, Refused> {
        Self::create_with(files, path, options, |folder| match create_unnamed(folder) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => create_named(folder),
            file => file,
        })
    }

    fn create_with(
        files: &Files,
        path: &str,
        options: PutOptions,
        create_file: impl FnOnce(&OwnedFd) -> Result<NewFile, Errno>,
    ) -> Result<Self, Refused> {
        let path = check_relative_path(path)?;
        if path.is_empty() {
            return Err("a file needs a name".into());
        }
        files.create_folders(split_name(&path).0)?;
        let Target { folder, name, mode, is_link } = resolve_target(files, path)?;
        if options.is_new && (mode.is_some() || is_link) {
            return Err(refusal_of(Errno::EXIST));
        }
        let (file, temporary_name) = create_file(&folder).map_err(refusal_of)?;
        let upload = Self { file: File::from(file), temporary_name, length: 0, folder, name, options };
        if let Some(mode) = mode.or(options.is_executable.then_some(Mode::from_raw_mode(0o755))) {
            rustix::fs::fchmod(&upload.file, mode).map_err(refusal_of)?;
        }
        Ok(upload)
    }

    /// Moves the file to its name, replacing an existing file.
    fn finish(mut self) -> Result<FileStat, Refused> {
        if let Some(ms) = self.options.modified_ms {
            let time = Timespec { tv_sec: ms.div_euclid(1000), tv_nsec: ms.rem_euclid(1000) * 1_000_000 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&self.file, &times).map_err(refusal_of)?;
        }
        if self.temporary_name.is_none() {
            let (name, own_path) = (random_name().map_err(refusal_of)?, format!("/proc/self/fd/{}", self.file.as_raw_fd()));
            rustix::fs::linkat(CWD, own_path, &self.folder, &name, AtFlags::SYMLINK_FOLLOW).map_err(refusal_of)?;
            self.temporary_name = Some(name);
        }
        let temporary = self.temporary_name.as_deref().unwrap_or_default();
        let flags = if self.options.is_new { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        rustix::fs::renameat_with(&self.folder, temporary, &self.folder, &self.name, flags).map_err(refusal_of)?;
        self.temporary_name = None;
        stat_of(&self.file).map_err(|error| refusal_of_io(&error))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary_name {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
    }
}

/// Where an upload goes.
struct Target {
    folder: OwnedFd,
    name: Vec<u8>,
    /// Of an existing file.
    mode: Option<Mode>,
    /// Whether the path was that of a symlink.
    is_link: bool,
}

/// Resolves a path to folder and file name, following symlinks inside the workspace.
fn resolve_target(files: &Files, mut path: Vec<u8>) -> Result<Target, Refused> {
    for followed in 0..MAX_SYMLINKS {
        let (parent, name) = split_name(&path);
        let folder = files.open_folder(parent).map_err(refusal_of)?;
        // The target of a symlink to `..` or `folder/`.
        if matches!(name, b"" | b"." | b"..") {
            return Err(refusal_of(Errno::ISDIR));
        }
        let is_link = followed > 0;
        // Opening for writing refuses what cannot be overwritten: folders, pipes without a reader, read-only files.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&folder, name, flags, Mode::empty()) {
            Ok(old) => {
                let stat = rustix::fs::fstat(&old).map_err(refusal_of)?;
                if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
                    return Err("it is not a regular file".into());
                }
                let mode = Some(Mode::from_raw_mode(stat.st_mode & 0o777));
                return Ok(Target { folder, name: name.to_vec(), mode, is_link });
            }
            Err(Errno::NOENT) => return Ok(Target { folder, name: name.to_vec(), mode: None, is_link }),
            Err(Errno::LOOP) => {
                let target = rustix::fs::readlinkat(&folder, name, Vec::new()).map_err(refusal_of)?.into_bytes();
                if target.starts_with(b"/") {
                    return Err(refusal_of(Errno::XDEV));
                }
                path = if parent.is_empty() { target } else { [parent, b"/", &target].concat() };
            }
            Err(error) => return Err(refusal_of(error)),
        }
    }
    Err(refusal_of(Errno::LOOP))
}

fn random_name() -> Result<String, Errno> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".cellkeep-{:032x}", u128::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use rustix::fs::FileType;

    use super::super::files::tests::TestWorkspace;
    use super::*;

    struct Uploading {
        place: TestWorkspace,
        uploads: Uploads,
    }

    impl std::ops::Deref for Uploading {
        type Target = TestWorkspace;

        fn deref(&self) -> &TestWorkspace {
            &self.place
        }
    }

    impl Uploading {
        fn new(name: &str) -> Self {
            Self { place: TestWorkspace::new(&format!("uploads-{name}")), uploads: Uploads::default() }
        }

        fn put(&mut self, upload: u64, path: &str, offset: u64, data: &str, last: bool) -> Result<(), Refused> {
            let chunk = Chunk { upload, path, offset, last, options: PutOptions::default() };
            self.uploads.write_chunk(&self.place.files, &chunk, data.as_bytes()).map(drop)
        }

        fn whole(&mut self, path: &str, data: &str) -> Result<(), Refused> {
            self.put(1, path, 0, data, true)
        }

        fn mode(&self, path: &str) -> u32 {
            fs::metadata(self.work.join(path)).unwrap().permissions().mode() & 0o7777
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn file_appears_with_its_last_chunk() {
        let mut place = Uploading::new("pieces");
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
    fn named_temporary_file_appears_at_the_end() {
        let mut place = Uploading::new("named");
        place.whole("kept", "old").unwrap();
        let begin =
            |place: &Uploading| Upload::create_with(&place.files, "kept", PutOptions::default(), create_named).unwrap();
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
    fn interrupted_upload_leaves_old_file() {
        let mut place = Uploading::new("cut");
        place.whole("kept", "old").unwrap();
        place.put(1, "kept", 0, "half", false).unwrap();
        assert!(place.put(1, "kept", 9, "a hole", true).is_err());
        assert!(place.put(1, "kept", 4, "after an error", true).is_err(), "the upload was discarded");
        place.put(2, "kept", 0, "half", false).unwrap();
        place.uploads.discard(2);
        assert!(place.put(2, "kept", 4, "the rest", true).is_err());
        place.put(3, "kept", 0, "half", false).unwrap();
        place.uploads.discard_all();
        assert!(place.put(3, "kept", 4, "the rest", true).is_err());
        assert_eq!((place.read("kept").as_str(), names(&place.work)), ("old", vec!["kept".to_owned()]));
        for upload in 0..MAX_UPLOADS as u64 {
            place.put(upload, "new", 0, "", false).unwrap();
        }
        assert_eq!(place.put(999, "new", 0, "", false).unwrap_err().cause, RefusalCause::Busy);
        assert_eq!(names(&place.work), ["kept"]);
    }

    #[test]
    fn options_of_a_new_file_hold() {
        let mut place = Uploading::new("options");
        let options = PutOptions { is_new: true, is_executable: true, modified_ms: Some(1_500) };
        let put = |place: &mut Uploading, path| {
            let chunk = Chunk { upload: 1, path, offset: 0, last: true, options };
            place.uploads.write_chunk(&place.place.files, &chunk, b"x")
        };
        let written = put(&mut place, "new").unwrap().unwrap();
        assert_eq!((written.size, written.modified_ns, place.mode("new")), (1, 1_500_000_000, 0o755));
        let modified = fs::metadata(place.work.join("new")).unwrap().modified().unwrap();
        assert_eq!(modified, UNIX_EPOCH + Duration::from_millis(1500));
        symlink("nowhere", place.work.join("link")).unwrap();
        for taken in ["new", "link"] {
            assert_eq!(put(&mut place, taken).unwrap_err().cause, RefusalCause::Exists, "{taken}");
        }
        // A file that comes meanwhile is kept.
        let upload = Upload::create(&place.files, "raced", options).unwrap();
        fs::write(place.work.join("raced"), "theirs").unwrap();
        assert_eq!(upload.finish().unwrap_err().cause, RefusalCause::Exists);
        assert_eq!((place.read("raced").as_str(), names(&place.work).len()), ("theirs", 3), "no temporary file is left");
    }

    #[test]
    fn symlinks_are_followed_only_inside() {
        let mut place = Uploading::new("links");
        place.whole("deep/target", "old").unwrap();
        symlink("deep/target", place.work.join("link")).unwrap();
        symlink("../link", place.work.join("deep/back")).unwrap();
        symlink("fresh", place.work.join("dangling")).unwrap();
        place.whole("deep/back", "new").unwrap();
        place.whole("dangling", "made").unwrap();
        assert_eq!((place.read("deep/target").as_str(), place.read("fresh").as_str()), ("new", "made"));
        assert!(fs::symlink_metadata(place.work.join("link")).unwrap().is_symlink(), "the symlink itself stays");
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
