//! Lists and changes folders of the workspace. Each request does a bounded amount of work that keeps something: a page has at
//! most [`MAX_PAGE`] entries in memory, a removal removes at most [`MAX_REMOVALS`] entries.

use std::collections::BinaryHeap;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::files::{Files, MAX_PATH, check_relative_path, refusal_of, split_name};
use crate::agent_protocol::{EntryKind, FILE_CHUNK, FileEntry, RefusalCause, Refused, decode_name, encode_name};

/// The most entries of a page.
const MAX_PAGE: usize = 1000;
/// The largest page as JSON, bytes. An answer may be four times as large, so escaped names cannot exceed its cap.
const MAX_LISTING: usize = FILE_CHUNK;
/// The most entries that one request removes.
const MAX_REMOVALS: usize = 1000;

impl Files {
    /// A page of a folder, ordered by the bytes of the names, and the name after which the next page begins. The order needs no
    /// memory of earlier pages, so entries that come or go meanwhile neither repeat others nor hide them.
    pub fn list(&self, path: &str, after: &str, limit: usize) -> Result<(Vec<FileEntry>, Option<String>), Refused> {
        let folder = self.open_folder(&check_relative_path(path)?).map_err(refusal_of)?;
        let after = decode_name(after).ok_or("the page begins after a name that is not valid")?;
        let limit = limit.clamp(1, MAX_PAGE);
        // The largest name is on top, and goes when a smaller one comes.
        let (mut names, mut is_last) = (BinaryHeap::new(), true);
        for entry in Dir::read_from(&folder).map_err(refusal_of)? {
            let entry = entry.map_err(refusal_of)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || name <= after.as_slice() {
                continue;
            }
            if names.len() == limit {
                is_last = false;
                if names.peek().is_none_or(|largest: &Vec<u8>| largest.as_slice() <= name) {
                    continue;
                }
                names.pop();
            }
            names.push(name.to_vec());
        }
        let (mut entries, mut size, mut next) = (Vec::new(), 0, None);
        for name in names.into_sorted_vec() {
            // An entry that is removed meanwhile is left out.
            let entry = read_entry(&folder, &name).ok();
            size += entry.as_ref().map_or(0, FileEntry::json_size);
            if size > MAX_LISTING {
                is_last = false;
                break;
            }
            entries.extend(entry);
            next = Some(name);
        }
        Ok((entries, next.filter(|_| !is_last).map(|name| encode_name(&name))))
    }

    /// Describes an entry without following a symlink.
    pub fn stat(&self, path: &str) -> Result<FileEntry, Refused> {
        let path = check_relative_path(path)?;
        let (parent, name) = split_name(&path);
        let folder = self.open_folder(parent).map_err(refusal_of)?;
        if name.is_empty() {
            return read_entry(&folder, b".").map(|entry| FileEntry { name: String::new(), ..entry }).map_err(refusal_of);
        }
        read_entry(&folder, name).map_err(refusal_of)
    }

    /// Creates a folder and its parents. An existing folder is not an error.
    pub fn make_folder(&self, path: &str) -> Result<(), Refused> {
        let path = check_relative_path(path)?;
        self.create_folders(&path)?;
        self.open_folder(&path).map(drop).map_err(|error| match error {
            Errno::NOTDIR => refusal_of(Errno::EXIST),
            other => refusal_of(other),
        })
    }

    /// Creates a symlink and its parents. Its target is any text: it is resolved when somebody follows it.
    pub fn make_link(&self, path: &str, target: &str) -> Result<(), Refused> {
        let path = check_relative_path(path)?;
        let target = decode_name(target).ok_or("the target of the link is not valid")?;
        self.create_folders(split_name(&path).0)?;
        let (folder, name) = self.open_parent(&path)?;
        rustix::fs::symlinkat(target, &folder, name).map_err(refusal_of)
    }

    /// Moves an entry. An existing entry at the new path is an error, unless it is to be replaced and the system can do that.
    pub fn rename(&self, path: &str, to: &str, replace: bool) -> Result<(), Refused> {
        let (path, to) = (check_relative_path(path)?, check_relative_path(to)?);
        let (old_folder, old_name) = self.open_parent(&path)?;
        // No folders are made for an entry that does not exist.
        rustix::fs::statat(&old_folder, old_name, AtFlags::SYMLINK_NOFOLLOW).map_err(refusal_of)?;
        self.create_folders(split_name(&to).0)?;
        let (new_folder, new_name) = self.open_parent(&to)?;
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(&old_folder, old_name, &new_folder, new_name, flags).map_err(|error| match error {
            Errno::INVAL => "a folder cannot be moved into itself".into(),
            Errno::ISDIR => Refused { reason: "a folder exists at the new path".to_owned(), cause: RefusalCause::Exists },
            Errno::NOTDIR => Refused { reason: "a file exists at the new path".to_owned(), cause: RefusalCause::Exists },
            other => refusal_of(other),
        })
    }

    /// Removes a file, a symlink (not its target) or a folder. `recursive` removes what is in the folder first; `true` if the
    /// request must be repeated for the rest.
    pub fn remove(&self, path: &str, recursive: bool) -> Result<bool, Refused> {
        let path = check_relative_path(path)?;
        let (folder, name) = self.open_parent(&path)?;
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Err(Errno::ISDIR) if recursive => self.remove_tree(&path),
            Err(Errno::ISDIR) => rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR).map(|()| false).map_err(refusal_of),
            other => other.map(|()| false).map_err(refusal_of),
        }
    }

    /// Removes a bounded number of entries, depth first. Each folder is opened by its path from the workspace, so one descriptor
    /// is enough, and a folder that is moved away meanwhile is not followed.
    fn remove_tree(&self, top: &[u8]) -> Result<bool, Refused> {
        let (mut path, mut left) = (top.to_vec(), MAX_REMOVALS);
        loop {
            match self.remove_files(&path, &mut left).map_err(refusal_of)? {
                Removed::Part => return Ok(true),
                Removed::UpToFolder(name) => {
                    path.push(b'/');
                    path.extend(name);
                    if path.len() > MAX_PATH {
                        return Err("a path in the folder is too long; remove the innermost folders by code".into());
                    }
                }
                Removed::All => {
                    let (folder, name) = self.open_parent(&path)?;
                    match rustix::fs::unlinkat(&folder, name, AtFlags::REMOVEDIR) {
                        // Somebody has removed it, or put something into it.
                        Ok(()) | Err(Errno::NOENT) if path == top => return Ok(false),
                        Ok(()) | Err(Errno::NOENT) => path.truncate(split_name(&path).0.len()),
                        Err(Errno::NOTEMPTY) => {}
                        Err(error) => return Err(refusal_of(error)),
                    }
                    left = left.saturating_sub(1);
                }
            }
        }
    }

    /// Removes the entries of a folder up to the first folder in it.
    fn remove_files(&self, path: &[u8], left: &mut usize) -> Result<Removed, Errno> {
        let folder = match self.open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Removed::All),
            folder => folder?,
        };
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if *left == 0 {
                return Ok(Removed::Part);
            }
            match rustix::fs::unlinkat(&folder, entry.file_name(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => *left -= 1,
                Err(Errno::ISDIR) => return Ok(Removed::UpToFolder(entry.file_name().to_bytes().to_vec())),
                Err(error) => return Err(error),
            }
        }
        Ok(if *left == 0 { Removed::Part } else { Removed::All })
    }

    /// Opens the folder of an entry. Returns it and the name of the entry.
    fn open_parent<'a>(&self, path: &'a [u8]) -> Result<(OwnedFd, &'a [u8]), Refused> {
        let (parent, name) = split_name(path);
        if name.is_empty() {
            return Err("the workspace itself cannot be replaced, moved or removed".into());
        }
        Ok((self.open_folder(parent).map_err(refusal_of)?, name))
    }
}

/// What of a folder was removed.
enum Removed {
    All,
    /// The entries up to this folder.
    UpToFolder(Vec<u8>),
    /// As many as one request may remove.
    Part,
}

fn read_entry(folder: &OwnedFd, name: &[u8]) -> Result<FileEntry, Errno> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let (kind, target) = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => (EntryKind::File, None),
        FileType::Directory => (EntryKind::Folder, None),
        FileType::Symlink => (EntryKind::Link, Some(rustix::fs::readlinkat(folder, name, Vec::new())?)),
        _ => (EntryKind::Other, None),
    };
    Ok(FileEntry {
        name: encode_name(name),
        kind,
        size: stat.st_size as u64,
        modified_ms: stat.st_mtime.saturating_mul(1000).saturating_add(stat.st_mtime_nsec as i64 / 1_000_000),
        mode: stat.st_mode & 0o777,
        target: target.map(|target| encode_name(target.as_bytes())),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use bytes::Bytes;

    use super::super::files::tests::TestWorkspace;
    use super::*;
    use crate::agent_protocol::{Answer, AnswerBody, FromAgent};

    fn names(place: &TestWorkspace, path: &str) -> Vec<String> {
        let (entries, next) = place.files.list(path, "", usize::MAX).unwrap();
        assert_eq!(next, None);
        entries.into_iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn pages_follow_each_other_in_order() {
        let place = TestWorkspace::new("list-pages");
        (0..25).rev().for_each(|number| fs::write(place.work.join(format!("f{number:02}")), "").unwrap());
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let (entries, next) = place.files.list("", &after, 10).unwrap();
            all.extend(entries.into_iter().map(|entry| entry.name));
            // What comes and goes between two pages does not disturb the others.
            fs::write(place.work.join("a"), "").unwrap();
            let _ = fs::remove_file(place.work.join("f03"));
            match next {
                Some(next) => after = next,
                None => break,
            }
        }
        let expected: Vec<_> = (0..25).map(|number| format!("f{number:02}")).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn listing_with_long_names_fits_its_frame() {
        let place = TestWorkspace::new("list-long");
        // Control characters take six bytes each in JSON.
        let name = |i: usize| place.work.join(format!("{i:05}{}", "\u{1}".repeat(250)));
        (0..3000).for_each(|i| fs::write(name(i), "").unwrap());
        let (entries, next) = place.files.list("", "", usize::MAX).unwrap();
        assert!(next.is_some() && entries.len() > 500);
        let answer = Answer { id: 1, body: AnswerBody::Listing { entries, next }, data: Bytes::new() };
        let size: usize = FromAgent::Answer(answer).encode().iter().map(Bytes::len).sum();
        assert!(size < FromAgent::cap(0x84).unwrap(), "{size}");
    }

    #[test]
    fn any_name_can_be_listed_and_changed() {
        let place = TestWorkspace::new("list-odd");
        fs::write(place.work.join(OsStr::from_bytes(b"a\xff")), "x").unwrap();
        symlink(OsStr::from_bytes(b"\xfe"), place.work.join("link")).unwrap();
        let entries = place.files.list("", "", 10).unwrap().0;
        let shown: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind, entry.target.as_deref())).collect();
        assert_eq!(shown, [("a\0ff", EntryKind::File, None), ("link", EntryKind::Link, Some("\0fe"))]);
        assert_eq!(place.files.list("", "a\0ff", 10).unwrap().0.len(), 1);
        assert_eq!(place.files.get("a\0ff", 0, 9).unwrap().1, "x");
        place.files.rename("a\0ff", "b", false).unwrap();
        assert_eq!(place.read("b"), "x");
    }

    #[test]
    fn moving_replaces_only_when_asked() {
        let place = TestWorkspace::new("move");
        fs::write(place.work.join("a"), "a").unwrap();
        fs::write(place.work.join("b"), "b").unwrap();
        assert_eq!(place.files.rename("a", "b", false).unwrap_err().cause, RefusalCause::Exists);
        place.files.rename("a", "deep/er/c", false).unwrap();
        place.files.rename("deep/er/c", "b", true).unwrap();
        assert_eq!((place.read("b"), names(&place, "deep/er")), ("a".to_owned(), Vec::new()));
        assert!(place.files.rename("deep", "deep/er/x", false).unwrap_err().reason.contains("into itself"));
        assert_eq!(place.files.rename("b", "deep", true).unwrap_err().cause, RefusalCause::Exists);
        assert_eq!(place.files.rename("none", "made/x", true).unwrap_err().cause, RefusalCause::NotFound);
        assert_eq!(names(&place, ""), ["b", "deep"], "nothing is made for what does not exist");
        symlink(&place.root, place.work.join("out")).unwrap();
        for (path, to) in [("b", "../b"), ("b", "out/b"), ("out/secret", "b"), ("", "x"), ("b", "")] {
            assert!(place.files.rename(path, to, true).is_err(), "{path} {to}");
        }
        place.files.rename("out", "moved", false).unwrap();
        assert!(place.root.join("secret").exists(), "a link is moved, not its target");
    }

    #[test]
    fn folders_and_links_are_made_once() {
        let place = TestWorkspace::new("make");
        place.files.make_folder("a/b").unwrap();
        place.files.make_folder("a/b").unwrap();
        fs::write(place.work.join("a/file"), "").unwrap();
        assert_eq!(place.files.make_folder("a/file").unwrap_err().cause, RefusalCause::Exists);
        assert!(place.files.make_folder("a/file/x").is_err());
        place.files.make_link("c/link", "../a/file").unwrap();
        assert_eq!(place.files.make_link("c/link", "x").unwrap_err().cause, RefusalCause::Exists);
        let link = place.files.stat("c/link").unwrap();
        assert_eq!((link.kind, link.target.as_deref()), (EntryKind::Link, Some("../a/file")));
        assert_eq!(place.files.stat("").unwrap().kind, EntryKind::Folder);
        assert!(fs::symlink_metadata(place.root.join("made")).is_err());
    }

    #[test]
    fn removal_stays_inside_and_is_bounded() {
        let place = TestWorkspace::new("remove");
        fs::create_dir_all(place.work.join("top/sub/deep")).unwrap();
        symlink(&place.root, place.work.join("top/sub/out")).unwrap();
        fs::write(place.work.join(OsStr::from_bytes(b"top/\xff")), "").unwrap();
        (0..MAX_REMOVALS * 2).for_each(|i| fs::write(place.work.join(format!("top/sub/deep/{i}")), "").unwrap());
        assert_eq!(place.files.remove("top", false).unwrap_err().cause, RefusalCause::Exists);
        assert!(place.files.remove("top", true).unwrap(), "more than one request may remove");
        assert_eq!((1..).find(|_| !place.files.remove("top", true).unwrap()), Some(2));
        assert_eq!((names(&place, ""), place.root.join("secret").exists()), (Vec::new(), true));
        symlink(&place.root, place.work.join("link")).unwrap();
        assert!(!place.files.remove("link", true).unwrap());
        assert!(place.root.join("secret").exists() && place.files.remove("", true).is_err());
    }

    #[test]
    fn deep_trees_are_removed() {
        let place = TestWorkspace::new("remove-deep");
        let deep = vec!["d"; 1500].join("/");
        fs::create_dir_all(place.work.join(&deep)).unwrap();
        assert!((0..5).any(|_| !place.files.remove("d", true).unwrap()));
        assert_eq!(names(&place, ""), [""; 0]);
    }
}
